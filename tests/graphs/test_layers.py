"""Layers and functions of torch that are taken apart, unrolled or resampled: same values, sound."""

from __future__ import annotations

import pytest
import torch
from networks import Around
from torch import nn
from torch.nn import functional as F

from holdfast.errors import GraphError, UnsupportedOperatorError
from holdfast.graphs.operator import Box
from holdfast.graphs.operators.arcs import Arctangent, HyperbolicCosine, HyperbolicSine
from holdfast.graphs.operators.power import ConcavePower, ConvexPower, EvenPower, OddPower, Sqrt
from holdfast.graphs.operators.smooth_rectifiers import TanhGELU
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.bounds import bounds

MASK = torch.arange(8) > 4
FUNCTIONS = {
    "rrelu": F.rrelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "softshrink": lambda z: F.softshrink(z, 0.3),
    "hardshrink": lambda z: F.hardshrink(z, 0.3),
    "threshold": lambda z: F.threshold(z, 0.1, -0.2),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "log_sigmoid": F.logsigmoid,
    "glu": F.glu,
    "rms_norm": nn.RMSNorm(8),
    "power 1.5": lambda z: (z * z + 0.1) ** 1.5,
    "power 0.75": lambda z: (z * z + 0.1) ** 0.75,
    "power 5": lambda z: z**5,
    "power 6": lambda z: z**6,
    "heaviside": lambda z: torch.heaviside(z, torch.tensor(0.5).to(z)) + 0.1 * z,
    "trunc": lambda z: torch.trunc(3 * z),
    "frac": torch.frac,
    "expm1": torch.expm1,
    "log1p": lambda z: torch.log1p(z.abs()),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "atan": torch.atan,
    "prod": lambda z: (z + 1).prod(1, keepdim=True).expand(-1, 8),
    "cumsum": lambda z: z.reshape(-1, 2, 4).cumsum(1).flatten(1),
    "max": lambda z: z - z.max(1, keepdim=True).values,
    "min": lambda z: z - z.min(1)[0].unsqueeze(1),
    "std": lambda z: z / (z.std(1, keepdim=True) + 1),
    "norm": lambda z: z - z.norm(dim=1, keepdim=True),
    "norm 1": lambda z: z - z.norm(p=1, dim=1, keepdim=True),
    "norm inf": lambda z: z - torch.linalg.vector_norm(z, torch.inf, 1, keepdim=True),
    "cosine": lambda z: z * F.cosine_similarity(z, z.flip(1) + 2, dim=1).unsqueeze(1),
    "where": lambda z: torch.where(z > 0, z, -0.5 * z),
    "where constant": lambda z: torch.where(MASK, z, z.flip(1) - 1),
    "where numbers": lambda z: torch.where(z.flip(1) >= 0.1, 1.0, z),
    "compare two": lambda z: z * (z >= z.flip(1)),
    "less": lambda z: (z < 0.1) * z + (z.flip(1) <= -0.2) * 0.5,
    "equal": lambda z: (torch.round(z) == 0) + (torch.round(z) != 1) * z,
    "logic": lambda z: ((z > 0) & (z < 0.5)) + 2 * ((z > 0.2) | ~(z.flip(1) > 0)) + z,
    "masked_fill": lambda z: z.masked_fill(MASK, 0.5),
    "masked_fill open": lambda z: z.masked_fill(z > 0.3, 0.3),
    "tril": lambda z: z.reshape(-1, 2, 4).tril().flatten(1),
    "index": lambda z: z[:, [3, 1, 2, 0, 7, 5, 6, 6]],
    "gather": lambda z: z.gather(1, torch.tensor([[1, 0]]).expand(len(z), -1)).repeat(1, 4),
    "lerp": lambda z: torch.lerp(z, z.flip(1), 0.3),
    "addcmul": lambda z: torch.addcmul(z, z, z.flip(1)),
    "einsum": lambda z: torch.einsum("ni,ij->nj", z, torch.ones(8, 8).tril().to(z)),
    "einsum two": lambda z: (
        torch.einsum("nij,nkj->nik", *[z.reshape(-1, 2, 4)] * 2).flatten(1).repeat(1, 2)
    ),
    "outer": lambda z: torch.einsum("ni,nj->nij", z[:, :4], z[:, 4:6]).flatten(1),
    "attend": lambda z: F.scaled_dot_product_attention(*[z.reshape(-1, 1, 2, 4)] * 3).flatten(1),
    "attend causal": lambda z: (
        F.scaled_dot_product_attention(*[z.reshape(-1, 1, 2, 4)] * 3, is_causal=True).flatten(1)
    ),
    "attend masked": lambda z: (
        F.scaled_dot_product_attention(
            *[z.reshape(-1, 1, 2, 4)] * 3, attn_mask=torch.tensor([[0.5, -torch.inf], [0.0, 1.0]])
        ).flatten(1)
    ),
}  # fmt: skip


