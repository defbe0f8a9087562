"""Whole evaluations: they need the host, $ADVAE_HOST or on $PATH."""

import os
import shutil

import pytest

import advae

numpy = pytest.importorskip("numpy")
HOST = shutil.which(os.environ.get("ADVAE_HOST", "advae-host"))
needs_host = pytest.mark.skipif(HOST is None, reason="no advae-host: set $ADVAE_HOST")


@advae.classifier(shape=(1, 28, 28))
class Halves:
    """Whether the upper half of an image is brighter than the lower one: broken where their means differ by less than 2 epsilon."""

    def forward(self, x):
        difference = x[:, :, :14].mean((1, 2, 3)) - x[:, :, 14:].mean((1, 2, 3))
        return numpy.stack([difference, -difference], 1)

    def vjp(self, x, cotangent):
        slope = (cotangent[:, 0] - cotangent[:, 1]) / (14 * 28)
        gradient = numpy.ones_like(x) * slope[:, None, None, None]
        gradient[:, :, 14:] *= -1
        return gradient


def images(count=40):
    """Images whose halves differ by 0 to 0.4, and their labels."""
    gaps = numpy.linspace(0.01, 0.4, count)
    x = numpy.full((count, 1, 28, 28), 0.5, dtype="f4")
    x[:, :, :14] += gaps[:, None, None, None] / 2
    x[:, :, 14:] -= gaps[:, None, None, None] / 2
    labels = numpy.zeros(count, dtype="i8")
    # Every second one upside down.
    x[1::2] = x[1::2, :, ::-1]
    labels[1::2] = 1
    return x, labels, gaps


@needs_host
def test_a_linear_model_falls_as_arithmetic_says(tmp_path):
    x, labels, gaps = images()
    report, out = tmp_path / "page.html", tmp_path / "results.jsonl"
    result = Halves().evaluate(images=x, labels=labels, attacks=["fgsm", "pgd"], epsilon=0.1, report=report, out=out)
    assert float(result.clean_accuracy) == 1.0
    # A step of epsilon changes the difference of the means by 2 epsilon.
    assert float(result.robust_accuracy) == pytest.approx((gaps > 0.2).mean())
    assert [cell.attack for cell in result.cells] == ["fgsm", "pgd"]
    assert all(cell.samples == 40 and cell.failed is None for cell in result.cells)
    assert "pgd" in str(result) and report.exists() and out.exists()


@needs_host
def test_a_purifier_of_the_process_stands_in_front(tmp_path):
    @advae.purifier()
    class Grey:
        def forward(self, x):
            return numpy.zeros_like(x)

        def vjp(self, x, cotangent):
            return numpy.zeros_like(x)

    x, labels, _ = images(8)
    result = advae.evaluate(Halves(), purifier=Grey(), images=x, labels=labels, attacks="fgsm", epsilon=0.1)
    assert float(result.clean_accuracy) == 0.5
    assert result.cells[0].purifier is not None


@needs_host
def test_a_torch_module_stays_as_it_was():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(784, 10))
    net.train()
    x, labels, _ = images(8)
    result = advae.evaluate(net, images=torch.tensor(x), labels=torch.tensor(labels), attacks=["fgsm"], epsilon=0.1, shape=(1, 28, 28))
    assert result.cells[0].failed is None
    assert net.training and net[1].training


@needs_host
def test_what_the_host_refuses_is_an_error_with_its_words():
    x, labels, _ = images(4)
    with pytest.raises(advae.AdvaeError, match="no_such_attack"):
        advae.evaluate(Halves(), images=x, labels=labels, attacks=["no_such_attack"], epsilon=0.1)


@needs_host
def test_an_error_of_the_model_costs_its_cell():
    @advae.classifier(shape=(1, 28, 28))
    class Fragile:
        def forward(self, x):
            if len(x) != 2:
                raise ValueError("no such thing")
            return x[:, 0, 0, :2]

    x, labels, _ = images(8)
    with pytest.raises(advae.AdvaeError, match="no such thing"):
        advae.evaluate(Fragile(), images=x, labels=labels, attacks=["fgsm"], epsilon=0.1).robust_accuracy


def test_a_missing_host_is_said():
    with pytest.raises(advae.AdvaeError, match="no program '/nowhere/advae-host': give host=PATH"):
        advae.evaluate(Halves(), host="/nowhere/advae-host")


def test_images_need_labels():
    with pytest.raises(advae.AdvaeError, match="belong together"):
        advae.evaluate(Halves(), images=images(2)[0], host="true")
