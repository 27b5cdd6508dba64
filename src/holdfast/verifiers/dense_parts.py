"""Rows of a dense form that read few neurons, seen alone.

An element of a convolution's output depends on a patch of the inputs and on the neurons within it.
Bounding it needs those columns only, and elements at one place share them.
"""
# ruff: noqa: N806 - W is the matrix of the literature

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.verifiers.dense import Dense, Layer

# Share of all columns from which on a part gains nothing over the whole.
WIDE = 0.5


class Part(NamedTuple):
    """Rows that read the same: their positions and the columns of inputs and undecided neurons."""

    rows: Tensor
    inputs: Tensor
    neurons: Tensor


def parts(net: Dense) -> list[tuple[Part, Dense]]:
    """All rows, those that read the same inputs together; one part where each reads much."""
    p, u = net.n_inputs, net.rows.shape[1] - net.n_inputs
    plain = _strided(net)
    reads = _reads(plain)
    if float(reads.float().mean()) > WIDE:
        return [(Part(torch.arange(len(reads)), torch.arange(p), torch.arange(u)), net)]
    _, group = torch.unique(reads[:, :p], dim=0, return_inverse=True)
    found = []
    for i in range(int(group.max()) + 1):
        rows = (group == i).nonzero().squeeze(1)
        columns = reads[rows].any(0)
        part = Part(rows, columns[:p].nonzero()[:, 0], columns[p:].nonzero()[:, 0])
        found.append((part, _restricted(plain, part)))
    return found


def _restricted(net: Dense, part: Part) -> Dense:
    """The part's rows over its columns alone."""
    layers = []
    for layer, (i, j) in zip(net.layers, net.spans(), strict=True):
        mine = part.neurons[(part.neurons >= i) & (part.neurons < j)] - i
        earlier = part.neurons[part.neurons < i]
        inputs = layer.inputs[mine][:, part.inputs].contiguous()
        W = layer.W[mine][:, earlier].contiguous()
        kept = layer.neurons[mine], inputs, inputs.T, W, layer.b[mine], layer.error[mine]
        layers.append(Layer(layer.node, layer.source, *kept))
    columns = torch.cat([part.inputs, part.neurons + net.n_inputs])
    return Dense(
        tuple(layers),
        net.rows[part.rows][:, columns],
        net.constants[part.rows],
        net.middle[part.inputs],
        net.radius[part.inputs],
        net.errors[part.rows],
    )


def _reads(net: Dense) -> Tensor:
    """Which columns each row depends on, directly or through neurons ``(c, p + u)``."""
    p, reads = net.n_inputs, net.rows != 0
    for layer, (i, j) in zip(reversed(net.layers), reversed(net.spans()), strict=True):
        through = reads[:, p + i : p + j].float()
        inputs = layer.inputs != 0
        reads[:, :p] |= (through @ inputs.float()) > 0
        reads[:, p : p + i] |= (through @ (layer.W != 0).float()) > 0
    return reads


def _strided(net: Dense) -> Dense:
    """The same without sparse matrices."""
    layers = []
    for layer in net.layers:
        inputs = layer.inputs.to_dense() if layer.inputs.layout != torch.strided else layer.inputs
        layers.append(replace(layer, inputs=inputs, turned=inputs.T))
    return replace(net, layers=tuple(layers))