class First(nn.Module):
    """The first of a layer's results."""

    def __init__(self, layer, *more):
        super().__init__()
        self.layer, self.more = layer, more

    def forward(self, x):
        out = self.layer(x, *(x for _ in self.more))
        return out[0] if isinstance(out, tuple) else out


class Masked(nn.Module):
    """Attention through a mask, shared by all samples."""

    def __init__(self, layer, mask):
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask)

    def forward(self, x):
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(x, x, x, attn_mask=self.mask, need_weights=False)[0]
        return self.layer(x, src_mask=self.mask)


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        first = self.cell(x[:, 0])
        second = self.cell(x[:, 1], first)
        return second[0] if isinstance(second, tuple) else second


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(4, 4, 3)

    def forward(self, x):
        return self.layer(x[:, 0], x[:, 1])


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(4, 3, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x)[1][-1]


def on_images(*layers, channels=2, size=5):
    return nn.Sequential(nn.Conv2d(2, channels, 2), *layers), (2, size, size)


STEPS = (3, 4)
LAYERS = {
    "multi-head attention": (First(nn.MultiheadAttention(4, 2, batch_first=True), 1, 2), STEPS),
    "transformer layer": (
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.3, norm_first=True),
        STEPS,
    ),
    "attention, shut out": (
        Masked(nn.MultiheadAttention(4, 2, batch_first=True), torch.ones(3, 3).triu(1).bool()),
        STEPS,
    ),
    "attention, other keys": (
        Masked(
            nn.MultiheadAttention(4, 2, bias=False, batch_first=True, kdim=4, vdim=4),
            torch.tensor([[0.0, 0.5, -1.0], [0.0, 0.0, -torch.inf], [1.0, 0.0, 0.0]]),
        ),
        STEPS,
    ),
    "transformer layer, causal": (
        Masked(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            nn.Transformer.generate_square_subsequent_mask(3),
        ),
        STEPS,
    ),
    "rnn": (First(nn.RNN(4, 3, batch_first=True)), STEPS),
    "rnn relu": (First(nn.RNN(4, 3, batch_first=True, nonlinearity="relu", bias=False)), STEPS),
    "lstm": (First(nn.LSTM(4, 3, batch_first=True)), STEPS),
    "lstm both ways": (First(nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True)), STEPS),
    "gru": (First(nn.GRU(4, 3, batch_first=True)), STEPS),
    "gru's last state": (LastState(), STEPS),
    "rnn cell": (Cell(nn.RNNCell(4, 3)), STEPS),
    "lstm cell": (Cell(nn.LSTMCell(4, 3)), STEPS),
    "gru cell": (Cell(nn.GRUCell(4, 3)), STEPS),
    "bilinear": (Both(), STEPS),
    "bilinear upsampling": on_images(nn.Upsample(scale_factor=2, mode="bilinear")),
    "corners": on_images(nn.Upsample(size=(3, 7), mode="bilinear", align_corners=True)),
    "bicubic upsampling": on_images(nn.Upsample(scale_factor=1.5, mode="bicubic")),
    "adaptive average": on_images(nn.AdaptiveAvgPool2d(3)),
    "adaptive maximum": on_images(nn.AdaptiveMaxPool2d(3)),
    "adaptive maximum, even": on_images(nn.AdaptiveMaxPool2d(2)),
    "average to the end": on_images(nn.AvgPool2d(3, 2, 1, ceil_mode=True), size=7),
    "average of what is there": on_images(
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), size=7
    ),
    "same": on_images(nn.Conv2d(2, 2, 4, padding="same")),
    "circular": on_images(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
    "unfold": on_images(nn.Unfold(2, padding=1)),
    "channel shuffle": on_images(nn.ChannelShuffle(2), channels=4),
    "response norm": on_images(nn.LocalResponseNorm(2)),
}


def built(name):
    torch.manual_seed(len(name))
    if name in FUNCTIONS:
        module, shape = Around(FUNCTIONS[name]), (6,)
        if name == "glu":
            module.after = nn.Linear(4, 4)
    else:
        module, shape = LAYERS[name]
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module.eval(), shape


