"""Runs a model for the plugin ``python``: images in, outputs and gradients out.

The plugin starts this file as a process of its own (``python -c``), so it uses nothing but the standard library, numpy where the
model takes arrays, and PyTorch where the model's own file has imported it. ``advae.serve`` runs the same loop on a thread of the
user's process.

Requests and replies are lines of JSON on a socket. Tensors are raw float32 in a file in memory that both sides know.
"""

from __future__ import annotations

import inspect
import json
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

PROTOCOL = 1
ITEM = 4  # bytes of a float32


class Refused(Exception):
    """Something is wrong with the model, said in one line."""


class Memory:
    """The file that tensors are handed over in, from its beginning."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "r+b", buffering=0)
        self._map: Optional[mmap.mmap] = None

    def view(self, count: int) -> memoryview:
        """The first ``count`` float32 numbers, as bytes."""
        size = count * ITEM
        if os.fstat(self._file.fileno()).st_size < size:
            os.ftruncate(self._file.fileno(), size)
        if self._map is None or len(self._map) < size:
            # The old map goes when the last tensor that looks into it is gone.
            self._map = mmap.mmap(self._file.fileno(), os.fstat(self._file.fileno()).st_size)
        return memoryview(self._map)[:size]


def _count(shape: List[int]) -> int:
    count = 1
    for d in shape:
        count *= d
    return count


def _torch() -> Any:
    """PyTorch, where somebody has imported it."""
    return sys.modules.get("torch")


class TorchModel:
    """A ``torch.nn.Module``, or a function of tensors."""

    gradient = "torch"

    def __init__(self, module: Any, device: Optional[str]) -> None:
        self.torch = _torch()
        self.module = module
        is_module = isinstance(module, self.torch.nn.Module)
        if device is None:
            # It stays where it is.
            parameter = next(module.parameters(), None) if is_module else None
            device = "cpu" if parameter is None else str(parameter.device)
        elif is_module:
            try:
                module.to(device)
            except Exception as error:
                raise Refused(f"it cannot be moved to the device '{device}' ({_line(error)}): expected cpu, cuda or cuda:N") from error
        if is_module:
            module.eval()
        self.device = device

    def load(self, path: str, name: str) -> None:
        try:
            state = self.torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise Refused(f"the weights '{name}' cannot be read as a state dict: {_line(error)}") from error
        for key in ("state_dict", "model_state_dict", "model", "net"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
                break
        if not isinstance(state, dict):
            raise Refused(f"the weights '{name}' hold a {type(state).__name__}, not a state dict")
        # DataParallel puts its own name in front.
        state = {key[7:] if key.startswith("module.") else key: value for key, value in state.items()}
        try:
            self.module.load_state_dict(state)
        except Exception as error:
            raise Refused(f"the weights '{name}' do not fit: {_line(error)}") from error

    def tensor(self, view: memoryview, shape: List[int]) -> Any:
        t = self.torch.frombuffer(view, dtype=self.torch.float32).reshape(shape)
        return t.clone() if str(self.device) == "cpu" else t.to(self.device)

    def forward(self, x: Any, keep: bool, more: Dict[str, Any]) -> Any:
        with self.torch.set_grad_enabled(keep):
            x.requires_grad_(keep)
            y = self.module(x, **more)
        if not isinstance(y, self.torch.Tensor):
            raise Refused(f"it returns a {type(y).__name__}, not a tensor")
        if not y.dtype.is_floating_point:
            raise Refused(f"it returns numbers of type {y.dtype}, not floats")
        return y

    def write(self, t: Any, memory: Memory) -> List[int]:
        t = t.detach().to("cpu", self.torch.float32)
        shape = list(t.shape)
        out = self.torch.frombuffer(memory.view(_count(shape)), dtype=self.torch.float32)
        out.copy_(t.reshape(-1))
        return shape

    def backward(self, x: Any, y: Any, cotangent: Any) -> Any:
        if not y.requires_grad:
            raise Refused("its output does not depend on the images in a way that PyTorch can follow: something detached it")
        (gradient,) = self.torch.autograd.grad(y, x, cotangent.to(y.dtype), retain_graph=True, allow_unused=True)
        if gradient is None:
            raise Refused("no gradient reaches the images: something detached them")
        return gradient

    def seed(self, seed: int) -> None:
        self.torch.manual_seed(seed & (2**63 - 1))

    def threads(self, count: int) -> None:
        if count and self.torch.get_num_threads() != count:
            self.torch.set_num_threads(count)


class ArrayModel:
    """An object with ``forward(x)`` of numpy arrays, and ``vjp(x, cotangent)`` where it has a gradient."""

    def __init__(self, model: Any) -> None:
        try:
            import numpy
        except ImportError as error:
            raise Refused("it is no torch.nn.Module, and arrays need numpy: pip install numpy") from error
        self.numpy = numpy
        self.model = model
        self.gradient = "vjp" if callable(getattr(model, "vjp", None)) else "none"

    def load(self, path: str, name: str) -> None:
        load = getattr(self.model, "load", None)
        if not callable(load):
            raise Refused(f"weights '{name}' for a {type(self.model).__name__}: give it a method load(path)")
        load(path)

    def tensor(self, view: memoryview, shape: List[int]) -> Any:
        return self.numpy.frombuffer(view, dtype="<f4").reshape(shape).copy()

    def _array(self, y: Any, what: str) -> Any:
        y = self.numpy.asarray(y)
        if y.dtype.kind != "f":
            raise Refused(f"its {what} gives numbers of type {y.dtype}, not floats")
        return y

    def forward(self, x: Any, keep: bool, more: Dict[str, Any]) -> Any:
        return self._array(_callable(self.model)(x, **more), "forward")

    def write(self, t: Any, memory: Memory) -> List[int]:
        out = self.numpy.frombuffer(memory.view(t.size), dtype="<f4")
        out[:] = t.reshape(-1)
        return list(t.shape)

    def backward(self, x: Any, y: Any, cotangent: Any) -> Any:
        if self.gradient == "none":
            raise Refused("it has no gradient: give it a method vjp(x, cotangent), or attack it by square, which needs none")
        return self._array(self.model.vjp(x, cotangent), "vjp")

    def seed(self, seed: int) -> None:
        self.numpy.random.seed(seed & 0xFFFFFFFF)

    def threads(self, count: int) -> None:
        pass


def _callable(model: Any) -> Callable[..., Any]:
    forward: Callable[..., Any] = getattr(model, "forward", None) or model
    return forward


def declared(model: Any) -> Dict[str, Any]:
    """What the decorators ``advae.classifier`` and ``advae.purifier`` have noted on it."""
    return getattr(model, "__advae__", None) or {}


def adapt(model: Any, device: Optional[str]) -> Any:
    """What runs a model of the user's: on ``device``, or where it is."""
    torch = _torch()
    if torch is not None and isinstance(model, torch.nn.Module):
        return TorchModel(model, device)
    if inspect.isfunction(model):
        return TorchModel(model, device) if torch is not None else ArrayModel(model)
    if callable(getattr(model, "forward", None)):
        return ArrayModel(model)
    raise Refused(f"a {type(model).__name__} is neither a torch.nn.Module nor an object with a method forward(x)")


