"""Planes over the input for rectifiers that read it: sound, tight at corners, and of use."""

# ruff: noqa: N806 - A and D are the matrices of the literature

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import activation_split, hull
from holdfast.verifiers.bounds import lower_over
from holdfast.verifiers.certify import certify
from holdfast.verifiers.crown import pull_back
from holdfast.verifiers.domains import Shifted
from holdfast.verifiers.hull import Row, read_rectifiers, rows_of, tightened
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion
from holdfast.verifiers.verify import verify


def network(kind: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    if kind == "dense":
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1)), (5,)
    if kind == "deep":
        layers = (nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
        return nn.Sequential(*layers), (5,)
    first = nn.Conv2d(1, 4, 2, stride=1, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 1)), (
        1,
        3,
        3,
    )


def made(kind: str, seed: int, width: float = 0.5):
    module, shape = network(kind, seed)
    graph = capture(module, torch.zeros(1, *shape), fold=False).to(torch.float64)
    middle = torch.randn(1, *shape, dtype=torch.float64)
    region = BoxRegion(middle - width, middle + width)
    state = propagate(graph, region)
    readings = read_rectifiers(graph, state)
    A = torch.ones(1, 1, 1, dtype=torch.float64)
    watch = frozenset(r.node for r in readings)
    bound = pull_back(graph, len(graph.nodes) - 1, A, state, watch=watch)
    shifted = Shifted(region, None, torch.zeros(1, 1, dtype=torch.float64))
    (row,) = rows_of(graph, state, bound, shifted, readings, {})
    plain = float((region.minimum(bound.A) + bound.constant)[0, 0])
    return graph, region, readings, row, plain


def shifted_by(row: Row, constant: float) -> Row:
    return row._replace(constant=row.constant + constant)


@pytest.mark.parametrize("kind", ["dense", "deep", "convolution"])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_hold_and_are_no_worse(kind: str, seed: int):
    graph, _, readings, row, plain = made(kind, seed)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(row.lower))))
    share = torch.cat([corners.double(), torch.rand(2000, len(row.lower), dtype=torch.float64)])
    x = row.lower + share * (row.upper - row.lower)
    least = float(graph(x.reshape(-1, *graph.input_shape)).min())
    # Moved down so that neither stop comes early: neither is it proven, nor out of reach.
    for offset in (0.0, -plain, -least, -(plain + least) / 2):
        found = tightened(shifted_by(row, offset), readings)
        assert found <= least + offset
        assert found >= plain + offset - 1e-6
    if kind != "deep":
        found = [tightened(shifted_by(row, -t), readings) + t for t in np.linspace(plain, least, 9)]
        assert max(found) > plain + 0.5 * (least - plain)


def test_one_rectifier_is_bounded_exactly():
    """``-max(x + y - 1.5, 0)`` on the unit square is -0.5 at least; its chord goes through too."""
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.fill_(-1.5)
        module[2].weight.fill_(-1.0)
        module[2].bias.fill_(0.0)
    graph = capture(module, torch.zeros(1, 2), fold=False).to(torch.float64)
    # With a term that draws x to (1, 0) the chord loses a quarter, the planes nothing.
    D = torch.tensor([[[-0.6, 0.6]]], dtype=torch.float64)
    region = BoxRegion(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    state = propagate(graph, region)
    readings = read_rectifiers(graph, state)
    assert (readings[0].weight.tolist(), readings[0].bias.tolist()) == ([[1.0, 1.0]], [-1.5])
    watch = frozenset({readings[0].node})
    bound = pull_back(graph, 3, torch.ones(1, 1, 1).double(), state, watch=watch)
    for offset, wanted in ((0.6 + 1e-6, True), (0.6 - 1e-6, False)):
        shifted = Shifted(region, D, torch.full((1, 1), offset).double())
        (row,) = rows_of(graph, state, bound, shifted, readings, {})
        assert float((shifted.minimum(bound.A) + bound.constant)[0, 0]) < -0.1
        assert (tightened(row, readings) > 0) == wanted


def test_rounding_is_charged(monkeypatch):
    _, region, readings, row, plain = made("dense", 1)
    row = shifted_by(row, -plain - 100.0)
    free = tightened(row, readings)
    with monkeypatch.context() as patch:
        patch.setattr(hull, "_charge", lambda row, *_: torch.zeros_like(row.constant))
        bare = tightened(row, readings)
    largest = torch.maximum(region.lower.abs(), region.upper.abs()).flatten()
    size = float((row.A.abs() * largest).sum() + row.constant.abs())
    assert len(row.A) * torch.finfo(torch.float64).eps * size < bare - free < 1e-7


def test_errors_of_what_is_read_are_charged():
    _, _, readings, row, plain = made("dense", 1)
    row = shifted_by(row, -plain - 100.0)
    wrong = [replace(r, error=torch.full_like(r.error, 0.01)) for r in readings]
    by = sum(float(after.abs().sum()) for after in row.after) * 0.01
    assert tightened(row, wrong) == pytest.approx(tightened(row, readings) - 2 * by, abs=1e-9)


def exact_affine(layer: nn.Linear, x: list[Fraction]) -> list[Fraction]:
    rows = layer.weight.detach().double().tolist(), layer.bias.detach().double().tolist()
    return [sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) + Fraction(b)
            for row, b in zip(*rows, strict=True)]  # fmt: skip


