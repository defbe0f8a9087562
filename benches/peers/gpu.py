"""Times advae-host on a GPU against PyTorch: eager, compiled, torchattacks and foolbox, in f32 and in TF32.

    python gpu.py                    every row, at most three minutes; the rows also go to target/gpu.jsonl as they come
    python gpu.py X cw-X             some rows
    python gpu.py --device cpu --images 64 --limit 600 X     whether the script works, without a GPU
    python gpu.py --help

First every network is compiled, in one process each, all at the same time; a lock keeps the GPU to one of them. Then one
measurement is made after the other. PyTorch's times are those of the attack alone, in a process that is warm: weights
frozen, the best of several batch sizes and of two layouts of memory. Times of compiling are apart; in
them the processes wait for one another.

For advae the attack is run twice in one process, first with two steps. The time of the second is that of the results file's
last row: the host's scoring is included. The time of the whole process, loading and both attacks, is given too.
"""

import argparse
import contextlib
import fcntl
import gzip
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

BEGUN = time.perf_counter()
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from page import ROOT, publish, row  # noqa: E402

# They divide the numbers of images: a smaller last batch would be compiled for itself.
BATCHES = (500, 2000, 10000)
PRECISIONS = ("f32", "tf32")
PEERS = ("torch.compile", "torch", "torchattacks", "foolbox")
MNIST, CIFAR = ["--dataset", "mnist-test"], []
# In order of worth. The networks of CIFAR-10 are as they are initialised, on both sides: what is computed is the same.
ROWS = {
    "X": dict(attack="pgd", steps=40, images=10000, data=MNIST, classifier="model_x"),
    "AdvAE+X": dict(attack="pgd", steps=40, images=10000, data=MNIST, classifier="model_x", purifier="advae"),
    "ResNet29": dict(attack="pgd", steps=10, images=1000, data=CIFAR, classifier="resnet29v2@init:1"),
    "U-net+ResNet29": dict(attack="pgd", steps=10, images=1000, data=CIFAR, classifier="resnet29v2@init:1", purifier="advae_cifar10@init:1"),
    "cw-X": dict(attack="cw", steps=1000, images=1000, data=MNIST, classifier="model_x"),
}
HEAD = ("what", "precision", "peer", "peer, s", "compiling, s", "advae, s", "ratio", "advae's whole process, s")


def mnist(data_dir):
    """The 10,000 test images, those of the host's `mnist-test`."""
    arrays = []
    for name, head in (("t10k-images-idx3-ubyte", 16), ("t10k-labels-idx1-ubyte", 8)):
        places = [Path(data_dir or ".") / sub / (name + end) for sub in ("mnist", "") for end in (".gz", "")]
        (file, *_) = [*filter(Path.is_file, places), None]
        if file is None:
            raise SystemExit(f"no '{places[0]}': give --data-dir DIR")
        content = file.read_bytes()
        arrays.append(np.frombuffer(gzip.decompress(content) if file.suffix == ".gz" else content, np.uint8)[head:])
    return dict(x=arrays[0].reshape(-1, 1, 28, 28).astype(np.float32) / 255, y=arrays[1].astype(np.int64))


def title(name, options):
    cell = ROWS[name]
    images = f"{min(cell['images'], options.images):,} images"
    if cell["attack"] == "cw":
        return f"CW, {name.removeprefix('cw-')}, {images}, {cell['steps']:,} iterations"
    return f"PGD-{cell['steps']}, {name}, {images}"


# ---- PyTorch's side: a process that answers a line with a line.


HOLDS = threading.local()


@contextlib.contextmanager
def alone(lock):
    """The GPU for this process. A thread that holds the lock may ask again."""
    if getattr(HOLDS, "file", None):
        yield
        return
    with open(lock, "w") as HOLDS.file:
        try:
            fcntl.flock(HOLDS.file, fcntl.LOCK_EX)
            yield
        finally:
            HOLDS.file = None


