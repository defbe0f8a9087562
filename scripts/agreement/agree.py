"""Does advae-host agree with PyTorch? Same weights, same images, another implementation of everything.

    python agree.py                     all checks, on the weights that ship
    python agree.py logits pgd          some of them
    python agree.py --help

Prints a line a check with its figure and its goal; ends with 1 where a goal is missed.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import models
import reference
import torch
from host import Host

ROOT = Path(__file__).resolve().parents[2]
CW = {
    "paper": dict(constant=10.0, searches=1, rate=0.2),
    "strong": dict(constant=1e-3, searches=9, rate=1e-2),
}


STAGES = {
    "APGD-CE": "apgd",
    "APGD-DLR": "apgd:loss=dlr",
    "APGD-T": "apgd:loss=dlr_targeted",
    "FAB-T": "fab",
    "Square": "square",
}
# Ours as it ships first. FMN from the clean image alone is the search that foolbox runs.
OURS = {
    "DeepFool": ["deepfool"],
    "DDN": ["ddn:steps={}"],
    "FMN": ["fmn:steps={}", "fmn:start=clean,steps={}"],
    "FMN linf": ["fmn:norm=linf,steps={}", "fmn:norm=linf,start=clean,steps={}"],
}


@dataclass
class Pipeline:
    """The same network twice: for the host by name, in PyTorch as a module."""

    name: str
    classifier: str
    purifier: str | None
    model: torch.nn.Module


class Agreement:
    def __init__(self, options):
        self.options = options
        self.host = Host(options.host, options.keep)
        self.failed = 0

    def report(self, check, figure, goal, met):
        """One line; `met` is None for a figure without a goal."""
        verdict = {True: "ok", False: "FAILED", None: ""}[met]
        self.failed += met is False
        print(f"{check:<40} {figure:<54} {goal:<22} {verdict}", flush=True)

    def pipelines(self):
        """X and AdvAE in front of X, as far as there are weights."""
        x_file = self.weights("plugins/classifiers/model_x/weights", self.options.weights_x)
        ae_file = self.weights("plugins/purifiers/advae/weights", self.options.weights_ae)
        if x_file is None:
            raise SystemExit("no weights for X: give --weights-x FILE")
        x, x_name = models.load(models.X, x_file), plugin("model_x.so", self.options.weights_x)
        yield Pipeline("X", x_name, None, x)
        if ae_file is not None:
            model = torch.nn.Sequential(models.load(models.AE, ae_file), x).eval()
            yield Pipeline("AdvAE + X", x_name, plugin("advae.so", self.options.weights_ae), model)

    def adversarially_trained(self):
        """X after It-Adv-train, if its weights are there."""
        file = ROOT / "plugins/classifiers/model_x/weights/it_adv.safetensors"
        if file.is_file():
            yield Pipeline("It-Adv X", "model_x.so@it_adv", None, models.load(models.X, file))

    def others(self):
        """The other classifiers whose weights are there."""
        for network in [models.A, models.B, models.C, models.D]:
            letter = network.__name__.lower()
            file = self.weights(f"plugins/classifiers/model_{letter}/weights", None)
            if file is not None:
                yield Pipeline(letter.upper(), f"model_{letter}.so", None, models.load(network, file))

    def cifar_pipelines(self):
        """ResNetV2-29, and the U-net in front of it, as far as weights ship or are given."""
        classifier = self.weights("plugins/classifiers/resnet29v2/weights", self.options.weights_resnet)
        if classifier is None:
            raise SystemExit("no weights for ResNetV2-29: give --weights-resnet FILE")
        resnet, name = models.load(models.ResNet29, classifier), plugin("resnet29v2.so", self.options.weights_resnet)
        yield Pipeline("ResNet29", name, None, resnet)
        purifier = self.weights("plugins/purifiers/advae_cifar10/weights", self.options.weights_unet)
        if purifier is not None:
            model = torch.nn.Sequential(models.load(models.UNet, purifier), resnet).eval()
            yield Pipeline("U-net + ResNet29", name, plugin("advae_cifar10.so", self.options.weights_unet), model)

    def cifar(self):
        """CIFAR-10: logits against f64, and PGD-10 of steps of 1/255 from the clean image, image by image."""
        for pipeline in self.cifar_pipelines():
            attack = "pgd:steps=10,step_size=1/255,random_start=false,early_stop=false"
            cell = self.host.eval(attack, pipeline.classifier, pipeline.purifier, self.options.samples)
            for kind, images, ours in [("clean", cell.x, cell.logits_clean), ("PGD-10", cell.x_adv, cell.logits_adv)]:
                exact = reference.logits(pipeline.model.double(), images.double())
                share = ((ours - exact).abs().max() / exact.abs().max()).item()
                check = f"logits, {pipeline.name}, {kind}, torch f64"
                self.report(check, f"differ by {share:.1e} of the largest", "within 1e-4", share <= 1e-4)
            settings = dict(epsilon=8 / 255, step_size=1 / 255, steps=10)
            self.outcome(f"PGD-10, {pipeline.name}, linf 8/255", pipeline, cell, **settings)

    def weights(self, folder, given):
        """The file given, or the set that a plugin of that folder takes by default."""
        names = ("clean", "default")
        files = [Path(given)] if given else [ROOT / folder / f"{name}.safetensors" for name in names]
        return next((file for file in files if file.is_file()), None)

    def logits(self):
        for pipeline in [*self.pipelines(), *self.others()]:
            cell = self.host.eval("fgsm", pipeline.classifier, pipeline.purifier, self.options.samples)
            sides = [
                ("clean", cell.x, cell.logits_clean, cell.clean_prediction),
                ("FGSM", cell.x_adv, cell.logits_adv, cell.adversarial_prediction),
            ]
            for kind, images, ours, prediction in sides:
                exact = reference.logits(pipeline.model.double(), images.double())
                theirs = reference.logits(pipeline.model.float(), images)
                check, largest = f"logits, {pipeline.name}, {kind}", exact.abs().max().item()
                difference = (ours - theirs).abs().max().item()
                self.report(check, f"differ by {difference:.1e} (largest {largest:.0f})", "within 1e-4", difference <= 1e-4)
                share = (ours - exact).abs().max().item() / largest
                self.report(f"{check}, torch f64", f"differ by {share:.1e} of the largest", "within 1e-4", share <= 1e-4)
                same = (prediction == theirs.argmax(1)).float().mean().item()
                self.report(f"labels, {pipeline.name}, {kind}", f"{same:.2%} equal", ">= 99.9 %", same >= 0.999)

    def fgsm(self):
        """One signed step: what is left of a gradient in f32 shows at once. Goal and reason as for PGD."""
        for pipeline in self.pipelines():
            cell = self.host.eval("fgsm", pipeline.classifier, pipeline.purifier, self.options.samples, "linf=0.3")
            self.outcome(f"FGSM, {pipeline.name}, linf 0.3", pipeline, cell, epsilon=0.3, step_size=0.3, steps=1)

    def pgd(self):
        """The same outcome, sample by sample, where half of the samples withstand the attack.

        The goal holds for PyTorch in f64. In f32 its cross-entropy loses the gradient where the model is sure of itself
        (p_y - 1 is 0 or noise for p_y near 1): the first steps of PGD from a clean image go astray there, and PyTorch in
        f32 agrees with PyTorch in f64 on some 99 % of X's images only. Those figures are printed beside.
        """
        for pipeline in self.pipelines():
            for norm, step_size in [("linf", self.options.step_size), ("l2", 0.1)]:
                if norm == "linf" and pipeline.purifier:
                    epsilon = 0.3
                else:
                    epsilon = self.contested_epsilon(pipeline, norm, step_size)
                self.pgd_at(pipeline, norm, epsilon, step_size)

    def pgd_at(self, pipeline, norm, epsilon, step_size):
        attack = f"pgd:norm={norm},random_start=false,early_stop=false,step_size={step_size}"
        cell = self.host.eval(attack, pipeline.classifier, pipeline.purifier, self.options.samples, f"{norm}={epsilon}")
        check = f"PGD-40, {pipeline.name}, {norm} {epsilon:.3g}"
        self.outcome(check, pipeline, cell, norm=norm, epsilon=epsilon, step_size=step_size)

    def outcome(self, check, pipeline, cell, norm="linf", **settings):
        wide = pipeline.model.double()
        exact = reference.robust(wide, reference.pgd(wide, cell.x.double(), cell.y, norm=norm, **settings), cell.y)
        same = (exact == cell.robust).float().mean().item()
        figure = f"{same:.2%} same outcome ({count(cell.robust)} : {count(exact)} robust)"
        self.report(f"{check}, torch f64", figure, ">= 99.5 %", same >= 0.995)
        model = wide.float()
        others = {"torch f32": reference.pgd(model, cell.x, cell.y, norm=norm, **settings)}
        if norm == "linf":
            x_adv = reference.torchattacks_pgd(model, cell.x, cell.y, **settings)
            others["torchattacks f32"] = x_adv
        for other, x_adv in others.items():
            theirs = reference.robust(model, x_adv, cell.y)
            ours, floor = [(theirs == robust).float().mean().item() for robust in (cell.robust, exact)]
            figure = f"{ours:.2%} same outcome, torch f64 {floor:.2%} ({count(theirs)} robust)"
            self.report(f"{check}, {other}", figure, "", None)

    def headline(self):
        """The white-box figures as the tables print them: random start, default settings; both sides start where they like."""
        for pipeline in [*self.pipelines(), *self.adversarially_trained()]:
            cell = self.host.eval("pgd", pipeline.classifier, pipeline.purifier, self.options.samples)
            model = pipeline.model.double()
            x_adv = reference.pgd(model, cell.x.double(), cell.y, epsilon=0.3, random_start=True)
            theirs = reference.robust(model, x_adv, cell.y).float().mean().item()
            self.same_accuracy(f"PGD-40, {pipeline.name}", cell, theirs, points=0.5)
            self.same_verdicts(f"PGD-40, {pipeline.name}", pipeline, cell)
            n = self.options.cw_samples
            cell = self.host.eval("cw:abort=false", pipeline.classifier, pipeline.purifier, n)
            x_adv = reference.foolbox_cw(pipeline.model.float(), cell.x, cell.y, iterations=1000, **CW["paper"])
            theirs = reference.robust(pipeline.model, x_adv, cell.y).float().mean().item()
            self.same_accuracy(f"CW, {pipeline.name}", cell, theirs, points=2)
            self.same_verdicts(f"CW, {pipeline.name}", pipeline, cell)

    def same_accuracy(self, check, cell, theirs, points):
        ours = cell.robust.float().mean().item()
        figure = f"{ours:.1%} : {theirs:.1%} robust of {len(cell.y)}"
        self.report(f"{check}, its own attack", figure, f"within {points} points", abs(ours - theirs) <= points / 100)

    def same_verdicts(self, check, pipeline, cell):
        """What PyTorch makes of the very images that the host scored."""
        theirs = reference.robust(pipeline.model.float(), cell.x_adv.float(), cell.y)
        same = (theirs == cell.robust).float().mean().item()
        self.report(f"{check}, our images", f"{same:.1%} same verdict", ">= 99 %", same >= 0.99)

    def autoattack(self):
        """Each stage of AutoAttack standard on all images, and what is left after all of them. APGD-DLR is printed without a part in that."""
        for pipeline in [*self.adversarially_trained(), *list(self.pipelines())[1:]]:
            for norm in self.options.norms.split(","):
                epsilon = {"linf": 0.3, "l2": self.options.l2}[norm]
                ours_whole, theirs_whole = None, None
                for stage, attack in STAGES.items():
                    attack, budget = with_norm(attack, norm), f"{norm}={epsilon}"
                    n = self.options.autoattack_samples
                    cell = self.host.eval(attack, pipeline.classifier, pipeline.purifier, n, budget, early_stop=True)
                    # A sample that is wrong without an attack is none that this attack has broken or left.
                    clean = cell.clean_prediction == cell.y
                    settings = dict(stage=stage, norm=norm, epsilon=epsilon)
                    theirs = [self.stage(pipeline, cell, clean, seed=seed, **settings) for seed in range(self.options.seeds)]
                    self.not_weaker(f"{stage}, {pipeline.name}, {norm} {epsilon}", cell.robust & clean, theirs)
                    if stage != "APGD-DLR":
                        ours_whole = cell.robust & clean if ours_whole is None else ours_whole & cell.robust
                        theirs_whole = theirs if theirs_whole is None else [a & b for a, b in zip(theirs_whole, theirs)]
                self.not_weaker(f"all stages, {pipeline.name}, {norm} {epsilon}", ours_whole, theirs_whole)

    def stage(self, pipeline, cell, clean, **settings):
        x_adv = reference.autoattack_stage(pipeline.model.float(), cell.x, cell.y, **settings)
        return reference.robust(pipeline.model, x_adv, cell.y) & clean

    def not_weaker(self, check, ours, theirs):
        """No more is left than by the reference, with half a point for its seeds."""
        left, shares = ours.float().mean().item(), [flags.float().mean().item() for flags in theirs]
        figure = f"{left:.1%} : {', '.join(f'{share:.1%}' for share in shares)} robust of {len(ours)}"
        self.report(check, figure, "<= 0.5 points above", left <= max(shares) + 0.005)

    def minimum_norm(self):
        """Distances against foolbox's in f64 and f32, which differ too: where a model is flat, rounding decides which way a search goes.

        Medians are over all images that are right to begin with; one that was not found is infinitely far. The goal is met where ours is no
        more than 5 % above either, and no fewer images are found than by either: a weaker attack is a fault. For the same search twice it is
        10 %, since chance moves each by so much.
        """
        n, steps = self.options.cw_samples, self.options.minimum_norm_steps
        for pipeline in [*self.adversarially_trained(), *list(self.pipelines())[1:]]:
            for attack, (norm, _) in reference.MINIMUM_NORM.items():
                names = [name.format(steps) for name in OURS[attack]]
                cells = [self.host.eval(name, pipeline.classifier, pipeline.purifier, n) for name in names]
                theirs = {}
                for dtype in (torch.float64, torch.float32):
                    model, x = pipeline.model.to(dtype), cells[0].x.to(dtype)
                    x_adv = reference.minimum_norm(model, x, cells[0].y, attack=attack, steps=steps)
                    found = ~reference.robust(model, x_adv, cells[0].y)
                    theirs[f"f{torch.finfo(dtype).bits}"] = reference.distances(x_adv - x, norm).float(), found
                for name, cell in zip(names, cells):
                    self.no_farther(f"{name}, {pipeline.name}", cell, norm, theirs, same_search=name != names[0])

    def no_farther(self, check, cell, norm, theirs, same_search):
        """Our distances and successes beside foolbox's, by its precision."""
        ours, correct = cell.distances(norm), cell.clean_prediction == cell.y
        median = lambda distances, found: torch.where(found, distances, torch.inf)[correct].median().item()
        ours_median, above = median(ours, cell.found), []
        for precision, (distances, found) in theirs.items():
            their_median, both = median(distances, found), found & cell.found & correct & (distances > 0)
            above.append(0.0 if ours_median == their_median else ours_median / their_median - 1)
            paired = (ours[both] / distances[both]).log().mean().exp().item() - 1
            figure = f"{ours_median:.4f} : {their_median:.4f}, {above[-1]:+.1%}; an image {paired:+.1%}"
            self.report(f"{check}, foolbox {precision}, median", figure, "", None)
        worst, allowed = max(above), 10 if same_search else 5
        figure = f"{worst:+.1%} against the better one"
        self.report(f"{check}, median", figure, f"<= {allowed} % above", worst <= allowed / 100)
        ours, theirs = count(cell.found), [count(found) for _, found in theirs.values()]
        figure = f"{ours} : {' and '.join(map(str, theirs))} of {len(correct)}"
        goal, met = ("", None) if same_search else ("no fewer", ours >= max(theirs))
        self.report(f"{check}, success", figure, goal, met)

    def contested_epsilon(self, pipeline, norm, step_size):
        """The radius, in thousandths, at which about half of the images withstand PGD here."""
        cell = self.host.eval("fgsm", pipeline.classifier, pipeline.purifier, 200)
        low, high = 0.0, {"linf": 0.3, "l2": 5.0}[norm]
        while high - low > 1e-3:
            epsilon = (low + high) / 2
            x_adv = reference.pgd(pipeline.model, cell.x, cell.y, norm=norm, epsilon=epsilon, step_size=step_size)
            share = reference.robust(pipeline.model, x_adv, cell.y).float().mean()
            low, high = (epsilon, high) if share > 0.5 else (low, epsilon)
        return round(low, 3)

    def cw(self, preset):
        for pipeline in self.pipelines():
            if pipeline.purifier and preset == "strong":
                continue
            n, iterations = self.options.cw_samples, self.options.iterations
            attack = f"cw:preset={preset},abort=false,iterations={iterations}"
            cell = self.host.eval(attack, pipeline.classifier, pipeline.purifier, n)
            x_adv = reference.foolbox_cw(pipeline.model, cell.x, cell.y, iterations=iterations, **CW[preset])
            theirs = (x_adv - cell.x).flatten(1).norm(dim=1)
            found = (x_adv != cell.x).flatten(1).any(1)
            ours, theirs = cell.l2[cell.found].median().item(), theirs[found].median().item()
            check = f"CW {preset}, {pipeline.name}, foolbox"
            share = abs(ours / theirs - 1)
            self.report(f"{check}, median L2", f"{ours:.4f} : {theirs:.4f}, {share:.2%} apart", "within 5 %", share <= 0.05)
            same = (found == cell.found).float().mean().item()
            figure = f"{same:.1%} equal ({count(cell.found)} : {count(found)} of {n})"
            self.report(f"{check}, success", figure, ">= 99 %", same >= 0.99)
            predicted = reference.logits(pipeline.model, cell.x_adv).argmax(1)
            held = (predicted != cell.y)[cell.found].float().mean().item()
            self.report(f"{check}, ours in PyTorch", f"{held:.1%} of our images succeed there too", ">= 95 %", held >= 0.95)


