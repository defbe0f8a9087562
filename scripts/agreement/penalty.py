"""The gradient penalty of DefenseGAN's critic by PyTorch's double backward, in f64: the figures that the test
`the_penalty_is_torchs` (plugins/purifiers/defense_gan/src/critic.rs) holds.

    python penalty.py
"""

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def numbers(shape, pace, scale):
    """`scale sin(pace i)` for the i-th element."""
    count = torch.tensor(shape).prod().item()
    return (scale * torch.sin(pace * torch.arange(count))).reshape(shape)


SHAPES = [(64, 1, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (1, 4096)]
WEIGHTS = [numbers(shape, 0.7 + 0.1 * i, scale) for i, (shape, scale) in enumerate(zip(SHAPES, [0.4, 0.15, 0.1, 0.4]))]
BIASES = [numbers(shape[:1], 0.3, 0.1) for shape in SHAPES]


def same(x):
    """Zeros as TensorFlow's SAME has them, for 5 x 5 and stride 2."""
    size = x.shape[-1]
    total = (-(-size // 2) - 1) * 2 + 5 - size
    return F.pad(x, (total // 2, total - total // 2) * 2)


def critic(x):
    for weight, bias in zip(WEIGHTS[:-1], BIASES):
        x = F.leaky_relu(F.conv2d(same(x), weight, bias, stride=2), 0.2)
    return F.linear(x.flatten(1), WEIGHTS[-1], BIASES[-1])


for weight in WEIGHTS:
    weight.requires_grad_()
x = (0.5 + numbers((3, 1, 28, 28), 0.9, 0.5)).requires_grad_()
(gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
penalty = 10 * ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
penalty.backward()
print("penalty", penalty.item())
for weight in WEIGHTS:
    print(tuple(weight.shape), (weight.grad * numbers(weight.shape, 0.4, 1.0)).sum().item())
