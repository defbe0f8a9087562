"""One attack by one library, timed on request: prints `ready`, then a time in seconds for every line on its input.

Started by compare.py, one process a configuration, so that a process's own malloc settings and threads count.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/agreement"))
import models  # noqa: E402

BUDGETS = {1: (0.3, 0.01), 3: (8 / 255, 1 / 255)}  # epsilon and step by the number of colours
EPSILON, STEP = BUDGETS[1]


def network(name):
    """X, A, B, C, D, or AdvAE in front of X, with the weights that ship; networks of CIFAR-10 as they are initialised."""
    folder = ROOT / "plugins"
    if name == "ResNet29":
        return models.ResNet29().eval()
    if name == "U-net+ResNet29":
        return nn.Sequential(models.UNet(), models.ResNet29()).eval()
    if name == "AdvAE+X":
        auto_encoder = models.load(models.AE, folder / "purifiers/advae/weights/default.safetensors")
        return nn.Sequential(auto_encoder, network("X")).eval()
    letter = name.lower()
    return models.load(getattr(models, name), folder / f"classifiers/model_{letter}/weights/clean.safetensors")


def images(file, count, device):
    with np.load(file) as saved:
        return [torch.from_numpy(saved[name][:count]).to(device) for name in "xy"]


def pgd(library, model, steps, budget=BUDGETS[1]):
    """A function from images and labels to adversarial images: Linf, random start, to the last step."""
    epsilon, step = budget
    if library == "torchattacks":
        import torchattacks

        return torchattacks.PGD(model, eps=epsilon, alpha=step, steps=steps, random_start=True)
    if library == "foolbox":
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=step)
        return lambda x, y: attack(wrapped, x, y, epsilons=epsilon)[1]
    from art.attacks.evasion import ProjectedGradientDescent

    attack = lambda batch: ProjectedGradientDescent(
        art_classifier(model, budget), eps=epsilon, eps_step=step, max_iter=steps, num_random_init=1, batch_size=batch, verbose=False
    )
    return lambda x, y: attack(len(x)).generate(x.numpy(), y.numpy())


def art_classifier(model, budget):
    from art.estimators.classification import PyTorchClassifier

    shape = (1, 28, 28) if budget == BUDGETS[1] else (3, 32, 32)
    return PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )


def cw(library, model, steps):
    """The preset `paper` without an abort: c = 10, one search, rate 0.2."""
    if library != "foolbox":
        raise SystemExit(f"CW is timed in foolbox, not in {library}: see compare.py for the reason")
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=steps, stepsize=0.2, initial_const=10, abort_early=False
    )
    return lambda x, y: attack(wrapped, x, y, epsilons=None)[1]


def training(steps):
    """One epoch of AdvAE in front of X: `steps` of PGD on the pipeline in evaluation mode, then Adam in train mode."""
    classifier = network("X").to(memory_format=torch.channels_last)
    auto_encoder = models.AE().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(auto_encoder.parameters(), 1e-3, fused=True)

    def epoch(x, y):
        for i in range(0, len(x), 128):
            clean, labels = x[i : i + 128].to(memory_format=torch.channels_last), y[i : i + 128]
            auto_encoder.eval().requires_grad_(False)
            moved = (clean + torch.empty_like(clean).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
            for _ in range(steps):
                moved.requires_grad_()
                loss = F.cross_entropy(classifier(auto_encoder(moved)), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, moved)
                moved = moved.detach() + STEP * gradient.sign()
                moved = (clean + (moved - clean).clamp(-EPSILON, EPSILON)).clamp(0, 1)
            auto_encoder.train().requires_grad_(True)
            optimiser.zero_grad()
            F.cross_entropy(classifier(auto_encoder(moved)), labels).backward()
            optimiser.step()

    return epoch


def clean_training():
    """One epoch of ResNetV2-29 on clean images: Adam in train mode, batches of 128."""
    model = models.ResNet29().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def epoch(x, y):
        for i in range(0, len(x), 128):
            optimiser.zero_grad()
            F.cross_entropy(model(x[i : i + 128].to(memory_format=torch.channels_last)), y[i : i + 128]).backward()
            optimiser.step()

    return epoch


def projection(steps, tuned, device):
    """DefenseGAN's: `steps` of gradient descent with momentum 0.7 and rate 10 (1 in the last fifth) from ten starts an image."""
    generator = models.load(models.G, ROOT / "plugins/purifiers/defense_gan/weights/default.safetensors")
    generator = generator.requires_grad_(not tuned).to(device)
    if tuned:
        generator = generator.to(memory_format=torch.channels_last)

    def project(x, _):
        x = x.flatten(1).repeat_interleave(10, 0)
        z = (torch.randn(len(x), 128, device=x.device) / 128**0.5).requires_grad_()
        velocity = torch.zeros_like(z)
        for step in range(steps):
            loss = (generator(z).flatten(1) - x).square().mean(1).sum()
            (gradient,) = torch.autograd.grad(loss, z)
            velocity = 0.7 * velocity + gradient
            z = (z.detach() - (1 if 5 * step >= 4 * steps else 10) * velocity).requires_grad_()
        with torch.no_grad():
            image = generator(z).flatten(1)
        best = (image - x).square().mean(1).unflatten(0, (-1, 10)).argmin(1)
        return image.unflatten(0, (-1, 10))[torch.arange(len(best)), best]

    return project


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", choices=["pgd", "cw", "train", "projection"], required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--file", required=True, help="npz file with x and y")
    parser.add_argument("--tuned", action="store_true", help="frozen weights, channels_last, the best batch size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    x, y = images(options.file, options.images, options.device)

    if options.attack == "train":
        epoch = training(options.steps) if options.model == "AdvAE+X" else clean_training()
        run = lambda count: epoch(x[:count], y[:count])
        run(128)
    else:
        if options.attack == "projection":
            make = lambda steps: projection(steps, options.tuned, options.device)
        else:
            model = network(options.model).requires_grad_(not options.tuned).to(options.device)
            if options.tuned:
                model = model.to(memory_format=torch.channels_last)
            pgd_here = lambda *settings: pgd(*settings, budget=BUDGETS[x.shape[1]])
            make = lambda steps: {"pgd": pgd_here, "cw": cw}[options.attack](options.library, model, steps)
        layout = torch.channels_last if options.tuned else torch.contiguous_format
        attack, warm = make(options.steps), make(2)

        def over(attack, count, batch):
            for i in range(0, count, batch):
                end = min(i + batch, count)
                attack(x[i:end].to(memory_format=layout), y[i:end])
            if x.is_cuda:
                torch.cuda.synchronize()

        # A GPU works through all of them at once.
        sizes = (16, 32, 64, 100, 200) if options.device == "cpu" else (100, 200, 500, 1000)
        batch = min(100 if options.device == "cpu" else 1000, options.images)
        over(warm, batch, batch)
        if options.tuned:
            times = {}
            for size in sizes:
                count = min(sizes[-1], options.images)
                start = time.perf_counter()
                over(warm, count, size)
                times[size] = time.perf_counter() - start
            batch = min(times, key=times.get)
        run = lambda count: over(attack, count, batch)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run(options.images)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
