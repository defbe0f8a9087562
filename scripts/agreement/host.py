"""Runs advae-host and reads what it writes."""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import reference
import torch


@dataclass
class Cell:
    """One attack on one pipeline, sample by sample. `x` is what the host attacked, `x_adv` what it scored."""

    x: torch.Tensor
    x_adv: torch.Tensor
    y: torch.Tensor
    clean_prediction: torch.Tensor
    adversarial_prediction: torch.Tensor
    found: torch.Tensor
    logits_clean: torch.Tensor
    logits_adv: torch.Tensor

    @property
    def robust(self):
        return self.adversarial_prediction == self.y

    @property
    def l2(self):
        return self.distances("l2")

    def distances(self, norm):
        return reference.distances(self.x_adv - self.x, norm)


class Host:
    """The host's binary. Plugins are those beside it."""

    def __init__(self, binary, keep=None):
        if not Path(binary).is_file():
            raise SystemExit(f"no '{binary}': run `cargo build --release`, or give --host PATH")
        self.binary, self.keep = Path(binary).resolve(), keep

    def run(self, *words):
        command = [str(word) for word in (self.binary, *words)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr.strip()}")

    def eval(self, attack, classifier, purifier=None, samples=1000, epsilon=None, early_stop=False):
        """White-box, every step of every sample unless it may stop early."""
        folder = Path(tempfile.mkdtemp(prefix="advae-agreement-", dir=self.keep))
        out = folder / "results.jsonl"
        command = ["eval", "--classifier", classifier, "--attack", attack, "--threat-model", "white_box"]
        command += ["--samples", samples, "--save-adversarial", folder, "--out", out]
        command += [] if early_stop else ["--no-early-stop"]
        command += ["--purifier", purifier] if purifier else []
        command += ["--epsilon", epsilon] if epsilon is not None else []
        self.run(*command)
        (images,) = folder.glob("*.npz")
        self.run("score", images, "--classifier", classifier, "--purifier", purifier or "none", "--logits", folder / "logits")
        return read(images, folder / "logits" / f"{images.stem}.logits.npz", out)


def read(images, logits, results):
    """A cell from its npz files and its JSON lines."""
    lines = [json.loads(line) for line in Path(results).read_text().splitlines()]
    rows = {line["id"]: line for line in lines if line["type"] == "sample"}
    with np.load(images) as file, np.load(logits) as logits:
        rows = [rows[int(id)] for id in file["ids"]]
        refused = [row["refused"] for row in rows if row.get("refused")]
        if refused:
            raise SystemExit(f"{images}: {len(refused)} images were refused, such as: {refused[0]}")
        tensor = lambda name: torch.from_numpy((logits if name.startswith("logits") else file)[name])
        column = lambda name: torch.tensor([row.get(name, True) for row in rows])
        return Cell(
            x=tensor("x"),
            x_adv=tensor("x_adv"),
            y=tensor("y"),
            clean_prediction=column("clean_prediction"),
            adversarial_prediction=column("adversarial_prediction"),
            found=column("found"),
            logits_clean=tensor("logits_clean"),
            logits_adv=tensor("logits_adv"),
        )
