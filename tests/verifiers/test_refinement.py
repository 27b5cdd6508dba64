"""Bounds of neurons by branch and bound of their own: sound, and nearly exact on small ones."""

import itertools

import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import refinement
from holdfast.verifiers.propagation import propagate
from holdfast.verifiers.refinement import refine
from holdfast.verifiers.regions import BoxRegion

SHAPES = {"deep": [3, 12, 12, 12, 4], "one": [2, 8, 8, 2]}


def case(name, seed=0):
    torch.manual_seed(seed)
    sizes = SHAPES[name]
    layers = [k for a, b in itertools.pairwise(sizes) for k in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    x = torch.randn(1, sizes[0])
    graph = capture(net, x, fold=False).to(torch.float64)
    region = BoxRegion(x.double() - 1, x.double() + 1)
    return graph, region, propagate(graph, region)


def values(graph, x):
    found = [x]
    for node in graph.nodes[1:]:
        found.append(node.op.run(*(found[i] for i in node.inputs)))
    return found


def samples(graph, region, n=200_000):
    rng = torch.Generator().manual_seed(1)
    share = torch.rand(n, *graph.input_shape, generator=rng, dtype=torch.float64)
    return values(graph, region.lower + share * (region.upper - region.lower))


def sources(graph):
    return [n.inputs[0] for n in graph.nodes[1:] if not n.op.is_affine]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHAPES)
def test_refined_boxes_hold_and_are_nearly_exact(name, seed):
    graph, region, state = case(name, seed)
    refined, spent = refine(graph, region, state, 2e8, lambda: False)
    assert spent > 0
    seen = samples(graph, region)
    for i in sources(graph):
        box, old = refined.boxes[i], state.boxes[i]
        assert bool((box.lower <= seen[i].amin(0)).all())
        assert bool((box.upper >= seen[i].amax(0)).all())
        assert bool((box.lower >= old.lower - 1e-12).all())
        loose = (box.lower < 0) & (box.upper > 0)
        width, true = (box.upper - box.lower)[loose], (seen[i].amax(0) - seen[i].amin(0))[loose[0]]
        assert bool((width <= 1.2 * true + 1e-3).all())


def test_it_gains_much_over_crown_in_deep_networks():
    graph, region, state = case("deep")
    refined, _ = refine(graph, region, state, 2e8, lambda: False)
    last = sources(graph)[-1]
    widths = [float((s.boxes[last].upper - s.boxes[last].lower).sum()) for s in (state, refined)]
    assert widths[1] < 0.7 * widths[0]


def test_no_time_changes_nothing():
    graph, region, state = case("deep")
    refined, spent = refine(graph, region, state, 1e9, lambda: True)
    assert spent == 0
    assert all(a is b for a, b in zip(refined.boxes, state.boxes, strict=True))


def test_a_forgotten_half_is_caught(monkeypatch):
    graph, region, state = case("deep")
    halves = refinement._halves

    def lose(leaves, place):
        both = halves(leaves, place)
        return both.at(torch.arange(len(both) // 2))

    monkeypatch.setattr(refinement, "_halves", lose)
    refined, _ = refine(graph, region, state, 2e8, lambda: False)
    seen = samples(graph, region)
    outside = [
        bool((refined.boxes[i].lower > seen[i].amin(0) + 1e-6).any())
        or bool((refined.boxes[i].upper < seen[i].amax(0) - 1e-6).any())
        for i in sources(graph)
    ]
    assert any(outside)


def test_patches_are_bounded_alone(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten()
    )
    net = nn.Sequential(*net, nn.Linear(64, 3)).eval()
    x = torch.randn(1, 1, 11, 11)
    graph = capture(net, x, fold=False).to(torch.float64)
    region = BoxRegion(x.double() - 0.5, x.double() + 0.5)
    state = propagate(graph, region)
    counts, cut = [], refinement.parts

    def counted(dense):
        found = cut(dense)
        counts.append(len(found))
        return found

    monkeypatch.setattr(refinement, "parts", counted)
    refined, _ = refine(graph, region, state, 1e8, lambda: False)
    assert max(counts) > 4
    share = torch.rand(4000, *graph.input_shape, dtype=torch.float64)
    share[2000:] = share[2000:].round()
    seen = values(graph, region.lower + share * (region.upper - region.lower))
    for i in sources(graph):
        assert bool((refined.boxes[i].lower <= seen[i].amin(0)).all())
        assert bool((refined.boxes[i].upper >= seen[i].amax(0)).all())
    second = sources(graph)[1]
    before, after = (s.boxes[second].upper - s.boxes[second].lower for s in (state, refined))
    assert float(after.sum()) < 0.95 * float(before.sum())


def test_patches_without_a_neuron_to_split_are_left_as_they_are():
    """Where all rectifiers before are active, linear bounds are exact."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(72, 2)).eval()
    x = torch.full((1, 1, 6, 16), 0.85)
    x[..., 8:] = 0.3
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.fill_(-1.0)
        net[2].bias.fill_(0.0)
    graph = capture(net, x, fold=False).to(torch.float64)
    region = BoxRegion(x.double() - 0.12, x.double() + 0.12)
    state = propagate(graph, region)
    refined, spent = refine(graph, region, state, 1e8, lambda: False)
    assert spent > 0
    box, old = refined.boxes[3], state.boxes[3]
    gained = (box.upper - box.lower) < (old.upper - old.lower) - 1e-9
    assert 0 < gained.sum() < gained.numel()


def test_neurons_before_any_rectifier_are_not_searched(monkeypatch):
    """Their linear bounds are exact; bringing thousands of them into dense form takes minutes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.zeros(1, 3)
    graph = capture(net, x, fold=False).to(torch.float64)
    region = BoxRegion(x.double() - 1, x.double() + 1)
    state = propagate(graph, region)
    monkeypatch.setattr(refinement, "condense", lambda *_: pytest.fail("nothing is to be gained"))
    refined, spent = refine(graph, region, state, 1e9, lambda: False)
    assert spent == 0
    assert all(a is b for a, b in zip(refined.boxes, state.boxes, strict=True))
