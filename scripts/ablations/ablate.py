"""What changes AdvAE, one setting at a time: short trainings in front of X, compared on validation images.

    python ablate.py --data-dir DIR             every run, then docs/results/ablations.md
    python ablate.py --data-dir DIR --only NAME some runs only
    python ablate.py --help

Needs Python alone. Runs that are finished are kept, an interrupted one goes on.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "classifier": "model_x.so@clean",
    "purifier": "advae.so",
    "attack": "pgd:steps=5,relative_step_size=0.3333,early_stop=false",
    "validation_attack": "pgd:steps=40,early_stop=false",
    "epsilon": 0.3,
    "epsilon_ramp_steps": 1200,
    "clean_weight": 0.5,
    "samples": 12800,
    "validation_samples": 1000,
    "batch_size": 32,
    "epochs": 6,
    "learning_rate": 1e-3,
    "final_learning_rate": 1e-4,
    "seed": 1,
}
VARIANTS = {
    "base": ("lambda 0, 32 channels, crafting by running statistics", {}),
    "base-2": ("the same, another seed", {"seed": 2}),
    "base-3": ("the same, a third seed", {"seed": 3}),
    "lambda-1": ("lambda 1", {"lambda": 1.0}),
    "lambda-10": ("lambda 10", {"lambda": 10.0}),
    "channels-8": ("8 channels", {"purifier": "advae.so:channels=8"}),
    "channels-16": ("16 channels", {"purifier": "advae.so:channels=16"}),
    "batch": ("crafting by the batch's statistics (train mode)", {"statistics": "batch"}),
}
LAST = 3  # epochs whose accuracies are averaged


def train(host, data, out, recipe):
    """The lines of the run's log, after training what is missing."""
    out.mkdir(parents=True, exist_ok=True)
    config = out / "config.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.items()))
    path = out / "run/log.jsonl"
    log = lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if len(log()) < recipe["epochs"]:
        command = [host, "train", "--config", config, "--data-dir", data, "--out", out / "run"]
        resume = ["--resume"] * (out / "run/checkpoint.json").is_file()
        done = subprocess.run([str(word) for word in command] + resume)
        if done.returncode != 0:
            raise SystemExit(f"training '{out.name}' failed with exit code {done.returncode}; its message is above")
    return log()


def page(results, command):
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    percent = lambda key, lines: 100 * statistics.mean(line[key] for line in lines)
    rows = []
    for name, lines in results.items():
        last = lines[-LAST:]
        rows.append(
            f"| `{name}` | {VARIANTS[name][0]} | {percent('clean_accuracy', last):.1f} | {percent('robust_accuracy', last):.1f} |"
        )
    steps = BASE["samples"] // BASE["batch_size"] * BASE["epochs"]
    return "\n".join(
        [
            "# Ablations of AdvAE, small",
            "",
            f"Each run makes {steps:,} steps with batches of {BASE['batch_size']} images, on {BASE['samples']:,} training images, in front of X,"
            f" with PGD-5. The table gives clean and PGD-40 accuracy in percent, on {BASE['validation_samples']:,} validation images. Each"
            f" figure is the mean of the last {LAST} epochs. The runs are short. So the figures rank the settings, but they are not the figures"
            " of a full training. The three seeds of `base` show how large random differences are.",
            "",
            f"`{command}`, {datetime.date.today()}, commit {commit.stdout.strip()}, {os.cpu_count()} threads.",
            "",
            "| run | what differs | clean | PGD-40 |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/advae-host", help="the binary to measure")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/ablations", help="where the trainings go")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="a run; may be repeated")
    args = parser.parse_args()
    if not args.host.is_file():
        raise SystemExit(f"no '{args.host}': run `cargo build --release`, or give --host PATH")
    results = {}
    for name in args.only or VARIANTS:
        recipe = BASE | VARIANTS[name][1]
        results[name] = train(args.host, args.data_dir, args.runs / name, recipe)
    text = page(results, "python scripts/ablations/ablate.py --data-dir DIR")
    print(text)
    if not args.only:
        path = ROOT / "docs/results/ablations.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
