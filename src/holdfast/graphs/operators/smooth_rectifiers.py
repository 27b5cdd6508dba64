"""Smooth kin of the rectifier: ELU, SELU, CELU, softplus, SiLU, GELU, Mish."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.graphs.builder import Call, Ref, aten, onnx
from holdfast.graphs.curves import Curve
from holdfast.graphs.operators.scale import scale


@final
@dataclass(frozen=True, slots=True)
class Elu(Curve):
    """``z`` above zero, ``exp(z) - 1`` below: convex, with a continuous derivative."""

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return F.elu(xs[0])

    def derivative(self, z: Tensor) -> Tensor:
        """``min(exp(z), 1)``."""
        return z.clamp(max=0).exp()


@final
@dataclass(frozen=True, slots=True)
class Softplus(Curve):
    """``log(1 + exp(z))``: convex."""

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise, exact for large values."""
        return torch.logaddexp(xs[0], torch.zeros_like(xs[0]))

    def derivative(self, z: Tensor) -> Tensor:
        """The sigmoid."""
        return z.sigmoid()


@final
@dataclass(frozen=True, slots=True)
class SiLU(Curve):
    """``z sigmoid(z)``: concave, convex between the inflections, concave."""

    inflections: ClassVar[tuple[float, ...]] = (-2.3993572805154, 2.3993572805154)
    is_convex_first: ClassVar[bool] = False
    extrema: ClassVar[tuple[float, ...]] = (-1.2784645427610738,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return F.silu(xs[0])

    def derivative(self, z: Tensor) -> Tensor:
        """``s + z s (1 - s)``."""
        s = z.sigmoid()
        return s + z * s * (-z).sigmoid()


@final
@dataclass(frozen=True, slots=True)
class GELU(Curve):
    """``z Phi(z)``, normal distribution function: convex from ``-sqrt 2`` to ``sqrt 2``."""

    inflections: ClassVar[tuple[float, ...]] = (-math.sqrt(2), math.sqrt(2))
    is_convex_first: ClassVar[bool] = False
    extrema: ClassVar[tuple[float, ...]] = (-0.7517915246935645,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return F.gelu(xs[0])

    def derivative(self, z: Tensor) -> Tensor:
        """``Phi(z) + z phi(z)``."""
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return torch.special.ndtr(z) + z * density


@final
@dataclass(frozen=True, slots=True)
class TanhGELU(Curve):
    """``z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2``, convex between the inflections."""

    inflections: ClassVar[tuple[float, ...]] = (-1.4185040087908284, 1.4185040087908284)
    is_convex_first: ClassVar[bool] = False
    extrema: ClassVar[tuple[float, ...]] = (-0.7524614220710163,)

    def run(self, *xs: Tensor) -> Tensor:
        """Elementwise."""
        return F.gelu(xs[0], approximate="tanh")

    def derivative(self, z: Tensor) -> Tensor:
        """By the product rule."""
        root, cube = math.sqrt(2 / math.pi), 0.044715
        t = torch.tanh(root * (z + cube * z**3))
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * root * (1 + 3 * cube * z * z)


@onnx("Softplus", "Gelu")
@aten("softplus", "silu", "gelu")
def build(call: Call) -> Ref:
    """Elementwise, default parameters only."""
    name = call.name.lower()
    if name == "gelu":
        is_exact = call.attributes.get("approximate", "none") == "none"
        return call.emit(GELU() if is_exact else TanhGELU(), call.ref())
    if name == "silu":
        return call.emit(SiLU(), call.ref())
    beta = float(call.get(1, "beta", 1.0)) if not call.opset else 1.0
    if beta == 1.0:
        return call.emit(Softplus(), call.ref())
    return scale(call, call.emit(Softplus(), scale(call, call.ref(), beta, 0.0)), 1 / beta, 0.0)


@onnx("Mish")
@aten("mish")
def build_mish(call: Call) -> Ref:
    """``z tanh(softplus(z))``."""
    from holdfast.graphs.operators.product import multiply
    from holdfast.graphs.operators.sigmoid import Tanh

    return multiply(call, call.ref(), call.emit(Tanh(), call.emit(Softplus(), call.ref())))


@onnx("Elu", "Selu", "Celu")
@aten("elu", "selu", "celu")
def build_elu(call: Call) -> Ref:
    """``scale max(z, 0) + scale alpha min(exp(c z) - 1, 0)`` with ``alpha c = 1``."""
    alpha, factor, inner = 1.0, 1.0, 1.0
    if call.opset:
        alpha = float(
            call.attributes.get("alpha", 1.6732632423543772 if call.name == "Selu" else 1.0)
        )
        factor = (
            float(call.attributes.get("gamma", 1.0507009873554805)) if call.name == "Selu" else 1.0
        )
    elif call.name == "elu":
        alpha, factor, inner = (
            float(call.get(i + 1, n, 1.0)) for i, n in enumerate(("alpha", "scale", "input_scale"))
        )
    elif call.name == "selu":
        alpha, factor = 1.6732632423543772, 1.0507009873554805
    else:
        alpha = float(call.get(1, "alpha", 1.0))
    if call.name.lower() == "celu":
        out = call.emit(Elu(), scale(call, call.ref(), 1 / alpha, 0.0))
        return scale(call, out, alpha, 0.0)
    if inner != 1.0:
        raise call.error("input_scale other than 1 is not supported")
    out = _kinked(call, call.ref(), alpha)
    return out if factor == 1.0 else scale(call, out, factor, 0.0)


def _kinked(call: Call, ref: Ref, alpha: float) -> Ref:
    """``elu`` with any alpha: ``alpha elu(z) + (1 - alpha) relu(z)``."""
    from holdfast.graphs.operators.add import add
    from holdfast.graphs.operators.relu import relu

    smooth = call.emit(Elu(), ref)
    if alpha == 1.0:
        return smooth
    return add(
        call, scale(call, smooth, alpha, 0.0), scale(call, relu(call, ref), 1.0 - alpha, 0.0)
    )
