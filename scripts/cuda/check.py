"""Whether plugins on a GPU keep the contract, and compute what the same plugins compute on the CPU.

    python scripts/cuda/check.py            build both first: cargo build --release, scripts/cuda/build.sh
    python scripts/cuda/check.py model_x advae   only these files, and pipelines of them
    python scripts/cuda/check.py --publish  the table goes into docs/performance.md

The doctor looks at every model's file. Then the images of mnist-1k are attacked through the models on the CPU and through
those on the GPU, and both score the images that the CPU's attack made. It needs numpy alone, and finds the libraries that
build.sh fetched into target/cuda-home.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))
from page import publish, row  # noqa: E402

HEAD = ("pipeline", "attack", "robust, CPU", "robust, GPU", "images called otherwise", "largest difference of logits")
CLASSIFIERS = ["model_x", "model_a", "model_b", "model_c", "model_d"]
PURIFIERS = ["advae", "hgd", "magnet", "defense_vae", "ape_gan"]
CELLS = [(classifier, "none") for classifier in CLASSIFIERS] + [("model_x", purifier) for purifier in PURIFIERS]
ATTACKS = ["--attack", "fgsm", "--attack", "pgd"]


class Side:
    """The host with the models and attacks of one folder. Threat models are those beside the host."""

    def __init__(self, host, models, device, folder):
        self.host, self.models, self.device, self.folder = host, models, device, folder
        self.folder.mkdir()

    def run(self, *words):
        command = [str(word) for word in (self.host, *words, "--device", self.device)]
        libraries = [str(ROOT / "target/cuda-home/home/lib64"), os.environ.get("LD_LIBRARY_PATH", "")]
        env = os.environ | {"ADVAE_PLUGIN_PATH": str(self.models), "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    def must(self, *words):
        done = self.run(*words)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, words))} on {self.device}\nended with {done.returncode}: {done.stderr.strip()}")

    def model(self, name):
        return name if name == "none" else self.models / f"lib{name}.so"

    def attack(self, classifier, purifier, samples):
        """Of each attack the adversarial images' file, and which images withstood."""
        folder = self.folder / f"{classifier}-{purifier}"
        out = folder / "results.jsonl"
        folder.mkdir()
        self.must(
            "eval", "--classifier", self.model(classifier), "--purifier", self.model(purifier), *ATTACKS,
            "--threat-model", "white_box", "--samples", samples, "--save-adversarial", folder, "--out", out,
        )  # fmt: skip
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        attacks = {line["key"]: line["attack"]["plugin"] for line in lines if line["type"] == "cell"}
        robust = {attack: {} for attack in attacks.values()}
        for line in lines:
            if line["type"] == "sample":
                robust[attacks[line["cell"]]][line["id"]] = line["robust"]
        return {attack: next(folder.glob(f"*{attack}*.npz")) for attack in robust}, robust

    def logits(self, images, classifier, purifier):
        """Those of adversarial images, file by file."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.must("score", *images, "--classifier", self.model(classifier), "--purifier", self.model(purifier), "--logits", folder)
        return [np.load(folder / f"{file.stem}.logits.npz")["logits_adv"] for file in images]


def compare(cpu, gpu, classifier, purifier, samples):
    images, on_cpu = cpu.attack(classifier, purifier, samples)
    _, on_gpu = gpu.attack(classifier, purifier, samples)
    logits = [side.logits(images.values(), classifier, purifier) for side in (cpu, gpu)]
    share = lambda robust: f"{100 * sum(robust.values()) / len(robust):.1f} %"
    pipeline = classifier if purifier == "none" else f"{purifier} ∘ {classifier}"
    for attack, theirs, ours in zip(images, *logits):
        otherwise = sum(robust != on_gpu[attack][id] for id, robust in on_cpu[attack].items())
        yield pipeline, attack, share(on_cpu[attack]), share(on_gpu[attack]), otherwise, f"{np.abs(theirs - ours).max():.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="only these; all of --gpu, if none is named")
    parser.add_argument("--cpu", type=Path, default=ROOT / "target/release", help="folder of the host and the models for the CPU")
    parser.add_argument("--gpu", type=Path, default=ROOT / "target/cuda/release", help="folder of the models for CUDA")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--publish", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    host = options.cpu / "advae-host"
    if not host.is_file():
        raise SystemExit(f"no '{host}': run `cargo build --release`, or give --cpu FOLDER")
    failed, lines = 0, []
    with tempfile.TemporaryDirectory() as folder:
        cpu = Side(host, options.cpu, "cpu", Path(folder) / "cpu")
        gpu = Side(host, options.gpu, options.device, Path(folder) / "gpu")
        models = [gpu.model(name) for name in options.models] or sorted(options.gpu.glob("lib*.so"))
        for model in models:
            done = gpu.run("doctor", model)
            failed += done.returncode != 0
            said = (done.stdout + done.stderr).strip().splitlines()
            print(f"doctor {model.name}: {said[-1] if done.returncode == 0 else os.linesep.join(said)}", flush=True)
        there = {model.stem.removeprefix("lib") for model in models} | {"none"}
        for classifier, purifier in CELLS:
            for line in compare(cpu, gpu, classifier, purifier, options.samples) if {classifier, purifier} <= there else []:
                lines.append(line)
                print(row(line), flush=True)
    if options.publish:
        publish("scripts/cuda/check.py", HEAD, lines, keep=2)
    if failed:
        raise SystemExit(f"the doctor finds fault with {failed} of {len(models)} files on {options.device}")


if __name__ == "__main__":
    main()
