"""Bounds of the dense form with rounding errors, and rows seen with their own columns alone."""
# ruff: noqa: N806 - A, C and W are the matrices of the literature

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import dense_proof
from holdfast.verifiers.dense import DenseLines, backward, condense, evaluate
from holdfast.verifiers.dense_parts import parts
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.regions import BoxRegion


def setting(net, x, width):
    """Graph, region, dense form of the logits in float64, bounds of undecided neurons."""
    graph = capture(net.eval(), x, fold=False).to(torch.float64)
    region = BoxRegion(x.double() - width, x.double() + width)
    state = propagate(graph, region)
    m = graph.nodes[-1].size
    box = region.lower.flatten(), region.upper.flatten()
    C = torch.eye(m, dtype=torch.float64)
    found = condense(graph, state, torch.cat([C, -C]), None, torch.zeros(2 * m).double(), box)
    assert found is not None
    low, high = (
        torch.cat([state.boxes[k.source][side].flatten()[k.neurons] for k in found.layers])
        for side in (0, 1)
    )
    return graph, region, found, (low, high)


def convolutional(width=0.2):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 2, 2, 2), nn.ReLU(), nn.Conv2d(2, 2, 2, 2)
    )
    return setting(net, torch.rand(1, 1, 16, 16), width)


def flat(sizes=(4, 12, 12, 3)):
    torch.manual_seed(1)
    layers = [k for a, b in itertools.pairwise(sizes) for k in (nn.Linear(a, b), nn.ReLU())]
    return setting(nn.Sequential(*layers[:-1]), torch.rand(1, sizes[0]), 0.5)


def choices(ends, n):
    u = len(ends[0])
    sign = torch.randint(-4, 5, (n, u)).double()
    sign = torch.where(sign.abs() == 4, sign.sign(), 0.0)
    return sign, torch.rand(n, u).double(), torch.rand(n, u).double() * (sign != 0)


def test_it_is_the_bound_of_the_search_up_to_rounding():
    _, _, net, ends = flat()
    sign, alpha, beta = choices(ends, 60)
    rows = torch.arange(60) % len(net.rows)
    lines = DenseLines.of(ends[0].expand(60, -1), ends[1].expand(60, -1), sign)
    value, _ = backward(net, rows, lines, alpha, beta)
    proven = dense_proof.least(net, rows, ends, sign, alpha, beta)
    assert bool((proven <= value).all())
    torch.testing.assert_close(proven, value, atol=1e-9, rtol=0)


def exact_sum(v, w):
    return sum(Fraction(a) * Fraction(b) for a, b in zip(v, w, strict=True))


def exact_bound(net, row, ends, sign, alpha, beta):
    """The same chain in rational numbers, with the coefficients as they are stored."""
    p, A = net.n_inputs, [Fraction(c) for c in net.rows[row].tolist()]
    value = Fraction(float(net.constants[row]))
    for layer, (i, j) in zip(reversed(net.layers), reversed(net.spans()), strict=True):
        v = []
        for k in range(i, j):
            a, low, high = A[p + k], Fraction(float(ends[0][k])), Fraction(float(ends[1][k]))
            if sign[k] == 0 and low < 0 < high:
                s = Fraction(float(alpha[k])) if a >= 0 else high / (high - low)
                value += 0 if a >= 0 else -a * s * low
            else:
                s = int(sign[k] > 0 or (sign[k] == 0 and low >= 0))
            v.append(a * s - int(sign[k]) * Fraction(float(beta[k])))
        value += exact_sum(v, layer.b.tolist())
        for t in range(p):
            A[t] += exact_sum(v, layer.inputs[:, t].tolist())
        for t in range(i):
            A[p + t] += exact_sum(v, layer.W[:, t].tolist())
    for c, low, high in zip(
        A[:p], (net.middle - net.radius).tolist(), (net.middle + net.radius).tolist(), strict=True
    ):
        value += min(c * Fraction(low), c * Fraction(high))
    return value


def test_rounding_never_lifts_it_above_the_exact_value():
    _, _, net, ends = flat()
    sign, alpha, beta = choices(ends, 40)
    rows = torch.arange(40) % len(net.rows)
    exact = [exact_bound(net, r, ends, *c) for r, *c in zip(rows, sign, alpha, beta, strict=True)]
    proven = dense_proof.least(net, rows, ends, sign, alpha, beta).tolist()
    assert all(Fraction(v) <= e for v, e in zip(proven, exact, strict=True))
    # Without what it pays for rounding, some of them do lie above.
    lines = DenseLines.of(ends[0].expand(40, -1), ends[1].expand(40, -1), sign)
    plain, _ = backward(net, rows, lines, alpha, beta)
    assert any(Fraction(v) > e for v, e in zip(plain.tolist(), exact, strict=True))


def test_the_sums_of_the_pass_itself_are_charged():
    """Coefficients that are as stored leave only the rounding of the pass."""
    _, _, net, ends = flat()
    net = with_errors(net, 0.0)
    sign, alpha, beta = choices(ends, 40)
    rows = torch.arange(40) % len(net.rows)
    exact = [exact_bound(net, r, ends, *c) for r, *c in zip(rows, sign, alpha, beta, strict=True)]
    proven = dense_proof.least(net, rows, ends, sign, alpha, beta).tolist()
    assert all(Fraction(v) <= e for v, e in zip(proven, exact, strict=True))
    assert all(e - Fraction(v) < Fraction(1e-9) for v, e in zip(proven, exact, strict=True))


