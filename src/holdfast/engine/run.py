"""Running a plan: data and model are checked, attacked, and all of it goes into the journal.

:func:`run` is a generator of events. The journal in the run's directory is the only state: run the
same plan in the same directory again, and it goes on where it stopped, whatever stopped it.
"""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from holdfast.data import Data
from holdfast.engine.cascade import fitting
from holdfast.engine.clean import clean
from holdfast.engine.curve import pending, radii
from holdfast.engine.examples import most_easily_broken, write_examples
from holdfast.engine.handover import forget as forget_points
from holdfast.engine.identity import check_same_run, header
from holdfast.engine.journal import Journal, RowFile, adversarial_path
from holdfast.engine.ledger import Ledger
from holdfast.engine.opening import Opening, forget, opening
from holdfast.engine.preflight import N_CHECKED, preflight
from holdfast.engine.proving import check_sound, prove, prove_where_cheap
from holdfast.engine.scan import Scan, inside, scan
from holdfast.engine.slots import Rules, Slots
from holdfast.engine.suspicion import suspicions
from holdfast.engine.tuning import settled
from holdfast.engine.workers.crew import Crew
from holdfast.errors import DataError, JournalError
from holdfast.events import Event, Finished, Found, Progress, Started, Stopped
from holdfast.model import Model
from holdfast.plan import Plan
from holdfast.record import AnyRecord, Failure, Finding, Header, Radius, Session
from holdfast.threat import AllowedSet, Threat, parse_threat
from holdfast.trust import examination

_EVENT_SECONDS = 0.2


@dataclass(slots=True)
class Context:
    """What every phase of a run needs."""

    plan: Plan
    model: Model
    data: Data
    seen: Scan
    journal: Journal
    ledger: Ledger
    began: float
    spoke: float = 0.0
    crew: Crew | None = None
    opening: Opening | None = None

    @property
    def seconds(self) -> float:
        """Since this sitting began."""
        return time.monotonic() - self.began

    @property
    def is_over_time(self) -> bool:
        """Whether the budget of seconds is used up."""
        limit = self.plan.budget.seconds
        return limit is not None and self.seconds > limit

    @property
    def slots(self) -> int:
        """Jobs in flight."""
        return self.plan.batch_size or self.model.call_rows(self.data.shape)

    def slots_for(self, rules: Rules) -> Slots | Crew:
        """Empty slots, in this process or in the workers."""
        if self.crew is None:
            return Slots(self.model, self.slots, rules)
        return self.crew.begin(self.slots, rules)

    def notices(self) -> Iterator[Event]:
        """What the workers had to say since the last call."""
        if self.crew is not None and self.crew.notices:
            found, self.crew.notices = self.crew.notices, []
            yield from _tell(self, found)

    def append(self, records: Sequence[AnyRecord]) -> None:
        """Into the journal first, then into memory."""
        self.journal.append(records)
        for record in records:
            self.ledger.fold(record)

    def fetch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs inside the domain and labels, on the model's device."""
        x, y = self.data.fetch(rows)
        device = self.model.device
        return inside(x.to(device), self.model.domain), y.to(device)

    def bind(self, threat: Threat, x: Tensor, rows: Sequence[int]) -> AllowedSet:
        """The allowed sets of some samples; a radius per sample is cut to them."""
        return threat.select(rows).bind(x, self.model.domain)

    def logits_file(self) -> RowFile:
        """The answers to the clean samples, which jobs start from."""
        path = self.journal.directory / "clean.safetensors"
        return self.journal.rows(path, "logits", len(self.data), (self.model.n_classes,))

    def adversarial_file(self, threat: str) -> RowFile:
        """The adversarial inputs under one threat."""
        path = adversarial_path(self.journal.directory, threat)
        return self.journal.rows(path, "x_adv", len(self.data), tuple(self.data.shape))

    def progress(self, threat: str, phase: str, done: int, total: int) -> Iterator[Progress]:
        """An event, unless the last one was a moment ago."""
        now = time.monotonic()
        if now - self.spoke < _EVENT_SECONDS:
            return
        self.spoke = now
        passes = self.model.passes
        yield Progress(
            threat,
            phase,
            done,
            total,
            self.ledger.clean_accuracy,
            self.ledger.robust_accuracy(threat) if threat else None,
            passes.forward + passes.backward,
            self.seconds,
        )


