"""Calls of the program ``advae-host`` on models of this process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, TypeVar, Union

from ._worker import Served

Number = Union[float, str]
PerChannel = Union[float, Sequence[float]]
Model = TypeVar("Model")


class AdvaeError(RuntimeError):
    """``advae-host`` refused a call, or cannot be found."""


@dataclass(frozen=True)
class Interval:
    """A share between 0 and 1 with its 95 % confidence interval (Wilson)."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Cell:
    """One attack, on one classifier behind one purifier or none, under one threat model."""

    classifier: str
    purifier: Optional[str]
    threat_model: str
    attack: str
    norm: Optional[str]
    epsilon: Optional[float]
    samples: int
    clean_accuracy: Optional[Interval]
    robust_accuracy: Optional[Interval]
    failed: Optional[str]
    """Why it has no figures; ``None`` where it has."""
    record: Mapping[str, Any]
    """All that the host says of it, as ``advae-host report --format json`` prints it."""


@dataclass(frozen=True)
class Result:
    """What an evaluation found. ``print`` it for the table that the host prints."""

    cells: List[Cell]
    worst_cases: List[Mapping[str, Any]]
    """For each pipeline and budget: the share of samples that no attack broke."""
    warnings: List[str]
    table: str

    @property
    def clean_accuracy(self) -> Interval:
        """Accuracy on the images as they are, of the first cell that has one."""
        for cell in self.cells:
            if cell.clean_accuracy is not None:
                return cell.clean_accuracy
        raise AdvaeError(f"no cell has figures: {[cell.failed for cell in self.cells]}")

    @property
    def robust_accuracy(self) -> Interval:
        """The lowest share of samples that stood against every attack, over pipelines and budgets.

        Attacks that minimise a distance have no budget and do not take part, but where there is nothing else.
        """
        worst = [_interval(case["robust_accuracy"]) for case in self.worst_cases]
        found = [interval for interval in worst if interval is not None]
        if not found:
            found = [cell.robust_accuracy for cell in self.cells if cell.robust_accuracy is not None]
        if not found:
            raise AdvaeError(f"no cell has figures: {[cell.failed for cell in self.cells]}")
        return min(found, key=float)

    def __str__(self) -> str:
        return self.table


def _interval(found: Optional[Mapping[str, float]]) -> Optional[Interval]:
    return None if found is None else Interval(found["value"], found["low"], found["high"])


def _mark(kind: str, shape: Optional[Sequence[int]], more: Dict[str, Any]) -> Callable[[Model], Model]:
    declared = {"kind": kind, "shape": list(shape) if shape is not None else None}
    declared.update({key: value for key, value in more.items() if value is not None})

    def mark(model: Model) -> Model:
        setattr(model, "__advae__", declared)
        if kind == "classifier" and isinstance(model, type):
            setattr(model, "evaluate", evaluate)
        return model

    return mark


def _listed(numbers: Optional[PerChannel]) -> Optional[Union[float, List[float]]]:
    if numbers is None or isinstance(numbers, (int, float)):
        return numbers
    return [float(v) for v in numbers]


def classifier(
    shape: Optional[Sequence[int]] = None,
    mean: Optional[PerChannel] = None,
    std: Optional[PerChannel] = None,
    random: bool = False,
) -> Callable[[Model], Model]:
    """Marks a class, or a function of tensors, as a classifier.

    ``shape`` is that of an image, (channels, rows, columns); ``mean`` and ``std`` are the normalisation that it was trained with, one
    number or one a channel: attacks see pixels in [0, 1]; ``random`` says that its output is random. Instances of the class get the
    method ``evaluate``, which is :func:`evaluate`. The plugin ``python:file=...`` goes by the same marks.
    """
    return _mark("classifier", shape, {"mean": _listed(mean), "std": _listed(std), "random": random or None})


def purifier(
    shape: Optional[Sequence[int]] = None,
    mean: Optional[PerChannel] = None,
    std: Optional[PerChannel] = None,
    random: bool = False,
) -> Callable[[Model], Model]:
    """Marks a class, or a function of tensors, as a purifier; arguments as for :func:`classifier`."""
    return _mark("purifier", shape, {"mean": _listed(mean), "std": _listed(std), "random": random or None})


@contextlib.contextmanager
def serve(path: Union[str, Path], **models: Any) -> Iterator[None]:
    """Serves models of this process on a Unix socket at ``path``, as long as the ``with`` block runs.

    Each model has a name: ``serve("m.sock", net=net)`` is used as ``python:socket=m.sock,class=net``. Modules are put into eval mode
    and back again.
    """
    lock = threading.Lock()
    training = [(m, m.training) for m in models.values() if isinstance(getattr(m, "training", None), bool)]

    def find(request: Mapping[str, Any]) -> Any:
        wanted = request["class"] or request["kind"]
        if wanted not in models:
            raise KeyError(f"no model '{wanted}' is served here: expected one of {', '.join(models)}")
        return models[wanted]

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            Served(find, lock, guest=True).loop(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield
    finally:
        # Wakes the thread that waits in accept, which closing alone does not.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
        for module, was in training:
            module.train(was)


def _program(host: Optional[Union[str, Path]]) -> str:
    wanted = str(host or os.environ.get("ADVAE_HOST") or "advae-host")
    found = shutil.which(wanted)
    if found is None:
        raise AdvaeError(f"no program '{wanted}': give host=PATH, set $ADVAE_HOST, or add its folder to $PATH")
    return found


def _call(arguments: List[str], quiet: bool) -> str:
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True)
    if done.returncode != 0:
        said = (done.stderr or "").strip()
        errors = [line for line in said.splitlines() if line.startswith("error")]
        text = errors[-1] if errors else said.splitlines()[-1] if said else f"it ended with exit code {done.returncode}"
        raise AdvaeError(text[7:] if text.startswith("error: ") else text)
    return done.stdout


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float, str)):
        return str(value)
    return "[" + ",".join(str(v) for v in value) + "]"


