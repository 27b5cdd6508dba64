"""The cascade with a second look: attack, ask whether the attacks were misled, act, attack again.

The plan's attacks that follow gradients run first. Then the checks of this package look at a few
samples that nothing has broken; what they doubt, stages are added for, by other routes to the
gradients. The plan's other attacks follow, and a last look, which also sees what those found. Every
look is one record of the journal, with the stages that it added: a resumed run takes them from
there.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast import registry
from holdfast.engine.attacking import Attacking
from holdfast.engine.cascade import Step
from holdfast.engine.ledger import Standing
from holdfast.engine.random import Rng
from holdfast.events import Event, Found
from holdfast.record import Examined, Suspicion
from holdfast.threat import Access, Threat
from holdfast.trust.base import EARLY, LATE, Check, Doubt
from holdfast.trust.distilling import distil, save
from holdfast.trust.probe import Probe
from holdfast.trust.remedies import Candidate, candidates, chosen, for_plan, stages, step
from holdfast.trust.routes import route

if TYPE_CHECKING:
    from holdfast.engine.run import Context

N_PROBED = 32
N_TAUGHT = 1000  # samples that a substitute learns from
BLIND_SHARE = 0.1
FEWEST, SMALL_SHARE = 4, 0.01  # unbroken samples below which there is little to be wrong about


def attack(
    context: Context, threat: Threat, steps: Sequence[Step]
) -> Generator[Event, None, tuple[list[Step], int]]:
    """All attacks under one threat, and those that the looks between them call for.

    Returns:
        The stages that were run, and how many samples did not get all of them.
    """
    early, late = _parts(steps)
    done: list[Step] = []
    if early and context.plan.acts_on_doubts and not context.model.has_gradients:
        early += yield from _look(context, threat, early, EARLY)
        early, late = (_rerouted(context, threat, part) for part in (early, late))
    for number, part in ((EARLY, early), (LATE, late)):
        if not part:
            continue
        n_unfinished = yield from _run(context, threat, done, part)
        if n_unfinished:
            return done, n_unfinished
        if not early or context.plan.trust == "off":
            continue
        if number == EARLY and not context.model.has_gradients:
            continue  # that look came first
        added = yield from _look(context, threat, done, number)
        n_unfinished = yield from _run(context, threat, done, added)
        if n_unfinished:
            return done, n_unfinished
    return done, 0


def _rerouted(context: Context, threat: Threat, steps: Sequence[Step]) -> list[Step]:
    """The plan's attacks along the route that the first look found for them."""
    look = context.ledger.standing(threat.describe()).looks[0]
    if not look.through:
        return list(steps)
    way = route(directory=str(context.journal.directory), **look.through)
    return [
        replace(s, route=way, label=f"{s.label}, {way.describe()}") if _follows_own(s) else s
        for s in steps
    ]


def _follows_own(step: Step) -> bool:
    """It follows the model's own gradients."""
    return not step.route and step.attack.card.access is Access.GRADIENTS


def _run(
    context: Context, threat: Threat, done: list[Step], new: Sequence[Step]
) -> Generator[Event, None, int]:
    """Go on with ``new`` stages after those that are ``done``; how many samples are left over."""
    if not new:
        return 0
    n_announced = len(done)
    done += new
    attacking = Attacking(context, threat, done, n_announced)
    yield from attacking.run()
    return attacking.n_unfinished