def run(
    plan: Plan,
    model: Model,
    data: Data,
    directory: Path | str,
    threats: Sequence[Threat] = (),
) -> Iterator[Event]:
    """Run ``plan`` in ``directory``, or go on with it.

    Args:
        plan: What to do.
        model: The model to attack; it comes back as it was, whatever happens.
        data: Labelled samples.
        directory: Where the journal lies, created where it does not exist.
        threats: The threats as objects, for those that cannot be written as text; by default they
            are read from the plan.

    Raises:
        InputError: where model, data and plan do not fit together; nothing was run then.
        ModelCrash: where the model raised; the journal holds what was found before.
        JournalError: where the directory holds another run, or the disk is full.
    """
    began = time.monotonic()
    known = tuple(threats) or tuple(parse_threat(text) for text in plan.threats)
    for threat in known:
        threat.check(model.domain, tuple(data.shape))
    if len(data) == 0:
        raise DataError("There are no samples to audit.")
    seen = scan(data, model.domain)
    start = (model.passes.forward, model.passes.backward)
    with model.session(), settled(plan, model, data, Path(directory)):
        findings = _check(plan, model, data, seen)
        for threat in known:
            fitting(plan.resolved_stages, threat.norm, model.access)
        journal = Journal(Path(directory))
        try:
            context = Context(plan, model, data, seen, journal, Ledger.fresh(len(data)), began)
            context.opening = opening(context, known)
            yield from _sitting(context, known, findings, start)
        finally:
            journal.close()


def _sitting(
    context: Context,
    threats: Sequence[Threat],
    findings: Sequence[Finding],
    start: tuple[int, int],
) -> Iterator[Event]:
    """One sitting of the run, with its outcome in the journal."""
    earlier = context.journal.records()
    new = header(context.plan, context.model, context.data, context.seen, context.journal.directory)
    if earlier and isinstance(earlier[0], Header):
        check_same_run(earlier[0], new, context.journal.directory)
    outcome = "failed"
    try:
        _hire(context)
        yield from _open(context, new, earlier, findings)
        yield from clean(context)
        stopped = False
        for threat in threats:
            stopped = yield from _threat(context, threat)
            if stopped:
                break
        outcome = "budget" if stopped else "finished"
        if not stopped:
            forget(context)
            forget_points(context.journal.directory, threats)
    except (KeyboardInterrupt, GeneratorExit):
        outcome = "interrupted"
        raise
    except JournalError:
        raise
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        where = f"after {context.seconds:.1f} s"
        context.journal.append(
            [Failure(where=where, error=f"{type(error).__name__}: {error}", traceback=text)]
        )
        raise
    finally:
        if context.crew is not None:
            context.crew.close()
        _close(context, outcome, start)
    yield Finished(str(context.journal.directory), context.seconds)


def _hire(context: Context) -> None:
    """The workers that the plan wants; they start with their first jobs."""
    plan, n = context.plan, len(context.data)
    if plan.workers > 1:
        x, y = context.fetch(range(min(N_CHECKED, n)))
        context.crew = Crew(context.model, x, y, plan.workers, plan.model, plan.seed)


def _check(plan: Plan, model: Model, data: Data, seen: Scan) -> list[Finding]:
    """The model's checks; an access that the plan restricts is restricted here."""
    x, y = data.fetch(range(min(N_CHECKED, len(data))))
    findings = [*preflight(model, x, y, seen.y), *_one_class(seen.y)]
    if model.access.allows(plan.access):
        model.restricted(plan.access)
    return findings


def _one_class(y: Tensor) -> Iterator[Finding]:
    """The first samples of sorted data are all alike."""
    if len(y) > 9 and bool((y == y[0]).all()):
        yield Finding(
            code="one_class",
            level="warning",
            text=f"All {len(y)} samples have the label {int(y[0])}: perhaps the data is sorted by "
            "label and only its beginning was taken. The result says nothing of other classes.",
        )


