"""Times advae-host, through its real plugins, against torchattacks, foolbox and ART, interleaved in one run.

    python compare.py                       every row against every peer, into docs/performance.md
    python compare.py X D cw-X              some rows, printed only
    python compare.py A --peers tuned --publish   against the tuned peers, in place of the rows that are there
    ADVAE_PLUGIN_PATH=target/cuda/release LD_LIBRARY_PATH=target/cuda-home/home/lib64 python compare.py X AdvAE+X --device cuda:0
                                            on a GPU, from the top folder, both sides in f32
    python compare.py --help

The host's time is that of its whole process: loading, scoring, writing. A peer's is its attack alone, in a process that
is warm. Ratios are medians of pairs measured one after the other; their range is printed too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from page import ROOT, publish, row  # noqa: E402

LIBRARIES = ["torchattacks", "foolbox", "art"]
# No memory goes back to the system between batches.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "268435456"}
ROWS = {
    "AdvAE+X": dict(classifier="model_x", purifier="advae"),
    "X": dict(classifier="model_x"),
    "A": dict(classifier="model_a"),
    "C": dict(classifier="model_c"),
    "D": dict(classifier="model_d"),
    "X-stop": dict(classifier="model_x", early_stop=True),
}
# On CIFAR-10, untrained on both sides: what is computed is the same.
CIFAR = {
    "ResNet29": dict(classifier="resnet29v2@init:1"),
    "U-net+ResNet29": dict(classifier="resnet29v2@init:1", purifier="advae_cifar10@init:1"),
}
HEAD = ("what", "peer", "peer, s", "advae, s", "ratio")


class Host:
    def __init__(self, binary, folder, threads, device):
        if not Path(binary).is_file():
            raise SystemExit(f"no '{binary}': run `cargo build --release`, or give --host PATH")
        self.binary, self.folder, self.threads, self.device = binary, Path(folder), threads, device

    def run(self, *words):
        command = [str(word) for word in (self.binary, *words)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr.strip()}")
        return time.perf_counter() - start

    def eval(self, attack, classifier, images, purifier="none", *more):
        return self.run(
            "eval", "--classifier", classifier, "--purifier", purifier, "--attack", attack, "--threat-model", "white_box",
            "--samples", images, "--threads", self.threads, "--device", self.device, *more,
        )  # fmt: skip

    def images(self, classifier="model_d"):
        """The 1,000 images of the classifier's sample, in a file for the peers."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.eval("fgsm", classifier, 1000, "none", "--save-adversarial", folder)
        (file,) = folder.glob("*.npz")
        return file

    def train(self, images, data_dir, *what):
        """Seconds of one epoch, as the log has them."""
        out = tempfile.mkdtemp(dir=self.folder)
        self.run(
            "train", *what, "--samples", images, "--epochs", 1, "--batch-size", 128, "--data-dir", data_dir,
            "--threads", self.threads, "--out", out,
        )  # fmt: skip
        return json.loads((Path(out) / "log.jsonl").read_text().splitlines()[0])["seconds"]