def test_what_is_read_is_within_its_error():
    """Of the exact affine functions, whose products of two layers float64 has to round."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 12), nn.Linear(12, 8)
    module = nn.Sequential(first, second, nn.ReLU(), nn.Linear(8, 1))
    graph = capture(module, torch.zeros(1, 4), fold=False).to(torch.float64)
    region = BoxRegion(-torch.ones(1, 4).double(), torch.ones(1, 4).double())
    (reading,) = read_rectifiers(graph, propagate(graph, region))
    worst = 0.0
    for corner in itertools.product((-1, 1), repeat=4):
        x = [Fraction(v) for v in corner]
        z = exact_affine(second, exact_affine(first, x))
        for j, neuron in enumerate(reading.neuron.tolist()):
            index, weight = reading.index[j].tolist(), reading.weight[j].tolist()
            read = sum(Fraction(w) * x[i] for i, w in zip(index, weight, strict=True))
            gap = abs(z[neuron] - read - Fraction(float(reading.bias[j])))
            assert gap <= Fraction(float(reading.error[j]))
            worst = max(worst, float(gap))
    assert worst > 0


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_bounds_of_several_rows_are_lifted_where_they_are_not_positive(kind: str):
    graph, region, *_ = made(kind, 5)
    rows = torch.tensor([[[1.0], [-1.0], [0.0]]], dtype=torch.float64)
    plain, _ = lower_over(graph, region, rows, "alpha-crown")
    planes, _ = lower_over(graph, region, rows, "alpha-crown", planes=True)
    share = torch.rand(4000, *graph.input_shape, dtype=torch.float64).round()
    y = graph(region.lower + share * (region.upper - region.lower))
    least = torch.stack([y.min(), (-y).min(), torch.zeros_like(y).min()])
    assert (planes[0] <= least).all()
    assert (planes >= plain).all()
    low = plain[0] <= 0
    assert (planes[0] > plain[0])[low & (least > 0)].all()
    assert torch.equal(planes[0, ~low], plain[0, ~low])


def test_an_open_sample_is_certified_by_planes(monkeypatch):
    """A margin between the bound by slopes and the true one is proven without branching."""
    graph, region, *_ = made("dense", 1, width=0.25)
    x = (region.lower + region.upper) / 2
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5))).double()
    y = graph(region.lower + corners * (region.upper - region.lower))
    slopes = float(lower_over(graph, region, torch.ones(1, 1, 1).double(), "alpha-crown")[0])
    assert slopes < float(y.min()) - 1e-3
    last = graph.nodes[-1]
    bias = last.op.bias - (0.2 * slopes + 0.8 * float(y.min()))
    nodes = (*graph.nodes[:-1], replace(last, op=replace(last.op, bias=bias)))
    moved = replace(graph, nodes=nodes)
    label = torch.ones(1, dtype=torch.long)
    (found,) = certify(moved, x, label, 0.25, effort="standard", domain=(-9.0, 9.0))
    assert (found.status, found.margin > 0) == ("unsat", True)
    monkeypatch.setattr("holdfast.verifiers.bounds.lifted", lambda *args: args[-1])
    (found,) = certify(moved, x, label, 0.25, effort="standard", domain=(-9.0, 9.0))
    assert found.status == "unknown"


def test_too_large_layers_are_left_alone(monkeypatch):
    graph, region, readings, *_ = made("convolution", 0)
    state = propagate(graph, region)
    entries = readings[0].weight.numel()
    monkeypatch.setattr(hull, "MOST_ENTRIES", entries)
    assert read_rectifiers(graph, state)
    monkeypatch.setattr(hull, "MOST_ENTRIES", entries - 1)
    assert not read_rectifiers(graph, state)
    monkeypatch.undo()
    monkeypatch.setattr(hull, "_read", lambda *_: pytest.fail("it is read"))
    monkeypatch.setattr(hull, "MOST_READ", 36 * len(readings[0].neuron) - 1)
    assert not read_rectifiers(graph, state)


def test_neurons_behind_others_are_not_read():
    graph, *_ = made("deep", 0)
    state = propagate(graph, BoxRegion(-torch.ones(1, 5).double(), torch.ones(1, 5).double()))
    assert {r.node for r in read_rectifiers(graph, state)} == {2}


def test_a_wide_pooled_network_is_decided_at_its_root():
    """The smallest output over a box of 9 inputs, from a pooled convolution, needs no cut."""
    graph, region, _, _, plain = made("convolution", 3, width=0.3)
    n = 20000
    x = region.lower + (region.upper - region.lower) * torch.rand(n, 1, 3, 3).double().round()
    least = float(graph(x).min())
    limit = least - 0.25 * (least - plain)
    clause = Clause(
        region.lower.flatten().numpy(), region.upper.flatten().numpy(),
        np.ones((1, 1)), np.array([-limit]),
    )  # fmt: skip
    verdict = verify(graph, Property((clause,)), timeout_s=20.0)
    assert verdict.status == "unsat"


def test_nothing_is_bounded_again_once_the_time_is_up(monkeypatch):
    monkeypatch.setattr(activation_split, "_refresh", lambda *_: pytest.fail("it is"))
    tree: Any = SimpleNamespace(search=SimpleNamespace(is_over=lambda: True))
    domains: Any = [SimpleNamespace(value=-1.0), SimpleNamespace(value=-2.0)]
    assert activation_split._narrow(tree, domains) == domains
