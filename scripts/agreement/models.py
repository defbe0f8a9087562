"""The networks of the AdvAE paper in PyTorch, reading the same safetensors files.

Written from the paper's tables, not from the Rust code: X 312202, A 1285194, B 710218, C 1460938, D 199210 and the
auto-encoder AE 28609 numbers, of which 128 are running statistics; the generator G 1554177 and two that count; for CIFAR-10
ResNet29 849002 numbers, of which 5216 are running statistics, and UNet 7760931. Run this file to count them.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


class Conv(nn.Conv2d):
    """Convolution whose `same` padding is TensorFlow's: ceil(size / stride) outputs, odd zeros at the far end."""

    def __init__(self, inputs, outputs, kernel, stride=1, same=False):
        super().__init__(inputs, outputs, kernel, stride)
        self.same = same

    def forward(self, x):
        if self.same:
            x = F.pad(x, [*self.zeros(x.shape[3]), *self.zeros(x.shape[2])])
        return super().forward(x)

    def zeros(self, size):
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class X(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = Conv(1, 32, 3), Conv(32, 32, 3)
        self.conv3, self.conv4 = Conv(32, 64, 3), Conv(64, 64, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(1024, 200), nn.Linear(200, 200), nn.Linear(200, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.max_pool2d(F.relu(self.conv4(F.relu(self.conv3(x)))), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class A(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = Conv(1, 64, 5, same=True), Conv(64, 64, 5, 2)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class B(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(1, 64, 8, 2, same=True), Conv(64, 128, 6, 2), Conv(128, 128, 5)
        self.fc1 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return self.fc1(x.flatten(1))


class C(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = Conv(1, 128, 3, same=True), Conv(128, 64, 3, 2)
        self.fc1, self.fc2 = nn.Linear(10816, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class D(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 200), nn.Linear(200, 200), nn.Linear(200, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class AE(nn.Module):
    def __init__(self, wide=32):
        super().__init__()
        self.enc1, self.bn1 = Conv(1, wide, 3, same=True), nn.BatchNorm2d(wide)
        self.enc2, self.bn2 = Conv(wide, wide, 3, same=True), nn.BatchNorm2d(wide)
        self.dec1, self.dec2 = Conv(wide, wide, 3, same=True), Conv(wide, wide, 3, same=True)
        self.out = Conv(wide, 1, 3, same=True)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.enc1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.enc2(x))), 2)
        x = F.interpolate(F.relu(self.dec1(x)), scale_factor=2, mode="nearest")
        x = F.interpolate(F.relu(self.dec2(x)), scale_factor=2, mode="nearest")
        return torch.sigmoid(self.out(x))


class Up(nn.ConvTranspose2d):
    """Transposed convolution 5 x 5 of stride 2 to a given size: the transpose of `Conv` with `same` padding from there."""

    def __init__(self, inputs, outputs, size):
        super().__init__(inputs, outputs, 5, 2)
        self.size = size

    def forward(self, x):
        first = ((x.shape[-1] - 1) * 2 + 5 - self.size) // 2
        cut = slice(first, first + self.size)
        return super().forward(x)[:, :, cut, cut]


class G(nn.Module):
    """DefenseGAN's generator, from 128 numbers; `iterations` counts its training."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(128, 4096)
        self.up1, self.up2, self.up3 = Up(256, 128, 7), Up(128, 64, 14), Up(64, 1, 28)
        self.register_buffer("iterations", torch.zeros(2))

    def forward(self, z):
        x = F.relu(self.fc(z)).unflatten(1, (256, 4, 4))
        return torch.sigmoid(self.up3(F.relu(self.up2(F.relu(self.up1(x))))))


class Bottleneck(nn.Module):
    """Pre-activation block (He et al. 2016); the first of all begins with its convolution."""

    def __init__(self, inputs, middle, outputs, stride, first, leading):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs) if leading else None
        self.conv1 = Conv(inputs, middle, 1, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(middle), Conv(middle, middle, 3, same=True)
        self.bn3, self.conv3 = nn.BatchNorm2d(middle), Conv(middle, outputs, 1)
        self.shortcut = Conv(inputs, outputs, 1, stride) if first else None

    def forward(self, x):
        y = x if self.bn1 is None else F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class ResNet29(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"conv": Conv(3, 16, 3, same=True), "bn": nn.BatchNorm2d(16)})
        inputs = 16
        for stage, (middle, outputs, stride) in enumerate([(16, 64, 1), (64, 128, 2), (128, 256, 2)]):
            blocks = nn.ModuleDict()
            for block in range(3):
                first, leading = block == 0, (stage, block) != (0, 0)
                blocks[f"block{block}"] = Bottleneck(inputs, middle, outputs, stride if first else 1, first, leading)
                inputs = outputs
            setattr(self, f"stage{stage}", blocks)
        self.bn, self.fc = nn.BatchNorm2d(256), nn.Linear(256, 10)

    def forward(self, x):
        x = F.relu(self.stem["bn"](self.stem["conv"](x)))
        for stage in (self.stage0, self.stage1, self.stage2):
            for block in stage.values():
                x = block(x)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class UNet(nn.Module):
    LEVELS = (32, 64, 128, 256, 512)

    def __init__(self, convolutions=2):
        super().__init__()
        inputs = 3
        for i, outputs in enumerate(self.LEVELS):
            setattr(self, f"enc{i}", self.level(inputs, outputs, convolutions))
            inputs = outputs
        for i in range(len(self.LEVELS) - 2, -1, -1):
            outputs = self.LEVELS[i]
            level = self.level(2 * outputs, outputs, convolutions)
            level["up"] = nn.ConvTranspose2d(inputs, outputs, 2, 2)
            setattr(self, f"dec{i}", level)
            inputs = outputs
        self.out = Conv(inputs, 3, 3, same=True)

    @staticmethod
    def level(inputs, outputs, convolutions):
        sizes = [inputs] + [outputs] * convolutions
        pairs = enumerate(zip(sizes, sizes[1:]), 1)
        return nn.ModuleDict({f"conv{i}": Conv(a, b, 3, same=True) for i, (a, b) in pairs})

    @staticmethod
    def convolve(level, x):
        for name, conv in level.items():
            x = F.relu(conv(x)) if name != "up" else x
        return x

    def forward(self, image):
        x, skips = image, []
        for i in range(len(self.LEVELS)):
            x = self.convolve(getattr(self, f"enc{i}"), F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for i in range(len(self.LEVELS) - 2, -1, -1):
            level = getattr(self, f"dec{i}")
            x = self.convolve(level, torch.cat([level["up"](x), skips[i]], 1))
        return torch.sigmoid(self.out(x) + image)


PARAMETERS = {ResNet29: 849_002, UNet: 7_760_931, X: 312_202, A: 1_285_194, B: 710_218, C: 1_460_938, D: 199_210, AE: 28_609, G: 1_554_179}


def load(network, path):
    """The network with the weights of a file, in evaluation mode; 16-bit weights are widened."""
    weights = {name.removeprefix("generator."): tensor.float() for name, tensor in load_file(Path(path)).items()}
    settings = {AE: lambda: [len(weights["enc1.weight"])], UNet: lambda: [1 + ("enc0.conv2.weight" in weights)]}
    model = network(*settings.get(network, list)())
    counters = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - counters or unexpected:
        raise SystemExit(f"{path}: weights {sorted(set(missing) - counters)} missing, {unexpected} too many")
    return model.eval().requires_grad_(False)


def main():
    for network, expected in PARAMETERS.items():
        weights = network().state_dict()
        count = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith("num_batches_tracked"))
        size = {G: [128], ResNet29: [3, 32, 32], UNet: [3, 32, 32]}.get(network, [1, 28, 28])
        shape = tuple(network().eval()(torch.zeros(2, *size)).shape)
        print(f"{network.__name__:>8}: {count} numbers, output {shape}")
        assert count == expected, f"{network.__name__} has {count}, the paper's {expected}"


if __name__ == "__main__":
    main()