def _line(error: BaseException) -> str:
    """The text of an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException) -> str:
    """The innermost place in a file of the user's."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in ("<string>", __name__, _HERE)]
    mine = [f for f in own if "site-packages" not in f.filename and not f.filename.startswith(sys.prefix)]
    if not mine:
        return ""
    return f" ({os.path.basename(mine[-1].filename)}, line {mine[-1].lineno})"


_HERE = globals().get("__file__", "<string>")


def build(request: Dict[str, Any]) -> Any:
    """The object that a file of the user's names."""
    name = os.path.abspath(request["name"])
    stem = os.path.splitext(os.path.basename(name))[0]
    folder = os.path.dirname(name)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with open(request["file"], "rb") as file:
        source = file.read()
    module = types.ModuleType(stem)
    module.__file__ = name
    sys.modules[stem] = module
    try:
        exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102 - it is what the user asked for
    except SyntaxError as error:
        raise Refused(f"'{request['name']}' is no Python file that runs: {error.msg} (line {error.lineno})") from error
    except Exception as error:
        raise Refused(f"'{request['name']}' cannot be imported: {_line(error)}{_where(error)}") from error
    own = [
        key
        for key, value in vars(module).items()
        if getattr(value, "__module__", None) == stem
        and (declared(value) or (inspect.isclass(value) and callable(getattr(value, "forward", None))))
    ]
    names = ", ".join(own) or "none"
    wanted = request["class"]
    if not wanted:
        # Those that say that they are of the kind come first.
        of_kind = [key for key in own if declared(getattr(module, key)).get("kind") == request["kind"]]
        choice = of_kind or own
        if len(choice) != 1:
            raise Refused(f"'{request['name']}' has {len(choice)} classes with a method forward ({names}): choose one, class=NAME")
        wanted = choice[0]
    if not hasattr(module, wanted):
        raise Refused(f"'{request['name']}' has no '{wanted}': expected one of its classes with a method forward ({names})")
    found = getattr(module, wanted)
    if inspect.isclass(found) or (inspect.isfunction(found) and not declared(found)):
        try:
            found = found()
        except Exception as error:
            raise Refused(
                f"{wanted}() of '{request['name']}' fails: {_line(error)}{_where(error)}; expected a class or a function "
                "that needs no arguments"
            ) from error
    return found


