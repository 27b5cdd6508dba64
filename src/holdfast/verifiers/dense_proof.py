"""Bounds of the dense form that hold with all rounding errors.

The chain of inequalities is that of ``dense.backward``. What rounding does to it is paid for:

* A neuron's affine map is known up to ``Layer.error``, which a coefficient ``v`` of it multiplies.
* A rounded product ``v = a s`` with ``0 <= s <= 1`` lies between 0 and ``a``, and any such ``v`` is
  the slope of a valid line: below, ``v z``; above, ``v z + max(-v l, u (a - v))`` for ``a > 0``.
* Sums of up to ``n`` terms are off by ``n eps`` of the sum of their magnitudes, and coefficients
  that are off multiply inputs and neurons no larger than their boxes.
"""
# ruff: noqa: N806 - A and W are the matrices of the literature

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.verifiers.dense import Dense, Layer


def least(
    net: Dense,
    rows: Tensor,
    box: tuple[Tensor, Tensor],
    sign: Tensor,
    alpha: Tensor,
    beta: Tensor,
) -> Tensor:
    """Lower bounds ``(n,)`` of rows on domains.

    Args:
        net: The network in float64, condensed with regard to rounding.
        rows: Row of each domain ``(n,)``.
        box: Bounds of the undecided neurons on the whole box ``(u,)``.
        sign: Splits ``(n, u)``: 1 where ``z >= 0``, -1 where ``z <= 0``, else 0.
        alpha: Lower slopes in [0, 1] ``(n, u)``.
        beta: Multipliers >= 0 of the splits ``(n, u)``.
    """
    p, A = net.n_inputs, net.rows[rows]
    most = torch.cat([net.middle.abs() + net.radius, box[1].clamp(min=0)])
    value, error = net.constants[rows], net.errors[rows]
    size = value.abs() + A.abs() @ most
    for layer, (i, j) in zip(reversed(net.layers), reversed(net.spans()), strict=True):
        ends = box[0][i:j], box[1][i:j]
        v, lost, lines = _substituted(
            A[:, p + i : p + j], ends, sign[:, i:j], alpha[:, i:j], beta[:, i:j]
        )
        value = value - lost + v @ layer.b
        size = size + lines + v.abs() @ _magnitude(layer, most[:p], most[p : p + i])
        error = error + v.abs() @ layer.error
        layer.pull(v, A[:, :p], A[:, p : p + i])
    inputs = A[:, :p]
    value = value + inputs @ net.middle - inputs.abs() @ net.radius
    size = size + inputs.abs() @ most[:p]
    unit = 4 * (len(most) + 64) * torch.finfo(A.dtype).eps
    return value - 2 * error - unit * size


def _substituted(
    a: Tensor, ends: tuple[Tensor, Tensor], sign: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of the neurons' inputs, what their lines lose, and the size of those terms."""
    low, high = (t.expand_as(a) for t in ends)
    loose = (low < 0) & (high > 0) & (sign == 0)
    active = (sign > 0) | ((sign == 0) & (low >= 0))
    slope = torch.where(a >= 0, alpha.clamp(0.0, 1.0), (high / (high - low)).clamp(0.0, 1.0))
    v = torch.where(loose, a * slope, torch.where(active, a, 0.0))
    above = loose & (a < 0)
    lost = torch.where(above, torch.maximum(v * low, high * (v - a)), 0.0).sum(1)
    terms = torch.where(above, (v * low).abs() + high.abs() * (v.abs() + a.abs()), 0.0).sum(1)
    return v - sign * beta.clamp(min=0.0), lost, terms


def _magnitude(layer: Layer, inputs: Tensor, earlier: Tensor) -> Tensor:
    """Sums of the magnitudes of a neuron's terms over the box ``(u,)``."""
    dense = layer.inputs if layer.inputs.layout == torch.strided else layer.inputs.to_dense()
    return dense.abs() @ inputs + layer.W.abs() @ earlier + layer.b.abs()