class Torch:
    """One network, as a peer of the house attacks it."""

    def __init__(self, name, precision, options, compiling=False):
        import peer
        import torch

        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # cuDNN's search for the fastest algorithms takes seconds: it is made for the chosen size alone.
        torch.backends.cudnn.benchmark = False
        self.torch, self.peer, self.cell = torch, peer, ROWS[name]
        self.device, self.count = options.device, min(self.cell["images"], options.images)
        file = options.mnist if self.cell["data"] == MNIST else options.cifar
        self.x, self.y = peer.images(file, self.count, self.device)
        self.budget = peer.BUDGETS[self.x.shape[1]]
        self.model = peer.network(name.removeprefix("cw-")).requires_grad_(False).to(self.device)
        # A compiler chooses the layout itself.
        self.batch, self.layout = self.best([torch.contiguous_format, *([] if compiling else [torch.channels_last])])
        torch.backends.cudnn.benchmark = True

    def step(self, x_adv, x, y):
        """One step of PGD, to be run as it is."""
        loss = self.torch.nn.functional.cross_entropy(self.model(x_adv.requires_grad_()), y, reduction="sum")
        (gradient,) = self.torch.autograd.grad(loss, x_adv)
        return self.move(x_adv.detach(), gradient, x)

    def whole_step(self, x_adv, x, y):
        """The same in a form that is compiled as one graph, the backward pass included."""
        loss = lambda moved: self.torch.nn.functional.cross_entropy(self.model(moved), y, reduction="sum")
        return self.move(x_adv, self.torch.func.grad(loss)(x_adv), x)

    def move(self, x_adv, gradient, x):
        epsilon, size = self.budget
        return (x + (x_adv + size * gradient.sign() - x).clamp(-epsilon, epsilon)).clamp(0, 1)

    def loop(self, step, keep=lambda x_adv: x_adv):
        def attack(x, y, steps):
            epsilon = self.budget[0]
            x_adv = (x + self.torch.empty_like(x).uniform_(-epsilon, epsilon)).clamp(0, 1)
            for _ in range(steps):
                x_adv = keep(step(x_adv, x, y))
            return x_adv

        return attack

    def compiled(self):
        """PGD by a compiled step. A graph's output lies in memory that its next run uses."""
        step = self.torch.compile(self.whole_step, mode="max-autotune", dynamic=False)

        def next_step(*tensors):
            self.torch.compiler.cudagraph_mark_step_begin()
            return step(*tensors)

        return self.loop(next_step, lambda x_adv: x_adv.clone())

    def of_library(self, library, compile=False):
        """An attack of torchattacks or foolbox. CW is foolbox's: see compare.py for the reason."""
        model = self.torch.compile(self.model, mode="max-autotune", dynamic=False) if compile else self.model
        if self.cell["attack"] == "cw":
            return lambda x, y, steps: self.peer.cw(library, model, steps)(x, y)
        return lambda x, y, steps: self.peer.pgd(library, model, steps, self.budget)(x, y)

    def over(self, attack, steps, batch=None, layout=None):
        """Seconds for all images."""
        batch, layout = batch or self.batch, layout or self.layout
        start = time.perf_counter()
        for i in range(0, self.count, batch):
            attack(self.x[i : i + batch].contiguous(memory_format=layout), self.y[i : i + batch], steps)
        if self.x.is_cuda:
            self.torch.cuda.synchronize()
        return time.perf_counter() - start

    def best(self, layouts):
        """The batch size and the layout that two steps are fastest with."""
        times, attack = {}, self.loop(self.step)
        for layout in layouts:
            self.model = self.model.to(memory_format=layout)
            for batch in sorted({min(batch, self.count) for batch in BATCHES}):
                try:
                    self.over(attack, 2, batch, layout)
                    times[batch, layout] = self.over(attack, 2, batch, layout)
                except self.torch.OutOfMemoryError:
                    self.torch.cuda.empty_cache()
        batch, layout = min(times, key=times.get)
        self.model = self.model.to(memory_format=layout)
        return batch, layout

    def times(self, attack, rounds, seconds):
        """Of one round or more, until the time is over."""
        self.over(attack, 2)
        times, start = [], time.perf_counter()
        while not times or len(times) < rounds and time.perf_counter() - start < seconds:
            times.append(self.over(attack, self.cell["steps"]))
        if self.x.is_cuda:
            self.torch.cuda.empty_cache()
        layout = "channels_last" if self.layout == self.torch.channels_last else "contiguous"
        return dict(seconds=statistics.median(times), times=times, batch=self.batch, layout=layout)


def on_device(options):
    """What the first use of a device takes."""
    import peer  # noqa: F401
    import torch

    if options.device != "cpu":
        torch.zeros(1, device=options.device)


def eager_worker(options):
    """Answers `ROW PRECISION WHO` with its times, WHO one of PyTorch eager and the libraries."""
    on_device(options)
    say(ready=True, start=time.perf_counter() - BEGUN)
    here, subject = None, None
    for line in sys.stdin:
        name, precision, who = line.split()
        try:
            if here != (name, precision):
                subject = None
                subject = Torch(name, precision, options)
                here = name, precision
            attack = subject.loop(subject.step) if who == "torch" else subject.of_library(who)
            say(**subject.times(attack, options.rounds, options.seconds))
        except Exception as error:
            say(failed=f"{type(error).__name__}: {error}".splitlines()[0])


