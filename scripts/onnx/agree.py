"""Do attacks through ONNX files and on PyTorch modules end as through the plugins? The same networks, attacked by advae-host.

    python agree.py                 all pairs, 1,000 images of MNIST, 200 of CIFAR-10
    python agree.py --host ../../target/release/advae-host

Prints a line a pair: images with the same outcome, and how long each side took. Ends with 1 where fewer than 99.5 % agree.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import export

ROOT = Path(__file__).resolve().parents[2]
RESNET = ROOT / export.NETWORKS["resnet29v2"][1]
PGD = "pgd:random_start=false"
MODULE = f"python:python={sys.executable},file={ROOT}/scripts/onnx/export.py,class="
PAIRS = {
    "X": (["model_x"], ["onnx:model={}/model_x.onnx"], PGD, 1000),
    "AdvAE + X": (["model_x", "advae"], ["onnx:model={}/model_x.onnx", "onnx:model={}/advae.onnx"], PGD, 1000),
    "AdvAE of a file + X": (["model_x", "advae"], ["model_x", "onnx:model={}/advae.onnx"], PGD, 1000),
    "ResNet29": ([f"resnet29v2@{RESNET}"], ["onnx:model={}/resnet29v2.onnx"], PGD + ",steps=10", 200),
    "X in Python": (["model_x"], [MODULE + "model_x"], PGD, 1000),
    "AdvAE + X in Python": (["model_x", "advae"], [MODULE + "model_x", MODULE + "advae"], PGD, 1000),
    "ResNet29 in Python": ([f"resnet29v2@{RESNET}"], [MODULE + "resnet29v2"], PGD + ",steps=10", 200),
}


def evaluate(host, models_, attack, samples, out):
    """Rows by sample id, and seconds."""
    flags = ["--classifier", models_[0], "--purifier", models_[1] if len(models_) > 1 else "none"]
    command = [host, "eval", *flags, "--attack", attack, "--threat-model", "white_box", "--samples", str(samples)]
    done = subprocess.run([*map(str, command), "--out", str(out)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    if "operator by operator" in done.stdout + done.stderr:
        print(f"note: {models_} does not run fused")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows = {row["id"]: row for row in rows if row["type"] == "sample"}
    return rows, max(row["at"] for row in rows.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default=ROOT / "target/release/advae-host")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, (_, _, shape) in export.NETWORKS.items():
            export.export(export.load(name), shape, folder / f"{name}.onnx")
        for name, (own, files, attack, samples) in PAIRS.items():
            files = [file.format(folder) for file in files]
            a, seconds = evaluate(options.host, own, attack, samples, folder / f"{name} own.jsonl")
            b, of_files = evaluate(options.host, files, attack, samples, folder / f"{name} file.jsonl")
            same = sum(a[i]["robust"] == b[i]["robust"] for i in a)
            failed |= same < 0.995 * len(a)
            print(f"{name}, {attack}: {same} of {len(a)} images end alike; {seconds:.1f} s the plugin, {of_files:.1f} s the other")
    sys.exit(failed)


if __name__ == "__main__":
    main()