class Peer:
    def __init__(self, file, threads, tuned, **options):
        command = [sys.executable, str(HERE / "peer.py"), "--file", str(file), "--threads", str(threads)]
        command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command += ["--tuned"] if tuned else []
        env = os.environ | (MALLOC if tuned else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        if "ready" not in self.process.stdout.readline():
            raise SystemExit(f"{' '.join(command)} did not start")

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(title, host, peers, options):
    """One line a peer: interleaved times, their ratios."""
    lines = []
    for name, start in peers:
        if options.peers and ("tuned" in name or "channels_last" in name) != (options.peers == "tuned"):
            continue
        peer = start()
        theirs, ours = [], []
        for _ in range(options.rounds):
            theirs.append(peer.run())
            ours.append(host())
        peer.close()
        ratios = sorted(a / b for a, b in zip(theirs, ours))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} pairs" if ratios[1:] else "one pair"
        ratio = f"{statistics.median(ratios):.2f} ({spread})"
        lines.append((title, name, f"{statistics.median(theirs):.2f}", f"{statistics.median(ours):.2f}", ratio))
        print(row(lines[-1]), flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join([*ROWS, *CIFAR])}, cw-X, projection, train, train-ResNet29; all, if none is named")
    parser.add_argument("--host", default=str(ROOT / "target/release/advae-host"), help="the host's binary")
    parser.add_argument("--rounds", type=int, default=3, help="pairs a ratio")
    parser.add_argument("--peers", choices=["default", "tuned"], help="only those as users run them, or only tuned ones")
    parser.add_argument("--publish", action="store_true", help="put the named rows into docs/performance.md")
    parser.add_argument("--threads", type=int, default=2, help="threads on both sides")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N, on both sides")
    parser.add_argument("--data-dir", default=os.environ.get("ADVAE_DATA_DIR"), help="MNIST, for the row `train`")
    parser.add_argument("--cifar-dir", help="CIFAR-10, for the row `train-ResNet29`")
    options = parser.parse_args()
    wanted = options.rows or [*ROWS, *CIFAR, "cw-X", "projection", *(["train"] if options.data_dir else [])]
    wanted += ["train-ResNet29"] if options.cifar_dir and not options.rows else []
    unknown = set(wanted) - {*ROWS, *CIFAR, "cw-X", "projection", "train", "train-ResNet29"}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}")
    on_gpu = options.device != "cpu"
    if on_gpu and {*CIFAR, "cw-X", "train", "train-ResNet29"} & set(wanted):
        parser.error(f"{', '.join(CIFAR)}, cw-X, train and train-ResNet29 are rows for the CPU")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        host = Host(options.host, folder, options.threads, options.device)
        file = host.images()
        peer = lambda tuned, **more: lambda: Peer(file, options.threads, tuned, device=options.device, **more)
        for name in [name for name in wanted if name in ROWS]:
            cell, stop = ROWS[name], ROWS[name].get("early_stop", False)
            settings = dict(attack="pgd", model=name.removesuffix("-stop"), steps=40, images=1000)
            attack, more = ("pgd", []) if stop else ("pgd:early_stop=false", ["--no-early-stop"])
            ours = lambda: host.eval(attack, cell["classifier"], 1000, cell.get("purifier", "none"), *more)
            libraries = LIBRARIES[:2] if on_gpu else LIBRARIES
            peers = [(f"{lib}", peer(False, library=lib, **settings)) for lib in libraries]
            peers += [(f"{lib}, tuned", peer(True, library=lib, **settings)) for lib in LIBRARIES[:2] if not stop]
            title = f"PGD-40, {name.replace('-', ', early ')}, 1,000 images"
            lines += compare(title, ours, peers, options)
        if "cw-X" in wanted:
            settings = dict(attack="cw", model="X", steps=1000, images=100)
            ours = lambda: host.eval("cw:preset=paper,abort=false", "model_x", 100, "none", "--no-early-stop")
            # torchattacks gives a batch up as soon as its loss has risen over a tenth of the iterations, and ART searches the
            # learning rate by halves: neither does the same work.
            peers = [(f"foolbox{', tuned' * tuned}", peer(tuned, library="foolbox", **settings)) for tuned in (False, True)]
            lines += compare("CW, X, 100 images, 1,000 iterations", ours, peers, options)
        if "train" in wanted:
            settings = dict(attack="train", library="torch", model="AdvAE+X", steps=10, images=1000)
            what = ["--classifier", "model_x.so", "--purifier", "advae.so", "--attack", "pgd:steps=10"]
            ours = lambda: host.train(2000, options.data_dir, *what) / 2
            peers = [("torch, channels_last", peer(True, **settings))]
            lines += compare("AdvAE on X, PGD-10 and update, 1,000 images", ours, peers, options)
        cifar = [name for name in wanted if name in CIFAR or name == "train-ResNet29"]
        if cifar:
            file = host.images("resnet29v2@init:1")
        for name in [name for name in cifar if name in CIFAR]:
            cell = CIFAR[name]
            settings = dict(attack="pgd", model=name, steps=10, images=200)
            attack = "pgd:steps=10,step_size=1/255,early_stop=false"
            ours = lambda: host.eval(attack, cell["classifier"], 200, cell.get("purifier", "none"), "--no-early-stop")
            peers = [(lib, peer(False, library=lib, **settings)) for lib in LIBRARIES]
            peers += [(f"{lib}, tuned", peer(True, library=lib, **settings)) for lib in LIBRARIES[:2]]
            lines += compare(f"PGD-10, {name}, 200 images", ours, peers, options)
        if "train-ResNet29" in wanted:
            settings = dict(attack="train", library="torch", model="ResNet29", steps=0, images=1000)
            what = ["--classifier", "resnet29v2.so", "--dataset", "cifar10-train"]
            # Seven updates of 128 and one of 104, on either side.
            ours = lambda: host.train(1000, options.cifar_dir, *what)
            peers = [("torch, channels_last", peer(True, **settings))]
            lines += compare("ResNet29, an epoch of 1,000 clean images", ours, peers, options)
        if "projection" in wanted:
            # Half of the hundred images are clean, half adversarial.
            ours = lambda: host.run(
                "eval", "--classifier", "model_x", "--purifier", "defense_gan:preset=paper", "--attack", "fgsm",
                "--threat-model", "oblivious", "--samples", 50, "--draws", 1, "--threads", options.threads, "--device", options.device,
            )  # fmt: skip
            settings = dict(attack="projection", library="torch", model="G", steps=200, images=100)
            peers = [(f"torch{', tuned' * tuned}", peer(tuned, **settings)) for tuned in (False, True)]
            lines += compare("DefenseGAN's projection `paper`, 100 images", ours, peers, options)
    if options.publish or not options.rows:
        publish(f"benches/peers/compare.py{' --device cuda:0' * on_gpu}", HEAD, lines, keep=2)


if __name__ == "__main__":
    main()
