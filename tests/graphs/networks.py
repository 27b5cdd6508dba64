"""Small networks, one for every operator, with the shape of one input."""

import torch
from torch import nn
from torch.nn import functional as F


class Around(nn.Module):
    """An elementwise function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.before, self.function, self.after = nn.Linear(6, 8), function, nn.Linear(8, 4)

    def forward(self, x):
        return self.after(self.function(self.before(x)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2, -1)
        return (x + self.out(weights @ v)).mean(1)


class Recurrent(nn.Module):
    """A plain recurrent cell unrolled over the steps of the input."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.zeros_like(x[:, 0, :1]).expand(-1, 3)
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
        return self.out(h)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = (
            nn.Conv2d(2, 2, 3, 1, 1),
            nn.Conv2d(2, 2, 3, 1, 1),
            nn.Linear(32, 3),
        )

    def forward(self, x):
        return self.out(torch.relu(x + self.second(torch.relu(self.first(x)))).flatten(1))


ELEMENTWISE = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "prelu": nn.PReLU(8),
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda z: F.celu(z, 0.7),
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
    "log": lambda z: torch.log(z.square() + 1),
    "sqrt": lambda z: (z * z + 0.1).sqrt(),
    "reciprocal": lambda z: 1 / (z * z + 0.5),
    "cube": lambda z: z**3,
    "sin": torch.sin,
    "cos": torch.cos,
    "abs": torch.abs,
    "sign": torch.sign,
    "floor": lambda z: torch.floor(3 * z),
    "round": torch.round,
    "clamp": lambda z: z.clamp(-0.3, 0.4),
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softmax": lambda z: F.softmax(z, -1),
    "log_softmax": lambda z: F.log_softmax(z, -1),
    "product": lambda z: z * z.flip(-1),
    "maximum": lambda z: torch.maximum(z, z.flip(-1)),
    "minimum": lambda z: torch.minimum(z, z.flip(-1)),
    "layer_norm": nn.LayerNorm(8),
    "batch_norm": nn.BatchNorm1d(8),
    "amax": lambda z: z - z.amax(-1, keepdim=True),
    "subtract_constant": lambda z: 1 - 2 * z,
}

SHAPED = {
    "conv1d": (
        nn.Sequential(nn.Conv1d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv1d(3, 4, 3, dilation=2)),
        (2, 16),
    ),
    "conv2d": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2)
        ),
        (2, 7, 6),
    ),
    "conv3d": (
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)),
        (1, 4, 4, 4),
    ),
    "conv_transpose": (
        nn.Sequential(
            nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3)
        ),
        (2, 4, 4),
    ),
    "max_pool": (
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
        ),
        (1, 7, 7),
    ),
    "max_pool_ceil": (
        nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(1, 1, 2)),
        (1, 5, 5),
    ),
    "avg_pool": (
        nn.Sequential(nn.AvgPool2d(2, 2, 1, count_include_pad=False), nn.ReLU()),
        (1, 6, 6),
    ),
    "adaptive_avg_pool": (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        (1, 6, 6),
    ),
    "upsample": (
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 2, 3), nn.ReLU()),
        (1, 4, 4),
    ),
    "padding": (
        nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ZeroPad2d((1, 0, 2, 1))
        ),
        (1, 4, 4),
    ),
    "group_norm": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), (2, 5, 5)),
    "attention": (Attention(), (3, 4)),
    "recurrent": (Recurrent(), (4, 2)),
    "residual": (Residual(), (2, 4, 4)),
}


def network(name):
    """The network of an operator in evaluation mode with seeded weights, and its input shape."""
    torch.manual_seed(sum(map(ord, name)))
    module, shape = (Around(ELEMENTWISE[name]), (6,)) if name in ELEMENTWISE else SHAPED[name]
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module.eval(), shape


NAMES = [*ELEMENTWISE, *SHAPED]