def _open(
    context: Context, new: Header, earlier: Sequence[AnyRecord], findings: Sequence[Finding]
) -> Iterator[Event]:
    """A new header, or what an earlier sitting left."""
    directory = context.journal.directory
    for record in earlier:
        context.ledger.fold(record)
    if not earlier:
        context.journal.append([new])
        write_atomically(directory / "plan.toml", context.plan.to_toml())
    yield Started(
        context.plan.id, str(directory), len(context.data), context.plan.threats, len(earlier)
    )
    yield from _tell(context, findings, earlier)


def _tell(
    context: Context, findings: Sequence[Finding], earlier: Sequence[AnyRecord] = ()
) -> Iterator[Event]:
    """Findings, written once and said in every sitting."""
    old = {(r.code, r.threat, r.text) for r in earlier if isinstance(r, Finding)}
    context.append([f for f in findings if (f.code, f.threat, f.text) not in old])
    for finding in findings:
        yield Found(finding.code, finding.level, finding.text)


def _close(context: Context, outcome: str, start: tuple[int, int]) -> None:
    passes = context.model.passes
    session = Session.model_validate(
        {
            "outcome": outcome,
            "seconds": context.seconds,
            "passes_forward": passes.forward - start[0],
            "passes_backward": passes.backward - start[1],
            "peak_memory_mb": _peak_memory_mb(),
        }
    )
    try:
        context.journal.append([session])
    except JournalError:
        if outcome == "finished":
            raise  # else the error that ended the run is the one to show


def _threat(context: Context, threat: Threat) -> Generator[Event, None, bool]:
    """All attacks under one threat, its curve, its examples. Returns whether the time ran out."""
    text, plan = threat.describe(), context.plan
    steps, left_out = fitting(plan.resolved_stages, threat.norm, context.model.access)
    yield from _tell(context, left_out)
    if plan.verify not in ("off", "auto"):
        yield from prove(context, threat, "fast")
    steps, n_unfinished = yield from examination.attack(context, threat, steps)
    if n_unfinished:
        yield Stopped("budget", n_unfinished)
    elif plan.verify == "auto":
        yield from prove_where_cheap(context, threat)
    elif plan.verify in ("standard", "thorough"):
        yield from prove(context, threat, plan.verify)
    check_sound(context, threat)
    standing = context.ledger.standing(text)
    is_correct = context.ledger.is_correct
    yield from _curve(context, threat)
    _examples(context, threat)
    if not n_unfinished:
        yield from _tell(context, list(suspicions(threat, steps, standing, is_correct)))
    return n_unfinished > 0


def _curve(context: Context, threat: Threat) -> Iterator[Event]:
    """Bisected radii of the broken samples."""
    text, model = threat.describe(), context.model
    steps = 0 if model.is_random else context.plan.curve_steps
    standing = context.ledger.standing(text)
    total = int(standing.is_broken.sum())
    size = max(context.slots, 64)
    is_broken, radius = torch.from_numpy(standing.is_broken), torch.from_numpy(standing.radius)
    for rows in pending(is_broken, radius, size) if steps else ():
        x, y = context.fetch(rows)
        x_adv = context.adversarial_file(text).read(rows).to(x.device)
        goal = torch.from_numpy(context.ledger.goal[rows]).to(x.device)
        found = radii(model, context.bind(threat, x, rows), x_adv, y, goal, steps)
        context.append(
            [
                Radius(threat=text, sample=i, radius=r, forward=steps)
                for i, r in zip(rows, found.tolist(), strict=True)
            ]
        )
        done = total - int((is_broken & radius.isnan()).sum())  # the tensor sees new radii
        yield from context.progress(text, "curve", done, total)
        if context.is_over_time:
            return


def _examples(context: Context, threat: Threat) -> None:
    standing = context.ledger.standing(threat.describe())
    size = torch.from_numpy(standing.radius)
    size = torch.where(size.isnan(), torch.from_numpy(standing.distance), size).numpy()
    rows = most_easily_broken(standing.is_broken, size)
    if rows:
        x, _ = context.fetch(rows)
        x_adv = context.adversarial_file(threat.describe()).read(rows)
        write_examples(context.journal.directory, threat.describe(), x.cpu(), x_adv, rows)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 * 1024.0) if sys.platform == "darwin" else peak / 1024.0
