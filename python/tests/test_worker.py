"""The conversation, without the host."""

import json
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from advae import _worker
from advae._worker import Served

numpy = pytest.importorskip("numpy")


class Square:
    """y = x * x, with its gradient."""

    def forward(self, x):
        return x * x

    def vjp(self, x, cotangent):
        return 2 * x * cotangent


class Other:
    """The other side of a conversation, as the plugin is."""

    def __init__(self, connection, memory):
        self.stream = connection.makefile("rwb")
        self.memory = memory

    def ask(self, **request):
        self.stream.write(json.dumps(request).encode() + b"\n")
        self.stream.flush()
        return json.loads(self.stream.readline())

    def load(self, **more):
        request = {"protocol": _worker.PROTOCOL, "memory": str(self.memory), "kind": "purifier", "file": "", "class": ""}
        return self.ask(op="load", **{**request, "weights": "", "weights_name": "", "device": "cpu", "name": "", **more})

    def run(self, values, keep=True, seeds=(), drop=()):
        self.memory.write_bytes(struct.pack(f"<{len(values)}f", *values))
        shape = [1, 1, 1, len(values)]
        return self.ask(op="run", shape=shape, keep=keep, seeds=list(seeds), threads=1, drop=list(drop))

    def back(self, kept, values):
        self.memory.write_bytes(struct.pack(f"<{len(values)}f", *values))
        return self.ask(op="back", kept=kept, shape=[1, 1, 1, len(values)], threads=1)

    def values(self, count):
        return list(struct.unpack(f"<{count}f", self.memory.read_bytes()[: 4 * count]))


@pytest.fixture
def other(tmp_path):
    """Serves what the test hands over, on a thread."""
    made = []

    def serve(model):
        own, theirs = socket.socketpair()
        served = Served(lambda request: model, threading.Lock(), guest=True)
        threading.Thread(target=served.loop, args=(theirs,), daemon=True).start()
        memory = tmp_path / f"memory{len(made)}"
        memory.touch()
        made.append(own)
        return Other(own, memory)

    yield serve
    for connection in made:
        connection.close()


def test_outputs_and_gradients(other):
    side = other(Square())
    told = side.load()
    assert told["gradient"] == "vjp"
    ran = side.run([1.0, 2.0, 3.0])
    assert side.values(3) == [1.0, 4.0, 9.0]
    assert side.back(ran["kept"], [1.0, 1.0, 10.0]) == {"shape": [1, 1, 1, 3]}
    assert side.values(3) == [2.0, 4.0, 60.0]
    # The graph is still there, and goes when it is dropped.
    assert "shape" in side.back(ran["kept"], [1.0, 0.0, 0.0])
    side.run([0.0], keep=False, drop=[ran["kept"]])
    assert side.back(ran["kept"], [1.0])["error"].startswith("KeyError")


def test_an_error_of_the_model_names_its_line(other):
    class Broken:
        def forward(self, x):
            raise ValueError("no such thing")

    side = other(Broken())
    side.load()
    error = side.run([1.0])["error"]
    assert error.startswith("ValueError: no such thing (test_worker.py, line ")
    # The conversation goes on.
    assert "no such thing" in side.run([1.0])["error"]


def test_outputs_that_are_no_floats_are_refused(other):
    class Labels:
        def forward(self, x):
            return numpy.array([3])

    side = other(Labels())
    side.load()
    assert "numbers of type int64, not floats" in side.run([1.0])["error"]


def test_seeds_repeat_what_is_random(other):
    class Noise:
        def forward(self, x):
            return x + numpy.random.random(x.shape)

    side = other(Noise())
    side.load()
    draws = []
    for seed in (1, 2, 1):
        side.run([0.0, 0.0], seeds=[seed])
        draws.append(side.values(2))
    assert draws[0] == draws[2] != draws[1]


def test_a_model_may_take_seeds_itself(other):
    class Noise:
        def forward(self, x, seeds):
            return x + numpy.array(seeds, dtype="f4").reshape(-1, 1, 1, 1)

    side = other(Noise())
    assert side.load()["seeds"] is True
    side.run([1.0], seeds=[5])
    assert side.values(1) == [6.0]


def test_a_torch_module(other):
    torch = pytest.importorskip("torch")

    class Cube(torch.nn.Module):
        def forward(self, x):
            return x**3

    side = other(Cube())
    assert side.load()["gradient"] == "torch"
    ran = side.run([1.0, 2.0])
    assert side.values(2) == [1.0, 8.0]
    side.back(ran["kept"], [1.0, 1.0])
    assert side.values(2) == [3.0, 12.0]


def test_a_detached_torch_module_says_so(other):
    torch = pytest.importorskip("torch")

    class Detached(torch.nn.Module):
        def forward(self, x):
            return x.detach() * 2

    side = other(Detached())
    side.load()
    assert "something detached it" in side.back(side.run([1.0])["kept"], [1.0])["error"]


FILE = """
import helper
class Net:
    input_size = 3
    def forward(self, x):
        print("this is no part of the conversation")
        return helper.twice(x)
class Other:
    def forward(self, x):
        return x
"""


def process(tmp_path, name, **more):
    """The process as the plugin starts it."""
    own, theirs = socket.socketpair()
    memory = tmp_path / "memory"
    memory.touch()
    source = Path(_worker.__file__).read_text()
    child = subprocess.Popen([sys.executable, "-u", "-c", source], stdin=theirs, stderr=subprocess.PIPE, text=True)
    theirs.close()
    side = Other(own, memory)
    side.child = child
    return side, side.load(file=str(tmp_path / name), name=str(tmp_path / name), **more)


def test_a_file_is_run_in_a_process_of_its_own(tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    side, told = process(tmp_path, "net.py", **{"class": "Net"})
    assert told["gradient"] == "none" and told["siblings"] == ["helper.py"]
    side.run([1.0, 2.0])
    assert side.values(2) == [2.0, 4.0]
    # It ends with the conversation.
    side.stream.close()
    del side.stream
    side.child.communicate(timeout=20)


@pytest.mark.parametrize(
    "text, more, expected",
    [
        (FILE, {}, "has 2 classes with a method forward (Net, Other): choose one, class=NAME"),
        (FILE, {"class": "Nothing"}, "has no 'Nothing': expected one of its classes with a method forward (Net, Other)"),
        ("def f(:", {}, "is no Python file that runs"),
        ("import no_such_module", {}, "cannot be imported: ModuleNotFoundError: No module named 'no_such_module' (net.py, line 1)"),
        ("class Net:\n    def __init__(self, n): pass\n    def forward(self, x): return x", {}, "expected a class or a function that needs no"),
        ("x = 3", {"class": "x"}, "a int is neither a torch.nn.Module nor an object with a method forward(x)"),
    ],
)
def test_files_that_are_refused(tmp_path, text, more, expected):
    (tmp_path / "net.py").write_text(text)
    (tmp_path / "helper.py").write_text("")
    side, told = process(tmp_path, "net.py", **more)
    assert expected in told["error"]
    side.child.kill()
    side.child.communicate()