@pytest.mark.parametrize("name", [*FUNCTIONS, *LAYERS])
def test_layers_run_as_in_torch_and_are_bounded(name):
    module, shape = built(name)
    x = torch.rand(2, *shape)
    graph = capture(module, x)
    noise = torch.empty(150, *x.shape, dtype=torch.double).uniform_(-0.1, 0.1)
    noise[:50] = noise[:50].sign() * 0.1
    points = (x + noise).clamp(0, 1).flatten(0, 1)
    with torch.no_grad():
        z, expected = graph.to(torch.float32)(points.float()), module(points.float())
        differs = ((z - expected).abs() > 1e-5 + 1e-4 * expected.abs()).flatten(1).any(1)
        assert differs.float().mean() < 0.01  # jumps may fall either way
        z = graph.to(torch.float64)(points).reshape(150, 2, -1)
    for method in ("ibp", "crown"):
        found = bounds(graph, x, 0.1, "linf", method=method)
        assert (found.lower <= z.amin(0) + 1e-9).all(), method
        assert (found.upper >= z.amax(0) - 1e-9).all(), method
        assert found.upper.isfinite().all()
        assert found.lower.isfinite().all()


CURVES = [
    TanhGELU(),
    Arctangent(),
    HyperbolicSine(),
    HyperbolicCosine(),
    EvenPower(6),
    OddPower(5),
    ConvexPower(2.5),
    ConvexPower(-0.3),
    ConcavePower(0.4),
    Sqrt(),
]


@pytest.mark.parametrize("curve", CURVES, ids=repr)
def test_curves_stay_between_their_lines_and_within_their_interval(curve):
    rng = torch.Generator().manual_seed(0)
    low = 2 * torch.randn(1, 1, 300, generator=rng, dtype=torch.float64)
    if isinstance(curve, (ConvexPower, ConcavePower, Sqrt)):
        low = low.abs()
        if getattr(curve, "reaches_zero", False):
            low[..., ::3] = 0.0
    high = low + 3 * torch.rand(low.shape, generator=rng, dtype=torch.float64) ** 2
    z = low + (high - low) * torch.linspace(0, 1, 101, dtype=torch.float64).reshape(-1, 1, 1, 1)
    box, value = curve.interval(Box(low, high)), curve.run(z)
    slack = 1e-12 * value.abs().amax(0)
    assert (box.lower - slack <= value).all()
    assert (box.upper + slack >= value).all()
    for parameters in (None, torch.rand(2, 1, 1, 300, generator=rng, dtype=torch.float64)):
        lines = curve.relax(low, high, parameters)
        assert (lines.lower_slope * z + lines.lower_intercept <= value + slack + 1e-12).all()
        assert (lines.upper_slope * z + lines.upper_intercept >= value - slack - 1e-12).all()


def test_nothing_is_said_of_roots_of_negative_numbers():
    box = Box(torch.tensor([[-0.1, 0.0]]), torch.tensor([[1.0, 1.0]]))
    for curve in (Sqrt(), ConcavePower(0.3)):
        found = curve.interval(box)
        assert found.lower.tolist() == [[-torch.inf, 0.0]]
        assert found.upper.tolist() == [[torch.inf, 1.0]]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: z.sort(1).values, "operator 'sort' at 'sort' is not supported"),
        (lambda z: z.gather(1, (z > 0).long()), "operator 'gather' at 'gather' cannot be read"),
        (lambda z: z - z.max(), "'max' at 'max_1': the largest of a whole batch mixes samples"),
        (lambda z: torch.einsum("ni->in", z).reshape(1, 8), "keep the batch in front"),
    ],
)
def test_what_has_no_bounds_is_named(function, message):
    with pytest.raises((GraphError, UnsupportedOperatorError), match=message):
        capture(Around(function).eval(), torch.rand(1, 6))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (First(nn.MultiheadAttention(4, 2), 1, 2), "batch_first=False is not supported"),
        (First(nn.LSTM(4, 3)), "use batch_first=True"),
        (First(nn.LSTM(4, 3, batch_first=True, proj_size=2)), "proj_size"),
    ],
)
def test_options_of_layers_that_have_no_bounds_are_named(layer, message):
    with pytest.raises(GraphError, match=message):
        capture(layer.eval(), torch.rand(1, 3, 4))
    assert nn.MultiheadAttention.forward.__module__.startswith("torch")