def _parts(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The leading stages that follow gradients from the start, and the others."""
    end = 0
    while end < len(steps) and not steps[end].attack.card.sees_less:
        end += 1
    return list(steps[:end]), list(steps[end:])


def _look(
    context: Context, threat: Threat, done: Sequence[Step], number: int
) -> Generator[Event, None, list[Step]]:
    """The stages to add; from the journal where this look was had before."""
    standing = context.ledger.standing(threat.describe())
    record = next((look for look in standing.looks if look.round == number), None)
    if record is None:
        record = examined(context, threat, done, number)
        context.append([record])
    for suspicion in record.suspicions:
        yield Found(suspicion.check, "warning", f"Attacks may be misled: {suspicion.text}.")
    return [step(added, str(context.journal.directory)) for added in record.added]


def examined(context: Context, threat: Threat, done: Sequence[Step], number: int) -> Examined:
    """One look at the samples that nothing has broken yet."""
    passes = context.model.passes
    before = (passes.forward, passes.backward)
    text = threat.describe()
    standing = context.ledger.standing(text)
    rows, wanted, is_open = _subject(context, standing, number)
    probe = _probe(context, threat, rows, done)
    made = [check for check in wanted if len(probe) or not check.card.needs_samples]
    made.sort(key=lambda check: not check.card.is_cause)
    doubts = [(check.card.name, check.look(probe)) for check in made]
    found = [(name, doubt) for name, doubt in doubts if doubt is not None]
    picked = _picked(context, probe, found) if is_open else []
    through: dict[str, Any] = {}
    if not context.model.has_gradients and number == EARLY:
        through, picked = for_plan(picked)
    return Examined(
        threat=text,
        round=number,
        checks=tuple(check.card.name for check in made),
        n_probed=len(probe) if is_open else 0,
        suspicions=tuple(_suspicion(name, doubt) for name, doubt in found),
        after=max(s.stage for s in done if s.stage < len(context.plan.resolved_stages)),
        added=stages(probe, picked, _next_stage(context, text), threat.norm),
        through=through,
        forward=passes.forward - before[0],
        backward=passes.backward - before[1],
    )


def _subject(
    context: Context, standing: Standing, number: int
) -> tuple[list[int], list[Check], bool]:
    """Samples to look at, the checks that do, and whether there is something to act on.

    Where nothing is left unbroken but some attack met hardly any gradients, a few broken samples
    are looked at all the same: to say why, not to act.
    """
    rows = _rows(context, standing)
    checks = [kind() for kind in registry.checks().values() if kind.card.round == number]
    if rows or number != EARLY or not _was_blind(standing):
        return rows, checks, bool(rows)
    some = _by_key(context, context.ledger.is_correct)[:FEWEST]
    return some, [check for check in checks if check.card.is_cause], False


def _suspicion(name: str, doubt: Doubt) -> Suspicion:
    return Suspicion(
        check=name,
        is_cause=registry.checks()[name].card.is_cause,
        text=doubt.text,
        figures=doubt.figures,
        stages=doubt.stages,
    )


def _picked(context: Context, probe: Probe, found: Sequence[tuple[str, Doubt]]) -> list[Candidate]:
    """The routes that help against what was found."""
    if not found or not len(probe) or not context.plan.acts_on_doubts:
        return []
    found = [(name, _with_surrogate(context, probe, doubt)) for name, doubt in found]
    directory = str(context.journal.directory)
    routes_only = context.plan.trust == "reroute" or not context.model.has_gradients
    return chosen(probe, candidates(found, context.model.is_random, directory, routes_only))


def _with_surrogate(context: Context, probe: Probe, doubt: Doubt) -> Doubt:
    """The doubt, with the file of a substitute where its remedies name one."""
    if not any(remedy["name"] == "surrogate" for remedy in doubt.remedies):
        return doubt
    remedies = tuple(
        {**r, "file": _surrogate(context, probe)} if r["name"] == "surrogate" else r
        for r in doubt.remedies
    )
    return replace(doubt, remedies=remedies)


def _surrogate(context: Context, probe: Probe) -> str:
    """The file of a substitute under this threat, trained where there is none."""
    name = f"substitute-{zlib.crc32(probe.threat.describe().encode()):08x}.safetensors"
    path = context.journal.directory / name
    if not path.exists():
        rows = np.argsort(context.seen.keys.numpy(), kind="stable")[:N_TAUGHT].tolist()
        x, _ = context.fetch(rows)
        rng = Rng(context.seen.keys[rows].to(x.device)).fold(context.plan.seed)
        allowed = context.bind(probe.threat, x, rows)
        net = distil(context.model, allowed, rng, context.plan.seed)
        draft = path.with_name(f".{name}.tmp")
        save(net.cpu(), draft, tuple(x.shape[1:]), context.model.n_classes)
        draft.replace(path)
    return name


def _next_stage(context: Context, threat: str) -> int:
    """The number of the next stage: after those of the plan and those added before."""
    looks = context.ledger.standing(threat).looks
    return len(context.plan.resolved_stages) + sum(len(look.added) for look in looks)


def _rows(context: Context, standing: Standing) -> list[int]:
    """Unbroken samples in the order of their keys; none where only few are in question."""
    is_open = context.ledger.is_correct & ~standing.is_broken & ~standing.is_verified
    is_open &= context.ledger.goal != context.seen.y.numpy()
    n_open = int(is_open.sum())
    if n_open <= max(FEWEST - 1, SMALL_SHARE * context.ledger.is_correct.sum()):
        return []
    n = min(N_PROBED, max(N_PROBED // 4, n_open // 6))  # so that few survivors stay cheap
    return _by_key(context, is_open)[:n]


def _by_key(context: Context, mask: np.ndarray) -> list[int]:
    """The samples of a mask in an order that does not hang on their place in the data."""
    rows = np.flatnonzero(mask)
    return rows[np.argsort(context.seen.keys.numpy()[rows], kind="stable")].tolist()


def _was_blind(standing: Standing) -> bool:
    """Whether some attack met hardly any gradients, so that it is worth knowing why."""
    return any(blind > BLIND_SHARE * backward for backward, blind in standing.blind.values())


def _probe(context: Context, threat: Threat, rows: list[int], done: Sequence[Step]) -> Probe:
    x, y = context.fetch(rows) if rows else _no_samples(context)
    goal = torch.from_numpy(context.ledger.goal[rows]).to(x.device)
    keys = context.seen.keys[rows].to(x.device)
    rng = Rng(keys).fold(context.plan.seed).fold(zlib.crc32(threat.describe().encode()))
    return Probe(
        model=context.model,
        x=x,
        y=y,
        goal=goal,
        allowed=context.bind(threat, x, rows),
        rng=rng,
        logits=context.logits_file().read(rows).to(x.device),
        standing=context.ledger.standing(threat.describe()),
        steps=done,
        threat=threat,
        n_correct=int(context.ledger.is_correct.sum()),
    )


def _no_samples(context: Context) -> tuple[Tensor, Tensor]:
    x, y = context.fetch([0])
    return x[:0], y[:0]
