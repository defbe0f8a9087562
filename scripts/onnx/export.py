"""Networks of the AdvAE paper as ONNX files, from the weights that ship.

    python export.py FOLDER         writes model_x.onnx, resnet29v2.onnx and advae.onnx

Needs torch, safetensors, numpy, onnx and onnxscript. It is also an example: any torch.nn.Module that takes images goes the same way.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/agreement"))
import models  # noqa: E402

NETWORKS = {
    "model_x": (models.X, "plugins/classifiers/model_x/weights/clean.safetensors", (1, 28, 28)),
    "resnet29v2": (models.ResNet29, "plugins/classifiers/resnet29v2/weights/clean.safetensors", (3, 32, 32)),
    "advae": (models.AE, "plugins/purifiers/advae/weights/default.safetensors", (1, 28, 28)),
}


def load(name):
    """One of them with its weights, for inference."""
    network, weights, _ = NETWORKS[name]
    return models.load(network, ROOT / weights).eval()


# What the plugin `python` makes models of: python:file=export.py,class=model_x.
def model_x():
    return load("model_x")


def resnet29v2():
    return load("resnet29v2")


def advae():
    return load("advae")


def export(model, shape, path):
    """Writes one file that holds its weights, with a free batch axis."""
    # Two images: an exporter takes an axis of one for fixed.
    images = torch.rand(2, *shape)
    torch.onnx.export(
        model.eval(),
        (images,),
        str(path),
        input_names=["images"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        dynamo=True,
        verbose=False,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, _, shape) in NETWORKS.items():
        export(load(name), shape, folder / f"{name}.onnx")
        print(folder / f"{name}.onnx")
