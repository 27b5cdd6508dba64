"""Decides a property of a network: attack first, then bounds, then branch and bound."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from holdfast.errors import PlanError, PropertyError
from holdfast.graphs.graph import Graph
from holdfast.graphs.onnx_reader import read_onnx
from holdfast.graphs.shapes import flattened
from holdfast.graphs.torch_capture import capture
from holdfast.verifiers.activation_split import split_activations
from holdfast.verifiers.attack import descend, starts
from holdfast.verifiers.input_split import split_inputs
from holdfast.verifiers.problem import Certificate, Counterexample, Property, Verdict
from holdfast.verifiers.regions import BallRegion
from holdfast.verifiers.replay import Confirm, OnnxRuntime, Runtime, graph_runtime, replay
from holdfast.verifiers.search import Search

# Networks with at most so many varying inputs are split there; halving one of more inputs gains
# little.
FEW_INPUTS = 12


def verify(
    network: str | os.PathLike[str] | Graph | nn.Module,
    prop: Property,
    *,
    timeout_s: float = 116.0,
    certificate: bool = False,
    attack: bool = True,
    seed: int = 0,
    example: Tensor | None = None,
    clock: Callable[[], float] = time.monotonic,
    ball: BallRegion | None = None,
    confirm: Confirm | None = None,
) -> Verdict:
    """Finds an input that violates the property, or proves that none exists.

    Args:
        network: ONNX file, graph, or module (then ``example`` inputs with a batch axis are needed).
        prop: The property.
        timeout_s: Seconds until the answer is ``timeout``.
        certificate: Collect what a checker needs to derive ``unsat`` again.
        attack: Look for counterexamples; without, only bounds decide.
        seed: Of the random starts.
        example: Inputs of a module, for their shape.
        clock: Counts the seconds; ``time.process_time`` counts those of the processor, which
            repeat on a busy machine.
        ball: Only inputs of this norm ball within the property's box count; then the answer is
            ``unsat``, ``unknown`` or ``timeout``, as counterexamples are not looked for.
        confirm: Replays counterexamples instead of the network itself, where the deployed
            networks are others than the graph (several of them joined).

    Raises:
        GraphError: The network cannot be read.
        PropertyError: The property's sizes differ from the network's.
    """
    begin = clock()
    graph, runtime = _load(network, example)
    _check_sizes(graph, prop)
    graph = graph.to(torch.float64)
    if not prop.clauses or all((c.lower > c.upper).any() for c in prop.clauses):
        proof = Certificate((), True) if certificate else None
        return Verdict("unsat", certificate=proof, reason="the property contradicts itself")
    confirm = confirm or partial(replay, runtime, prop)
    search = Search(graph, prop, confirm, begin + timeout_s, certificate, attack, seed, clock, ball)
    if ball is not None:
        search.ball, search.look, search.keep_leaves = ball.to(torch.float64), False, False
    outcome = _decide(search)
    seconds = clock() - begin
    if isinstance(outcome, Counterexample):
        return Verdict("sat", outcome, None, seconds, search.domains)
    if outcome == "unsat":
        proof = (
            Certificate(tuple(search.leaves), search.input_splits, search.bounds)
            if certificate and ball is None
            else None
        )
        return Verdict("unsat", None, proof, seconds, search.domains, search.lower)
    if outcome == "unknown":
        reason = "every neuron is split and the bounds are still open"
        return Verdict("unknown", None, None, seconds, search.domains, search.lower, reason)
    return Verdict(
        "timeout", None, None, seconds, search.domains, search.lower, f"no answer in {timeout_s} s"
    )


def _load(
    network: str | os.PathLike[str] | Graph | nn.Module, example: Tensor | None
) -> tuple[Graph, Runtime]:
    if isinstance(network, Graph):
        return network, graph_runtime(network)
    if isinstance(network, nn.Module):
        if example is None:
            raise PlanError("a module needs example= inputs with a batch axis, to know their shape")
        graph = capture(network, example, fold=False)
        return graph, graph_runtime(graph)
    return read_onnx(network, fold=False), OnnxRuntime(network)


def _check_sizes(graph: Graph, prop: Property) -> None:
    p, m = graph.nodes[0].size, graph.nodes[-1].size
    for clause in prop.clauses:
        if not len(clause.d):
            raise PropertyError(
                "a clause has no rows; for one that always holds give a row of zeros"
            )
        if clause.lower.shape != (p,) or clause.C.shape[1] != m:
            raise PropertyError(
                f"the property has {len(clause.lower)} inputs and {clause.C.shape[1]} outputs, "
                f"the network {p} and {m}: check that the two belong together"
            )


def _decide(search: Search) -> Counterexample | str:
    found = _attack(search)
    if found is not None:
        return found
    for clauses in _groups(search):
        moving = search.rows.upper[clauses[0]] > search.rows.lower[clauses[0]]
        by_input = int(moving.sum()) <= FEW_INPUTS and search.ball is None
        search.input_splits = by_input
        outcome = split_inputs(search, clauses) if by_input else split_activations(search, clauses)
        if outcome is None and search.ball is not None:
            return "unknown"
        if outcome is None:
            # Nothing is left to split inside the network; halving the input box always goes on.
            search.leaves.clear()
            search.input_splits = True
            outcome = split_inputs(search, clauses)
        if isinstance(outcome, Counterexample):
            return outcome
        if not outcome:
            return "timeout"
    return "unsat"


def _groups(search: Search) -> list[Tensor]:
    """Clauses by input box; empty boxes drop out."""
    rows = search.rows
    groups: dict[bytes, list[int]] = {}
    for i in range(len(rows.lower)):
        if bool((rows.lower[i] <= rows.upper[i]).all()):
            key = rows.lower[i].numpy().tobytes() + rows.upper[i].numpy().tobytes()
            groups.setdefault(key, []).append(i)
    return [torch.tensor(g) for g in groups.values()]


def _attack(search: Search) -> Counterexample | None:
    """Samples of every clause's box, then descent from the best of them."""
    if not search.look:
        return None
    rows = search.rows32
    clause, x, _ = starts(rows, max(16, 256 // len(rows.lower)), search.seed)
    with torch.no_grad():
        y = flattened(search.single(x.reshape(-1, *search.graph.input_shape)))
        worst = rows.values(clause, x, y).amax(1)
    found = search.check(clause, x)
    if found is not None:
        return found
    order = worst.reshape(len(rows.lower), -1).argsort(1)[:, :8]
    pick = (
        order + torch.arange(len(order)).unsqueeze(1) * worst.reshape(len(order), -1).shape[1]
    ).flatten()
    at = clause[pick]
    best, _ = descend(search.single, rows, at, x[pick], rows.lower[at], rows.upper[at], 20)
    return search.check(at, best)
