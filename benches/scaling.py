"""How time and memory of `eval` grow with samples, iterations and the size of the network.

    python scaling.py --data-dir DIR          every row, into docs/performance.md; DIR holds MNIST
    python scaling.py iterations networks     some tables, printed only
    python scaling.py --help

Needs Python alone. Times are those the host reports for the cell: loading and scoring are not in them. Memory is the
largest resident set of the whole process.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from page import ROOT, publish, row

SCRIPT = "benches/scaling.py"
# Convolutions as (channels in, channels out, kernel, outputs a side), fully connected layers as (inputs, outputs).
LAYERS = {
    "AdvAE": [(1, 32, 3, 28), (32, 32, 3, 14), (32, 32, 3, 7), (32, 32, 3, 14), (32, 1, 3, 28)],
    "X": [(1, 32, 3, 26), (32, 32, 3, 24), (32, 64, 3, 10), (64, 64, 3, 8), (1024, 200), (200, 200), (200, 10)],
    "A": [(1, 64, 5, 28), (64, 64, 5, 12), (9216, 128), (128, 10)],
    "B": [(1, 64, 8, 14), (64, 128, 6, 5), (128, 128, 5, 1), (128, 10)],
    "C": [(1, 128, 3, 28), (128, 64, 3, 13), (10816, 128), (128, 10)],
    "D": [(784, 200), (200, 200), (200, 10)],
}


CELLS = {
    "D": ("model_d", "none"),
    "B": ("model_b", "none"),
    "A": ("model_a", "none"),
    "C": ("model_c", "none"),
    "X": ("model_x", "none"),
    "AdvAE+X": ("model_x", "advae"),
}


def multiplications(name):
    """Multiply-adds of one image's way forward."""
    macs = lambda i, o, k=1, side=1: i * o * k * k * side * side
    return sum(macs(*layer) for layer in LAYERS[name])


class Host:
    def __init__(self, binary, threads):
        if not Path(binary).is_file():
            raise SystemExit(f"no '{binary}': run `cargo build --release`, or give --host PATH")
        self.binary, self.threads = binary, threads

    def eval(self, cell, attack, samples, *more):
        """Seconds of the cell, as the host shares them between samples; MiB of the process."""
        classifier, purifier = CELLS[cell]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "results.jsonl"
            command = [
                self.binary, "eval", "--classifier", classifier, "--purifier", purifier, "--attack", attack,
                "--threat-model", "white_box", "--samples", samples, "--threads", self.threads, "--no-early-stop",
                "--out", out, *more,
            ]  # fmt: skip
            command = [str(word) for word in command]
            with tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
                _, status, used = os.wait4(process.pid, 0)
                if os.waitstatus_to_exitcode(status) != 0:
                    errors.seek(0)
                    raise SystemExit(f"{' '.join(command)}\nfailed: {errors.read().strip()}")
            lines = map(json.loads, out.read_text().splitlines())
            # Wall-clock time of the only cell.
            seconds = max(line["at"] for line in lines if line["type"] == "sample")
            return seconds, used.ru_maxrss / 1024

    def median(self, *request):
        """Seconds, the median of three runs."""
        return statistics.median(self.eval(*request)[0] for _ in range(3))


def samples(host, _):
    """PGD-40 on more and more images."""
    for count in (125, 250, 500, 1000):
        seconds = host.median("AdvAE+X", "pgd", count)
        yield f"{count:,} images", f"{seconds:.2f}", f"{1e3 * seconds / count:.2f} ms an image"


def iterations(host, _):
    """More and more steps on 250 images."""
    for attack, counts in [("pgd:steps", (10, 20, 40, 80)), ("cw:abort=false,iterations", (50, 100, 200, 400))]:
        for count in counts:
            seconds = host.median("AdvAE+X", f"{attack}={count}", 250)
            name = f"{attack.split(':')[0]}, {count} iterations"
            yield name, f"{seconds:.2f}", f"{1e3 * seconds / count:.2f} ms an iteration"


def networks(host, _):
    """PGD-40 on 500 images, by the multiply-adds of the network's way forward."""
    for cell in CELLS:
        seconds = host.median(cell, "pgd", 500)
        macs = sum(map(multiplications, cell.split("+")))
        # Forward and input gradient: twice; a multiplication and an addition are two operations.
        rate = 4 * macs * 500 * 40 / seconds / host.threads / 1e9
        yield f"{cell}: {macs / 1e6:.2f} million MACs", f"{seconds:.2f}", f"{rate:.0f} GFLOPS a thread"


def memory(host, data_dir):
    """Largest resident set, in MiB, of PGD-2."""
    if data_dir is None:
        raise SystemExit("the rows `memory` take 10,000 images: give --data-dir DIR with MNIST")
    for count, batch in [(1000, 24), (10_000, 24), (1000, 96), (10_000, 96)]:
        more = ["--dataset", "mnist-test", "--data-dir", data_dir, "--batch", batch]
        _, size = host.eval("AdvAE+X", "pgd:steps=2", count, *more)
        yield f"{count:,} images, micro-batches of {batch}", "", f"{size:.0f} MiB"


TABLES = {table.__name__: table for table in (samples, iterations, networks, memory)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}; all, if none is named")
    parser.add_argument("--host", default=str(ROOT / "target/release/advae-host"), help="the host's binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", default=os.environ.get("ADVAE_DATA_DIR"), help="MNIST, for the table `memory`")
    options = parser.parse_args()
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}")
    host = Host(options.host, options.threads)
    lines = []
    for name in options.tables or TABLES:
        for cells in TABLES[name](host, options.data_dir):
            lines.append((name, *cells))
            print(row(lines[-1]), flush=True)
    if not options.tables:
        publish(SCRIPT, ("of", "what", "s", "cost"), lines)


if __name__ == "__main__":
    main()
