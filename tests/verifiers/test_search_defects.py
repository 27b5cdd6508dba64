"""Unsound searches are noticed: each planted defect proves a property that is violated."""
# ruff: noqa: N806 - C is the matrix of the literature

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.graphs.torch_capture import capture
from holdfast.verifiers import activation_split, input_split
from holdfast.verifiers import verify as module
from holdfast.verifiers.problem import Clause, Property
from holdfast.verifiers.verify import verify


def violated():
    """A network, and clauses of which only the last is violated: within a small part of the box."""
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    ).eval()
    axis = torch.linspace(-1, 1, 301)
    y = net(torch.cartesian_prod(axis, axis)).detach()
    least = float((y[:, 0] - y[:, 1]).min())
    C, low, high = np.array([[1.0, -1.0]]), -np.ones(2), np.ones(2)
    never = Clause(low, high, C, np.array([-(least - 3.0)]))
    somewhere = Clause(low, high, C, np.array([-(least + 0.001)]))
    graph = capture(net, torch.zeros(1, 2), fold=False)
    return graph, Property((never, somewhere))


def lose_domains(monkeypatch):
    solve = activation_split._solve

    def losing(tree, domains, steps):
        found = solve(tree, domains, steps)
        assert isinstance(found, list)
        return [d for d in found if len(d.splits) < 2]

    monkeypatch.setattr(activation_split, "_solve", losing)


def lose_a_box(monkeypatch):
    split = input_split._split

    def losing(*args):
        boxes = split(*args)
        return boxes.rows(torch.arange(0, len(boxes), 2))

    monkeypatch.setattr(input_split, "_split", losing)


def lose_a_clause(monkeypatch):
    groups = module._groups
    monkeypatch.setattr(module, "_groups", lambda search: [g[:-1] for g in groups(search)])


CASES = {
    "domain of the pool": (0, lose_domains),
    "half of a box": (12, lose_a_box),
    "clause, neurons split": (0, lose_a_clause),
    "clause, inputs split": (12, lose_a_clause),
}


@pytest.mark.parametrize("name", CASES)
def test_a_planted_defect_proves_what_is_false(name, monkeypatch):
    few, plant = CASES[name]
    monkeypatch.setattr(module, "FEW_INPUTS", few)
    graph, prop = violated()
    sound = verify(graph, prop, timeout_s=0.5, attack=False).status
    plant(monkeypatch)
    assert (sound, verify(graph, prop, timeout_s=20, attack=False).status) == ("timeout", "unsat")