def compiling_worker(name, precision, options):
    """Compiles one network's attack, then times it on request."""
    on_device(options)
    with alone(options.lock):
        subject = Torch(name, precision, options, compiling=True)
    one_at_a_time(options.lock)
    start = time.perf_counter()
    try:
        attack = subject.of_library("foolbox", compile=True) if ROWS[name]["attack"] == "cw" else subject.compiled()
        # Twice, for graphs are recorded after a first run.
        for _ in range(2):
            subject.over(attack, 2)
    except Exception as error:
        traceback.print_exc()
        say(failed=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    say(ready=True, compiling=time.perf_counter() - start)
    for _ in sys.stdin:
        say(**subject.times(attack, options.rounds, options.seconds))


def one_at_a_time(lock):
    """Inductor tries its kernels out while no other process uses the GPU."""
    try:
        from torch._inductor.runtime.benchmarking import benchmarker

        inner = benchmarker.benchmark_gpu
    except (ImportError, AttributeError):
        return

    def benchmark_gpu(*args, **more):
        with alone(lock):
            return inner(*args, **more)

    benchmarker.benchmark_gpu = benchmark_gpu


def say(**what):
    print(json.dumps(what), flush=True)


# ---- The side that measures.


class Worker:
    """A process of this file, asked and answered in lines of JSON."""

    def __init__(self, options, *words):
        command = [sys.executable, str(HERE / "gpu.py"), "--device", options.device]
        for key in ("images", "rounds", "seconds", "mnist", "cifar", "lock"):
            command += [f"--{key}", str(getattr(options, key))]
        command += ["--worker", *words]
        env = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
        self.log = open(options.folder / f"{'-'.join(words)}.log", "w")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.lines.put(json.loads(line))
        self.lines.put(dict(failed="the process ended"))

    def answer(self, seconds):
        """If none came in time, the process is ended."""
        try:
            answer = self.lines.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            self.end()
            return dict(failed=f"not done after {seconds:.0f} s")
        return answer | ({"log": Path(self.log.name).read_text()[-600:]} if "failed" in answer else {})

    def ask(self, line, seconds):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError:
            return dict(failed="the process ended")
        return self.answer(seconds)

    def end(self):
        self.process.kill()
        self.process.wait()


class Host:
    def __init__(self, options):
        self.options = options

    def run(self, seconds, name, *more):
        cell, options = ROWS[name], self.options
        command = [
            options.host, "eval", "--classifier", cell["classifier"], "--purifier", cell.get("purifier", "none"), *cell["data"],
            *(["--data-dir", options.data_dir] if options.data_dir else []), "--threat-model", "white_box",
            "--samples", min(cell["images"], options.images), "--device", options.device, "--no-early-stop", *more,
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds)
        if done.returncode != 0:
            raise RuntimeError(f"ended with {done.returncode}: {done.stderr.strip()}")
        return time.perf_counter() - start

    def images(self, name):
        """The images of the row, in a file for the peers."""
        folder = Path(tempfile.mkdtemp(dir=self.options.folder))
        self.run(60, name, "--attack", "fgsm", "--save-adversarial", folder)
        (file,) = folder.glob("*.npz")
        return file

    def times(self, name, precision, seconds):
        cell = ROWS[name]
        if cell["attack"] == "cw":
            attack = "cw:preset=paper,abort=false"
            warm = f"{attack},iterations=2"
        else:
            size = ",step_size=1/255" if cell["data"] == CIFAR else ""
            attack = f"pgd:steps={cell['steps']},early_stop=false{size}"
            warm = f"pgd:steps=2,early_stop=false{size}"
        out = Path(tempfile.mkdtemp(dir=self.options.folder)) / "results.jsonl"
        more = ["--precision", precision] if self.options.pass_precision else []
        whole = self.run(seconds, name, "--attack", warm, "--attack", attack, "--out", out, *more)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        at = {line["key"]: 0.0 for line in lines if line["type"] == "cell"}
        for line in lines:
            if line["type"] == "sample":
                at[line["cell"]] = max(at[line["cell"]], line["at"])
        cold, warm = at.values()
        return dict(seconds=warm, first=cold, whole=whole)


def measure(names, options, keep):
    """One record a measurement, in order of worth; `keep` is called with each."""
    end = time.monotonic() + options.limit
    left = lambda: end - time.monotonic()
    host = Host(options)
    pairs = [(name, precision) for precision in options.precisions for name in names]
    compiled = {pair: Worker(options, *pair) for pair in pairs} if not options.no_compile else {}
    eager = Worker(options, "eager")
    until = time.monotonic() + min(options.compile_limit, options.limit / 2)
    for (name, precision), worker in list(compiled.items()):
        answer = worker.answer(until - time.monotonic())
        if "ready" in answer:
            worker.compiling = answer["compiling"]
        else:
            keep(name, precision, "torch.compile", answer)
            del compiled[name, precision]
    keep("-", "-", "PyTorch's start", eager.answer(60))
    for name, precision in pairs:
        libraries = ["foolbox"] if ROWS[name]["attack"] == "cw" else ["torch", "torchattacks", "foolbox"]
        for who in [who for who in ["advae", "torch.compile", *libraries] if who == "advae" or who in options.peers]:
            if left() < 2:
                keep(name, precision, who, dict(failed="no time was left"))
                continue
            seconds = min(options.row_limit, left())
            if who == "advae":
                if precision != "f32" and not options.pass_precision:
                    continue
                try:
                    answer = host.times(name, precision, seconds)
                except subprocess.TimeoutExpired:
                    answer = dict(failed=f"not done after {seconds:.0f} s")
                except (RuntimeError, OSError, ValueError) as error:
                    answer = dict(failed=str(error))
            elif who == "torch.compile":
                if (name, precision) not in compiled:
                    continue
                worker = compiled[name, precision]
                answer = worker.ask("", seconds) | dict(compiling=worker.compiling)
                worker.end()
            else:
                if eager.process.poll() is not None:
                    eager = Worker(options, "eager")
                    eager.answer(seconds)
                answer = eager.ask(f"{name} {precision} {who}", seconds)
            keep(name, precision, who, answer)
    eager.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all, if none is named")
    parser.add_argument("--host", default=str(ROOT / "target/release/advae-host"), help="the host's binary")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--data-dir", default=os.environ.get("ADVAE_DATA_DIR"), help="folder with MNIST's test images")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--pass-precision", action="store_true", help="give the host `--precision`; without it, it is timed in f32 alone")
    parser.add_argument("--images", type=int, default=10000, help="at most so many in a row")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a peer, of which the median counts")
    parser.add_argument("--seconds", type=float, default=3, help="no further round of a peer after this time")
    parser.add_argument("--limit", type=float, default=180, help="seconds for everything")
    parser.add_argument("--row-limit", type=float, default=30, help="seconds for one measurement")
    parser.add_argument("--compile-limit", type=float, default=80, help="seconds for compiling")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="beside which it is timed")
    parser.add_argument("--out", type=Path, default=ROOT / "target/gpu.jsonl", help="file of the rows, written as they come")
    parser.add_argument("--publish", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    for name in ("--mnist", "--cifar", "--lock"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        warnings.filterwarnings("ignore")
        return eager_worker(options) if options.worker == ["eager"] else compiling_worker(*options.worker, options)
    names = options.rows or list(ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}")
    if not Path(options.host).is_file():
        raise SystemExit(f"no '{options.host}': run `cargo build --release`, or give --host PATH")
    records = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open(options.out, "w") as out:
        options.folder, options.lock = Path(folder), Path(folder) / "lock"

        def keep(name, precision, who, answer):
            records.append(dict(row=name, precision=precision, who=who, **answer))
            print(json.dumps(records[-1]), file=out, flush=True)
            print(*(f"{key}={value}" for key, value in records[-1].items() if key != "times"), flush=True)

        options.mnist, options.cifar = options.folder / "mnist.npz", "none"
        np.savez(options.mnist, **mnist(options.data_dir))
        if {"ResNet29", "U-net+ResNet29"} & set(names):
            try:
                options.cifar = Host(options).images("ResNet29")
            except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                keep("ResNet29", "-", "advae", dict(failed=str(error)))
                names = [name for name in names if ROWS[name]["data"] != CIFAR]
        measure(names, options, keep)
    lines = list(table(records, options))
    print("\n".join(row(line) for line in [HEAD, ["---"] * len(HEAD), *lines]))
    if options.publish:
        publish("benches/peers/gpu.py", HEAD, lines, keep=3)


def table(records, options):
    """A line for each peer that was timed."""
    ours = {(record["row"], record["precision"]): record for record in records if record["who"] == "advae"}
    show = lambda record, key: f"{record[key]:.3f}" if key in record else "-"
    for record in records:
        if record["who"] == "advae" or record["row"] not in ROWS or "seconds" not in record:
            continue
        us = ours.get((record["row"], record["precision"]), {})
        ratio = f"{record['seconds'] / us['seconds']:.2f}" if "seconds" in us else "-"
        who = {"torch": "PyTorch", "torch.compile": "PyTorch, compiled"}.get(record["who"], record["who"])
        if record["who"] == "torch.compile" and ROWS[record["row"]]["attack"] == "cw":
            who = "foolbox, compiled"
        seconds = f"{show(record, 'seconds')} (batch {record['batch']:,})"
        compiling = f"{record['compiling']:.0f}" if "compiling" in record else ""
        yield (title(record["row"], options), record["precision"], who, seconds, compiling, show(us, "seconds"), ratio, show(us, "whole"))


if __name__ == "__main__":
    main()
