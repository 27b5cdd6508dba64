"""Proofs beside the attacks: samples that no allowed change can break, shown by bounds.

Where they are asked for, cheap bounds come before the attacks, so that what is proven is not
attacked; dearer ones and branch and bound after them, on what the attacks left open. Verified
samples need no attack, broken ones no proof. Where nobody asked, the survivors are tried as long as
that costs little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.engine.found import submit
from holdfast.engine.ledger import PROOF
from holdfast.errors import SoundnessError
from holdfast.events import Event, Found, PhaseDone
from holdfast.graphs.graph import Graph
from holdfast.graphs.torch_capture import capture
from holdfast.model import Model
from holdfast.perturbations.ball import Ball
from holdfast.record import Finding, Proven
from holdfast.threat import Threat
from holdfast.verifiers.certify import Certified, Effort, certify

if TYPE_CHECKING:
    from holdfast.engine.run import Context

_CHUNK = 32
CHUNK_WHERE_CHEAP = 16
MOST_NEURONS = 20_000
FAR_TOO_MANY = 10 * MOST_NEURONS  # values that layers give, linear ones among them
SECONDS_PER_SAMPLE = 30.0  # of branch and bound, where the plan sets no budget of time


class Deployed(nn.Module):
    """What the attacks see, as one module: normalisation, network, head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net = model.modules[0]
        self.mean = None if model.mean is None else model.mean.to(model.device)
        self.std = None if model.std is None else model.std.to(model.device)
        self.both = torch.tensor([[0.0, 1.0]], device=model.device)
        self.is_single = model.head.kind == "logit"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` of inputs in the domain."""
        if self.mean is not None and self.std is not None:
            shape = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 2 else (-1,)
            x = (x - self.mean.reshape(shape)) / self.std.reshape(shape)
        z = self.net(x)
        return z.reshape(-1, 1) * self.both if self.is_single else z


def obstacle(model: Model, threat: Threat) -> str:
    """Why this model cannot be verified under this threat; empty where it can."""
    if not isinstance(threat, Ball) or threat.size.numel() > 1:
        return f"the threat {threat.describe()} is not a norm ball of one radius"
    if model.head.kind not in ("logits", "logit"):
        return f"the model gives {model.head.kind}, not logits"
    if len(model.modules) != 1 or model.f is not model.modules[0]:
        return "the model is a function around a module: give the torch.nn.Module itself"
    if model.is_random:
        return "the model answers at random"
    if any(isinstance(side, Tensor) for side in (model.domain.lower, model.domain.upper)):
        return "the input domain has bounds of its own for every feature"
    return ""


def prove(context: Context, threat: Threat, effort: Effort) -> Iterator[Event]:
    """Try to prove the samples that are still open; the journal gets a record for each proof."""
    text, standing = threat.describe(), context.ledger.standing(threat.describe())
    rows = np.flatnonzero(_unbroken(context, text) & ~standing.is_verified).tolist()
    if not rows:
        return
    try:
        graph = _captured(context, threat, rows)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        yield from _cannot(context, str(error).splitlines()[0], text)
        return
    for start in range(0, len(rows), _CHUNK):
        if context.is_over_time:
            return
        chunk = rows[start : start + _CHUNK]
        try:
            _try(context, graph, threat, chunk, effort)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            yield from _cannot(context, str(error).splitlines()[0], text)
            return
        yield from context.progress(text, f"proof ({effort})", start + len(chunk), len(rows))
    yield _done(context, text, f"proof ({effort})")


def prove_where_cheap(context: Context, threat: Threat) -> Iterator[Event]:
    """Proofs of what the attacks left standing, for as long as they come.

    The samples with the largest margins are tried first, :data:`CHUNK_WHERE_CHEAP` at a time, and
    the first such group without a proof is the last. A network that cannot be captured, or with
    more than :data:`MOST_NEURONS` neurons, is left alone. Nobody asked for these proofs, so
    nothing is said where none comes.
    """
    text, margin = threat.describe(), context.ledger.margin
    rows = np.flatnonzero(_unbroken(context, text))
    rows = rows[np.argsort(margin[rows], kind="stable")].tolist()  # negative: far from falling
    try:
        yield from _while_they_come(context, threat, rows)
    except (ValueError, NotImplementedError, RuntimeError):
        return
    if context.ledger.standing(text).is_verified.any():
        yield _done(context, text, "proof (fast)")


def _while_they_come(context: Context, threat: Threat, rows: list[int]) -> Iterator[Event]:
    if not rows or _is_large(context.model, context.fetch(rows[:1])[0]):
        return
    graph, text = _captured(context, threat, rows), threat.describe()
    verified = context.ledger.standing(text).is_verified
    if n_neurons(graph) > MOST_NEURONS:
        return
    for start in range(0, len(rows), CHUNK_WHERE_CHEAP):
        chunk = rows[start : start + CHUNK_WHERE_CHEAP]
        untried = [i for i in chunk if not verified[i]]
        if context.is_over_time:
            return
        if untried:
            _try(context, graph, threat, untried, "fast")
        if not verified[chunk].any():
            return
        yield from context.progress(text, "proof (fast)", start + len(chunk), len(rows))


def _is_large(model: Model, x: Tensor) -> bool:
    """Whether one look says that the network is far too large, which saves capturing it."""
    sizes = []

    def seen(_module: nn.Module, _inputs: object, out: object) -> None:
        sizes.append(out[0].numel() if isinstance(out, Tensor) and out.ndim else 0)

    leaves = [m for top in model.modules for m in top.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(seen) for leaf in leaves]
    try:
        model.logits(x)
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes) > FAR_TOO_MANY


def _unbroken(context: Context, text: str) -> np.ndarray:
    """Which samples are right, and still so after the attacks."""
    ledger = context.ledger
    goal_is_other = ledger.goal != context.seen.y.numpy()
    return ledger.is_correct & ~ledger.standing(text).is_broken & goal_is_other


def _captured(context: Context, threat: Threat, rows: list[int]) -> Graph:
    """The deployed network as a graph.

    Raises:
        ValueError: It cannot be verified.
    """
    reason = obstacle(context.model, threat)
    if reason:
        raise ValueError(reason)
    x, _ = context.fetch(rows[:1])
    return capture(Deployed(context.model).eval(), x, fold=False)


def n_neurons(graph: Graph) -> int:
    """Number of values that non-linear operators read, per sample."""
    curved = (node for node in graph.nodes if node.inputs and not node.op.is_affine)
    return sum(graph.nodes[i].size for node in curved for i in node.inputs)


def _try(context: Context, graph: Graph, threat: Threat, rows: list[int], effort: Effort) -> None:
    """Proofs and counterexamples of some samples, into the journal."""
    x, y = context.fetch(rows)
    found = _certified(context, graph, x, y, threat, effort)
    context.append([*_proofs(threat.describe(), rows, found, effort)])
    _refuted(context, threat, rows, found)


def _done(context: Context, text: str, phase: str) -> PhaseDone:
    standing, ledger = context.ledger.standing(text), context.ledger
    return PhaseDone(
        text,
        phase,
        ledger.robust_accuracy(text),
        ledger.clean_accuracy,
        float((standing.forward + standing.backward).mean()),
        context.seconds,
    )


def _certified(
    context: Context, graph: Graph, x: Tensor, y: Tensor, threat: Threat, effort: Effort
) -> list[Certified]:
    assert isinstance(threat, Ball)
    domain = context.model.domain
    limit = context.plan.budget.seconds
    left = SECONDS_PER_SAMPLE if limit is None else max(1.0, limit - context.seconds)
    return certify(
        graph,
        x,
        y,
        float(threat.size),
        threat.norm,  # type: ignore[arg-type]
        effort=effort,
        domain=(float(domain.lower), float(domain.upper)),
        timeout_s=min(SECONDS_PER_SAMPLE, left),
    )


def _proofs(text: str, rows: list[int], found: list[Certified], effort: Effort) -> Iterator[Proven]:
    for i, one in zip(rows, found, strict=True):
        if one.status == "unsat":
            yield Proven(threat=text, sample=i, margin=one.margin, effort=effort)


def _refuted(context: Context, threat: Threat, rows: list[int], found: list[Certified]) -> None:
    """Counterexamples of the proof search go before the judge like everybody's."""
    chosen = [(i, one.x_adv) for i, one in zip(rows, found, strict=True) if one.x_adv is not None]
    if chosen:
        samples, points = [i for i, _ in chosen], torch.stack([x_adv for _, x_adv in chosen])
        submit(context, threat, samples, points, PROOF, "branch and bound")


def _cannot(context: Context, reason: str, text: str) -> Iterator[Event]:
    finding = Finding(
        code="not_verifiable",
        level="info",
        text=f"No proofs under {text}: {reason}.".replace("..", "."),
        threat=text,
    )
    context.append([finding])
    yield Found(finding.code, finding.level, finding.text)


def check_sound(context: Context, threat: Threat) -> None:
    """A sample that is both broken and verified is a bug: stop.

    Raises:
        SoundnessError: naming the samples.
    """
    standing = context.ledger.standing(threat.describe())
    both = np.flatnonzero(standing.is_broken & standing.is_verified).tolist()
    if both:
        raise SoundnessError(
            f"Samples {both[:5]} are both broken and verified under {threat.describe()}. This is a "
            "bug in Holdfast: please report it with the journal."
        )
