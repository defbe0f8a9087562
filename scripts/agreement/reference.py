"""The same attacks elsewhere: PGD as its equation, torchattacks' PGD, AutoAttack's stages, foolbox's minimum-norm attacks."""

import foolbox
import pyautoattack.autopgd_base as autopgd
import torch
import torchattacks
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch.nn import functional as F

BATCH = 100


def batched(f):
    """`f(model, x, y, ...)` over batches, its results concatenated."""

    def run(model, x, *rest, **settings):
        parts = [f(model, *(t[i : i + BATCH] for t in (x, *rest)), **settings) for i in range(0, len(x), BATCH)]
        return torch.cat(parts)

    return run


@batched
@torch.no_grad()
def logits(model, x):
    return model(x)


def robust(model, x, y):
    return logits(model, x).argmax(1) == y


@batched
def pgd(model, x, y, epsilon, step_size=0.01, steps=40, norm="linf", random_start=False):
    """Madry et al. 2017, from the clean image or from a random one of the Linf ball, to the last step."""
    x_adv = x
    if random_start:
        x_adv = (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        moved = x_adv.detach() + step_size * direction(gradient, norm) - x
        x_adv = (x + project(moved, epsilon, norm)).clamp(0, 1)
    return x_adv


def direction(gradient, norm):
    if norm == "linf":
        return gradient.sign()
    length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    return gradient / length.clamp(min=1e-30)


def project(delta, epsilon, norm):
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    length = delta.flatten(1).norm(dim=1)[:, None, None, None]
    return delta * (epsilon / length.clamp(min=1e-30)).clamp(max=1)


@batched
def torchattacks_pgd(model, x, y, epsilon, step_size=0.01, steps=40):
    return torchattacks.PGD(model, eps=epsilon, alpha=step_size, steps=steps, random_start=False)(x, y)


@batched
def foolbox_cw(model, x, y, constant, searches, rate, iterations):
    """The images that L2CarliniWagnerAttack found, and the clean ones where it found none.

    For those it returns a black image, and calls it a success where the model does not take it for the label.
    """
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=searches, steps=iterations, stepsize=rate, initial_const=constant, abort_early=False
    )
    x_adv, _, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)
    failed = (x_adv == 0).flatten(1).all(1)
    return torch.where(failed[:, None, None, None], x, x_adv)


@batched
def autoattack_stage(model, x, y, stage, norm, epsilon, seed):
    """One stage of AutoAttack standard by its authors' code, on all images."""
    norm = {"linf": "Linf", "l2": "L2"}[norm]
    common = dict(norm=norm, eps=epsilon, seed=seed, device="cpu")
    stages = {
        "APGD-CE": lambda: autopgd.APGDAttack(model, n_restarts=1, n_iter=100, loss="ce", **common),
        "APGD-DLR": lambda: autopgd.APGDAttack(model, n_restarts=1, n_iter=100, loss="dlr", **common),
        "APGD-T": lambda: autopgd.APGDAttack_targeted(model, n_restarts=1, n_iter=100, n_target_classes=9, **common),
        "FAB-T": lambda: FABAttack_PT(model, n_restarts=1, n_iter=100, targeted=True, n_target_classes=9, **common),
        "Square": lambda: SquareAttack(model, n_queries=5000, n_restarts=1, p_init=0.8, resc_schedule=False, **common),
    }
    return stages[stage]().perturb(x, y).detach()


class L2FMN(foolbox.attacks.L2FMNAttack):
    """With the paper's projection: foolbox's multiplies by `norms / norms` and leaves every point where it is."""

    def project(self, x, x0, epsilon):
        delta = x - x0
        length = delta.flatten(start=1).norms.l2(axis=-1).maximum(1e-12)
        return x0 + delta * (epsilon / length).minimum(1)[:, None, None, None]


def distances(delta, norm):
    return delta.flatten(1).norm(p={"l2": 2, "linf": float("inf")}[norm], dim=1)


MINIMUM_NORM = {
    "DeepFool": ("l2", lambda steps: foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)),
    "DDN": ("l2", lambda steps: foolbox.attacks.DDNAttack(steps=steps)),
    "FMN": ("l2", lambda steps: L2FMN(steps=steps)),
    "FMN linf": ("linf", lambda steps: foolbox.attacks.LInfFMNAttack(steps=steps)),
}


@batched
def minimum_norm(model, x, y, attack, steps):
    """The nearest images that foolbox finds, and the clean ones where it finds none."""
    x_adv, _, _ = MINIMUM_NORM[attack][1](steps)(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)
    return x_adv
