"""How much hangs on ties of poolings: FGSM in PyTorch on a defence in front of X, exact and with noise before every pooling.

    python ties.py                the 1,000 images of mnist-1k, HGD and AdvAE
    python ties.py --purifier hgd

Exact is f64, and must call every image as the host and PyTorch in f32 do. The noise is 1e-7 of a layer's largest activation, what
sums in f32 round: on a black background it decides which of equal elements has the gradient.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from host import Host
from models import AE, X, load
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
EPSILON, NOISE = 0.3, 1e-7


def gradient(network, x, y):
    """That of the loss up to a factor, which does not cancel where the network is sure."""
    x = x.detach().requires_grad_()
    logits = network(x)
    others = torch.softmax(logits.detach(), 1).scatter(1, y[:, None], 0)
    label = logits.gather(1, y[:, None])[:, 0]
    loss = (others / others.sum(1, keepdim=True) * logits).sum(1) - label
    return torch.autograd.grad(loss.sum(), x)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=str(ROOT / "target/release/advae-host"))
    parser.add_argument("--purifier", choices=["hgd", "advae"], action="append")
    options = parser.parse_args()
    torch.manual_seed(0)
    pool = F.max_pool2d
    with tempfile.TemporaryDirectory() as folder:
        host = Host(options.host, folder)
        for name in options.purifier or ["hgd", "advae"]:
            cell = host.eval("fgsm", "model_x", name)
            purifier = load(AE, ROOT / f"plugins/purifiers/{name}/weights/default.safetensors")
            classifier = load(X, ROOT / "plugins/classifiers/model_x/weights/clean.safetensors")
            network = torch.nn.Sequential(purifier, classifier).eval()
            x, y = cell.x.double(), cell.y.long()
            single = gradient(network.float(), cell.x, y).double()
            exact = gradient(network.double(), x, y)
            F.max_pool2d = lambda z, k: pool(z + torch.randn_like(z) * NOISE * z.detach().abs().max(), k)
            noisy = gradient(network, x, y)
            F.max_pool2d = pool
            with torch.no_grad():
                held = [
                    network((x + EPSILON * g.sign()).clamp(0, 1)).argmax(1) == y for g in (exact, single, noisy)
                ]
            flips = [(robust != held[0]).sum().item() for robust in (cell.robust, held[1], held[2])]
            signs = (noisy.sign() != exact.sign()).flatten(1).sum(1).double().mean().item()
            print(
                f"{name}: {100 * held[0].double().mean().item():.1f} % robust; images called otherwise: host {flips[0]}, "
                f"PyTorch in f32 {flips[1]}, with noise {flips[2]}; signs that noise changes, an image: {signs:.1f}"
            )


if __name__ == "__main__":
    main()