def _siblings(request: Dict[str, Any]) -> List[str]:
    """Files in the model's folder that it imported: no hash knows them."""
    folder = os.path.dirname(os.path.abspath(request["name"]))
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    own = {os.path.relpath(file, folder) for file in files if file and file.startswith(folder + os.sep)}
    own.discard(os.path.basename(request["name"]))
    return sorted(f for f in own if "site-packages" not in f)


class Served:
    """One model behind one connection."""

    def __init__(self, find: Callable[[Dict[str, Any]], Any], lock: Any, guest: bool = False) -> None:
        self._find = find
        self._lock = lock
        # The process is the user's: its models stay where they are, and its threads as many.
        self._guest = guest
        self._memory: Any = None
        self._model: Any = None
        self._more: bool = False
        self._kept: Dict[int, Tuple[Any, Any]] = {}
        self._next = 0

    def load(self, request: Dict[str, Any]) -> Dict[str, Any]:
        if request["protocol"] != PROTOCOL:
            raise Refused(f"it speaks protocol {PROTOCOL} and the plugin {request['protocol']}: install the package of this release")
        self._memory = Memory(request["memory"])
        own = self._find(request)
        self._model = adapt(own, None if self._guest else request["device"])
        if request["weights"]:
            self._model.load(request["weights"], request["weights_name"])
        try:
            self._more = "seeds" in inspect.signature(_callable(own)).parameters
        except (TypeError, ValueError):
            self._more = False
        torch = _torch()
        return {
            "gradient": self._model.gradient,
            "declared": declared(own),
            "seeds": self._more,
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": torch.__version__ if torch is not None else None,
            "siblings": _siblings(request) if request["file"] else [],
        }

    def run(self, request: Dict[str, Any]) -> Dict[str, Any]:
        shape, keep = request["shape"], request["keep"]
        for kept in request["drop"]:
            self._kept.pop(kept, None)
        self._threads(request)
        x = self._model.tensor(self._memory.view(_count(shape)), shape)
        seeds = request["seeds"]
        if seeds:
            self._model.seed(seeds[0])
            random.seed(seeds[0])
        y = self._model.forward(x, keep, {"seeds": seeds} if self._more else {})
        reply = {"shape": self._model.write(y, self._memory)}
        if keep:
            self._next += 1
            self._kept[self._next] = (x, y)
            reply["kept"] = self._next
        return reply

    def _threads(self, request: Dict[str, Any]) -> None:
        if not self._guest:
            self._model.threads(request["threads"])

    def back(self, request: Dict[str, Any]) -> Dict[str, Any]:
        shape = request["shape"]
        x, y = self._kept[request["kept"]]
        self._threads(request)
        cotangent = self._model.tensor(self._memory.view(_count(shape)), shape)
        return {"shape": self._model.write(self._model.backward(x, y, cotangent), self._memory)}

    def answer(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """The reply to one request: what it asked for, or ``error``."""
        try:
            with self._lock:
                return {"load": self.load, "run": self.run, "back": self.back}[request["op"]](request)
        except Refused as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{_line(error)}{_where(error)}"}

    def loop(self, connection: socket.socket) -> None:
        """Answers until the other side is gone."""
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                stream.write(json.dumps(self.answer(json.loads(line))).encode() + b"\n")
                stream.flush()


def _end_with(parent: int) -> None:
    """Ends this process when the host is gone, even where a model computes on."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """The process that the plugin starts: standard input is the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=os.dup(0))
    # What a model prints or reads is no part of the conversation.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    Served(build, threading.Lock()).loop(connection)


if __name__ == "__main__":
    main()