def plugin(name, file):
    return f"{name}@{Path(file).resolve()}" if file else name


def with_norm(attack, norm):
    """`apgd` or `apgd:loss=dlr` with the norm."""
    return f"{attack}{',' if ':' in attack else ':'}norm={norm}"


def count(flags):
    return int(flags.sum())


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checks = ["logits", "fgsm", "pgd", "headline", "cw-paper", "cw-strong", "minimum_norm", "autoattack", "cifar"]
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(checks)}; all but the last two, if none is named")
    parser.add_argument("--host", default=ROOT / "target/release/advae-host", help="the host's binary")
    parser.add_argument("--samples", type=int, default=1000, help="images for logits and PGD")
    parser.add_argument("--cw-samples", type=int, default=100, help="images for CW")
    parser.add_argument("--autoattack-samples", type=int, default=1000, help="images for the stages of AutoAttack")
    parser.add_argument("--seeds", type=int, default=3, help="runs of AutoAttack's stages by the reference")
    parser.add_argument("--norms", default="linf,l2", help="norms of AutoAttack's stages")
    parser.add_argument("--l2", type=float, default=1.0, help="L2 budget of AutoAttack's stages")
    parser.add_argument("--minimum-norm-steps", type=int, default=1000, help="steps of DDN, and of each search of FMN")
    parser.add_argument("--iterations", type=int, default=1000, help="iterations of CW")
    parser.add_argument("--step-size", type=float, default=0.01, help="step of PGD")
    parser.add_argument("--weights-x", help="safetensors file for X, on both sides, instead of what ships")
    parser.add_argument("--weights-resnet", help="safetensors file for ResNetV2-29, likewise")
    parser.add_argument("--weights-unet", help="safetensors file for the U-net, likewise")
    parser.add_argument("--weights-ae", help="safetensors file for the auto-encoder, likewise")
    parser.add_argument("--keep", help="folder for what the host writes, instead of the temporary one")
    chosen = parser.parse_args()
    unknown = set(chosen.checks) - set(checks)
    if unknown:
        parser.error(f"no check {', '.join(sorted(unknown))}: choose from {', '.join(checks)}")
    # The weights of the one do not ship yet, the other takes many hours.
    chosen.checks = chosen.checks or [check for check in checks if check not in ("autoattack", "cifar")]
    return chosen


def main():
    chosen = options()
    agreement = Agreement(chosen)
    for check in chosen.checks:
        start = time.time()
        name, _, preset = check.partition("-")
        agreement.cw(preset) if preset else getattr(agreement, name)()
        print(f"  {check} took {time.time() - start:.0f} s", file=sys.stderr)
    print(f"{agreement.failed} failed" if agreement.failed else "all agree")
    sys.exit(agreement.failed > 0)


if __name__ == "__main__":
    main()