def _spec(place: str, name: str, settings: Mapping[str, Any]) -> str:
    given = {"socket": place, "class": name, **{key: value for key, value in settings.items() if value is not None}}
    return "python:" + ",".join(f"{key}={_setting(value)}" for key, value in given.items())


def _archive(images: Any, labels: Any, path: str) -> None:
    try:
        import numpy
    except ImportError as error:
        raise AdvaeError("images and labels need numpy: pip install numpy") from error
    arrays = [v.detach().cpu().numpy() if hasattr(v, "detach") else numpy.asarray(v) for v in (images, labels)]
    numpy.savez(path, images=arrays[0], labels=arrays[1])


def evaluate(
    model: Any,
    *,
    purifier: Any = None,
    images: Any = None,
    labels: Any = None,
    attacks: Sequence[str] = ("fgsm", "pgd"),
    threat_models: Sequence[str] = ("white_box",),
    dataset: Optional[str] = None,
    data_dir: Optional[Union[str, Path]] = None,
    samples: Optional[int] = None,
    seed: int = 0,
    epsilon: Union[None, Number, Sequence[Number]] = None,
    shape: Optional[Sequence[int]] = None,
    mean: Optional[PerChannel] = None,
    std: Optional[PerChannel] = None,
    random: Optional[bool] = None,
    batch: Optional[int] = None,
    out: Optional[Union[str, Path]] = None,
    report: Optional[Union[str, Path]] = None,
    options: Sequence[str] = (),
    host: Optional[Union[str, Path]] = None,
    quiet: bool = True,
) -> Result:
    """Attacks a classifier, behind a purifier or alone, and measures what is left.

    ``model`` and ``purifier`` are ``torch.nn.Module`` objects, objects with ``forward(x)`` of numpy arrays (and ``vjp(x, cotangent)``
    for attacks that need a gradient), or names of plugins as the command line takes them (``"onnx:model=net.onnx"``). Models stay in
    this process; pixels are in [0, 1], outputs are logits.

    ``images`` (N, C, H, W; uint8, or float in [0, 1]) and ``labels`` are data of your own; else ``dataset`` names some, with
    ``data_dir`` where it is not embedded. ``attacks`` and ``threat_models`` are those of ``advae-host plugins``, with settings:
    ``"pgd:steps=100,restarts=5"``. ``epsilon`` is a budget or several, as ``0.3``, ``"8/255"`` or ``"l2=0.5"``.
    ``shape``, ``mean``, ``std``, ``random`` and ``batch`` are the settings of the plugin ``python`` for ``model``; what a purifier
    needs of them is declared by :func:`purifier`. ``out`` and ``report`` keep the results (JSON lines) and the page (HTML);
    ``options`` are further options of ``advae-host eval``.

    Raises :class:`AdvaeError` with the host's own message where it refuses.
    """
    program = _program(host)
    if (images is None) != (labels is None):
        raise AdvaeError("images and labels belong together: give both or none")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="advae-"))
        place = os.path.join(folder, "models")
        served: Dict[str, Any] = {}

        def named(given: Any, name: str, settings: Mapping[str, Any]) -> str:
            if isinstance(given, str):
                return given
            served[name] = given
            return _spec(place, name, settings)

        own = {"shape": shape, "mean": _listed(mean), "std": _listed(std), "random": random, "batch": batch}
        results = str(out) if out is not None else os.path.join(folder, "results.jsonl")
        arguments = ["--classifier", named(model, "classifier", own)]
        if purifier is not None:
            arguments += ["--purifier", named(purifier, "purifier", {})]
        for option, values in (("--attack", attacks), ("--threat-model", threat_models)):
            if isinstance(values, str):
                values = [values]
            arguments += [text for value in values for text in (option, value)]
        budgets = [] if epsilon is None else [epsilon] if isinstance(epsilon, (int, float, str)) else list(epsilon)
        arguments += [text for budget in budgets for text in ("--epsilon", str(budget))]
        if images is not None:
            dataset = os.path.join(folder, "images.npz")
            _archive(images, labels, dataset)
            if samples is None:
                samples = len(labels)
        for option, given in (("--dataset", dataset), ("--data-dir", data_dir), ("--samples", samples), ("--report", report)):
            arguments += [] if given is None else [option, str(given)]
        arguments += ["--seed", str(seed), "--out", results, *options]
        if served:
            stack.enter_context(serve(place, **served))
        _call([program, "eval", *arguments], quiet)
        found = json.loads(_call([program, "report", results, "--format", "json"], True))
        return _result(found, _call([program, "report", results], True))


def _result(found: Mapping[str, Any], table: str) -> Result:
    cells = [
        Cell(
            classifier=cell["classifier"],
            purifier=None if cell["purifier"] == "none" else cell["purifier"],
            threat_model=cell["threat_model"],
            attack=cell["attack"],
            norm=cell["norm"],
            epsilon=cell["epsilon"],
            samples=cell["samples"],
            clean_accuracy=_interval(cell["clean_accuracy"]),
            robust_accuracy=_interval(cell["robust_accuracy"]),
            failed=cell["failed"] or cell["refusal"],
            record=cell,
        )
        for cell in found["cells"]
    ]
    return Result(cells=cells, worst_cases=found["worst_cases"], warnings=found["warnings"], table=table)