@pytest.mark.parametrize("where", ["neurons", "rows"])
def test_coefficients_that_are_off_are_charged(where):
    """The bound holds for every network within the stated errors of the stored one."""
    _, _, net, ends = flat()
    error = 1e-3
    stated = with_errors(net, error, where)
    sign, alpha, beta = choices(ends, 20)
    rows = torch.arange(20) % len(net.rows)
    proven = dense_proof.least(stated, rows, ends, sign, alpha, beta).tolist()
    free = dense_proof.least(with_errors(net, 0.0), rows, ends, sign, alpha, beta).tolist()
    for seed in range(4):
        off = shifted(net, error, where, seed)
        exact = [
            exact_bound(off, r, ends, *c) for r, *c in zip(rows, sign, alpha, beta, strict=True)
        ]
        assert all(Fraction(v) <= e for v, e in zip(proven, exact, strict=True))
        assert any(Fraction(v) > e for v, e in zip(free, exact, strict=True))


def with_errors(net, error, where="both"):
    """The dense form with other errors stated."""
    rows = error if where != "neurons" else 0.0
    neurons = error if where != "rows" else 0.0
    layers = tuple(replace(k, error=torch.full_like(k.error, neurons)) for k in net.layers)
    return replace(net, layers=layers, errors=torch.full_like(net.errors, rows))


def shifted(net, error, where, seed):
    """The dense form with constants moved by as much, up or down."""
    rng = torch.Generator().manual_seed(seed)

    def moved(constant):
        return constant + error * (2 * torch.randint(0, 2, constant.shape, generator=rng) - 1)

    if where == "rows":
        return replace(net, constants=moved(net.constants))
    return replace(net, layers=tuple(replace(k, b=moved(k.b)) for k in net.layers))


@pytest.mark.parametrize("defect", ["", "sign of the splits", "lost intercept"])
def test_it_lies_below_every_sample_and_defects_are_caught(defect, monkeypatch):
    graph, region, net, ends = flat((2, 8, 3))
    whole = dense_proof._substituted

    def broken(a, box, sign, alpha, beta):
        v, lost, terms = whole(a, box, -sign if defect[:4] == "sign" else sign, alpha, beta)
        return v, 0 * lost if defect[:4] == "lost" else lost, terms

    monkeypatch.setattr(dense_proof, "_substituted", broken)
    x = region.lower + torch.rand(20_000, *graph.input_shape).double() * (
        region.upper - region.lower
    )
    y = graph(x)
    n_rows = len(net.rows)
    below = True
    for k in range(len(ends[0])):
        sign = torch.zeros(n_rows, len(ends[0]), dtype=torch.float64)
        sign[:, k] = 1.0
        beta = (sign != 0).double()
        value = dense_proof.least(net, torch.arange(n_rows), ends, sign, 0 * sign + 0.5, beta)
        layer = next(s for s, (i, j) in enumerate(net.spans()) if i <= k < j)
        z = x
        for node in graph.nodes[1 : net.layers[layer].source + 1]:
            z = node.op.run(z)
        inside = z.flatten(1)[:, net.layers[layer].neurons[k - net.spans()[layer][0]]] >= 0
        seen = torch.cat([y, -y], 1)[inside].amin(0) if bool(inside.any()) else torch.inf
        below = below and bool((value <= seen).all())
    assert below == (not defect)


@pytest.mark.parametrize("width", [0.2, 4.0])
def test_parts_give_the_bounds_of_the_whole(width):
    """In the wide box all neurons are undecided: rows read the first layer through the second."""
    _, _, net, ends = convolutional(width)
    found = parts(net)
    assert len(found) > 4
    assert sorted(int(r) for part, _ in found for r in part.rows) == list(range(len(net.rows)))
    sign, alpha, beta = choices(ends, len(net.rows))
    rows = torch.arange(len(net.rows))
    lines = DenseLines.of(ends[0].expand_as(sign), ends[1].expand_as(sign), sign)
    touched = torch.zeros_like(sign)
    for part, _ in found:
        touched[part.rows[:, None], part.neurons] = 1.0
    # Multipliers of neurons that a row does not read only cost; a part has none.
    whole, _ = backward(net, rows, lines, alpha, beta * touched)
    for part, own in found:
        assert len(part.neurons) < len(ends[0])
        at = part.rows[:, None], part.neurons
        box = ends[0][part.neurons], ends[1][part.neurons]
        value = dense_proof.least(
            own, torch.arange(len(part.rows)), box, sign[at], alpha[at], beta[at]
        )
        torch.testing.assert_close(value, whole[part.rows], atol=1e-8, rtol=0)


def test_evaluation_is_the_network_itself():
    graph, region, net, _ = convolutional()
    x = region.lower + torch.rand(7, *graph.input_shape).double() * (region.upper - region.lower)
    y = graph(x).flatten(1)
    for row in range(y.shape[1]):
        value = evaluate(net, torch.full((7,), row), x.flatten(1))
        torch.testing.assert_close(value, y[:, row], atol=1e-9, rtol=0)
