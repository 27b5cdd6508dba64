"""The run's side: slots that are spread over several processes.

A crew has the four calls of :class:`~holdfast.engine.slots.Slots`, and every job ends in it as it
would there: what a job does depends on nothing but itself, so it does not matter which process has
it, nor that a process died and another one starts it over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import torch
from torch import Tensor

from holdfast.attacks._losses import cross_entropy
from holdfast.attacks.base import Answer, Attack, Objective, Problem, Query, Route
from holdfast.engine.jobs import Ended, Job
from holdfast.engine.slots import Rules
from holdfast.engine.workers.wire import Begin, Chunk, Done, Failed, Ready, Setup, pack, unpack
from holdfast.engine.workers.worker import part
from holdfast.errors import ModelCrash, ModelError
from holdfast.model import Model
from holdfast.plan import ModelSpec
from holdfast.record import Finding
from holdfast.threat import Access

_PATIENCE = 0.2  # seconds between looks at the clock while nothing comes
_MOST_DEATHS = 3
_LOOKAHEAD = 4  # a quarter more jobs than slots, so that a freed slot is filled at once
_LEFT_OUT = {"f", "modules", "dtype", "device", "passes", "checked", "description"}
_MAIN = "import sys; from holdfast.engine.workers.worker import main; main(int(sys.argv[1]))"
_REMEDY = (
    "Give the model by reference (package.module:function, model.pt2), define its class in a "
    "module that can be imported, or audit in one process (--workers 1)."
)


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    jobs: dict[Job, tuple[Chunk, int]] = field(default_factory=dict)


class Crew:
    """``n`` processes with slots of their own.

    Args:
        model: Checked and set up; inside a session.
        x: Some clean inputs ``(m, *shape)``: every worker must answer them as ``model`` does.
        y: Their labels.
        n: How many processes.
        spec: Where the model can be loaded from, if it cannot be sent.
        seed: Of the run.

    Raises:
        ModelError: where the model can be neither sent nor loaded again.
    """

    def __init__(
        self, model: Model, x: Tensor, y: Tensor, n: int, spec: ModelSpec, seed: int
    ) -> None:
        self.model, self.n, self.spec, self.seed = model, n, spec, seed
        self.notices: list[Finding] = []
        self._payload = self._packed()
        objective = None
        if model.access is Access.GRADIENTS:
            objective = Objective(cross_entropy, (y, torch.full_like(y, -1)))
        self._probe = Query(x, objective)
        self._answer = model.answer([self._probe])[0]
        self._number, self._size, self._deaths = 0, 1, 0
        self._begin: Begin | None = None
        self._workers: list[_Worker] = []  # started with the first jobs

    def _packed(self) -> bytes | None:
        """The model as bytes; None where it must be loaded again."""
        checked, self.model.checked = self.model.checked, {}
        try:
            return pack(self.model)
        except Exception as error:
            if self.spec.source:
                return None
            raise ModelError(
                f"The model cannot be sent to another process ({type(error).__name__}: {error}). "
                f"{_REMEDY}"
            ) from None
        finally:
            self.model.checked = checked

    # ------------------------------------------------------------------ processes

    def _started(self, i: int) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a model prints must not get between the run's own output
                env=self._environment(),
            )
        worker = _Worker(process, Connection(ours.detach()))
        setup = Setup(
            payload=self._payload,
            source=self.spec.source,
            weights=self.spec.weights,
            state=self._state(),
            device=self._device(i),
            seed=self.seed * self.n + i,
            probe=self._probe,
        )
        self._post(worker, pack(setup))
        if self._begin is not None:
            self._post(worker, pack(self._begin))
        return worker

    def _environment(self) -> dict[str, str]:
        """Modules are found where the run finds them; threads from the first line on."""
        path = os.pathsep.join(p or str(os.getcwd()) for p in sys.path)  # noqa: PTH109
        threads = str(self.model.tuning.threads or 1)
        return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads}

    def _device(self, i: int) -> str:
        """One CUDA device each, as far as they go."""
        if self.model.device.type != "cuda":
            return str(self.model.device)
        return f"cuda:{i % torch.cuda.device_count()}"

    def _state(self) -> dict[str, object]:
        return {k: v for k, v in vars(self.model).items() if k not in _LEFT_OUT}

    def _post(self, worker: _Worker, data: bytes) -> None:
        """Send; a worker that is gone is noticed when it is listened to."""
        with contextlib.suppress(OSError):
            worker.connection.send_bytes(data)

    def close(self) -> None:
        """End all processes; jobs in flight are lost."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers = []

    # ------------------------------------------------------------------ the calls of slots

    def begin(self, size: int, rules: Rules) -> Crew:
        """New slots, ``size`` in every process; jobs in flight are dropped."""
        self._number += 1
        self._size = size
        self._begin = Begin(self._number, size, rules, self._state())
        data = pack(self._begin)
        for worker in self._workers:
            worker.jobs.clear()
            self._post(worker, data)
        return self

    @property
    def free(self) -> int:
        """Jobs that the workers would take."""
        room = self._size + -(-self._size // _LOOKAHEAD)
        if not self._workers:
            return self.n * room
        return sum(max(0, room - len(worker.jobs)) for worker in self._workers)

    @property
    def is_empty(self) -> bool:
        """Whether no job is in flight."""
        return not any(worker.jobs for worker in self._workers)

    def add(
        self,
        attack: Attack,
        jobs: Sequence[Job],
        problem: Problem,
        goal: Tensor,
        route: Route | None = None,
    ) -> None:
        """Start jobs of one stage, where the fewest are in flight."""
        if not self._workers:
            self._workers = [self._started(i) for i in range(self.n)]
        chunk = Chunk(attack, list(jobs), problem, goal, route)
        counts = [len(worker.jobs) for worker in self._workers]
        rows: list[list[int]] = [[] for _ in counts]
        for row in range(len(jobs)):
            least = counts.index(min(counts))
            counts[least] += 1
            rows[least].append(row)
        for worker, chosen in zip(self._workers, rows, strict=True):
            if chosen:
                self._give(worker, part(chunk, chosen))

    def _give(self, worker: _Worker, chunk: Chunk) -> None:
        worker.jobs.update({job: (chunk, i) for i, job in enumerate(chunk.jobs)})
        self._post(worker, pack(chunk))

    def tick(self) -> list[Ended]:
        """The jobs that ended, as soon as there are any; nothing after a moment without.

        Raises:
            ModelCrash: where the model raised in a worker, or workers keep dying.
            ModelError: where a worker's model is another one.
        """
        ready = wait([worker.connection for worker in self._workers], _PATIENCE)
        ended: list[Ended] = []
        for worker in list(self._workers):
            if worker.connection in ready:
                ended += self._heard(worker)
        return ended

    # ------------------------------------------------------------------ what workers say

    def _heard(self, worker: _Worker) -> list[Ended]:
        try:
            message = unpack(worker.connection.recv_bytes(), self.model.device)
        except (EOFError, OSError):
            self._replace(worker)
            return []
        if isinstance(message, Failed):
            raise self._error(message)
        if isinstance(message, Ready):
            self._compare(message.answer)
            return []
        return self._done(worker, message)

    def _done(self, worker: _Worker, done: Done) -> list[Ended]:
        self.model.passes.forward += done.forward
        self.model.passes.backward += done.backward
        if done.number != self._number:
            return []
        return [one for one in done.ended if worker.jobs.pop(one.job, None) is not None]

    def _error(self, failed: Failed) -> Exception:
        last = failed.text.strip().splitlines()[-1]
        if failed.is_setup:
            return ModelError(f"The model cannot be run in another process ({last}). {_REMEDY}")
        if isinstance(failed.error, Exception):
            return failed.error
        return ModelCrash(f"A worker process raised {last}\n{failed.text}")

    def _compare(self, answer: Answer) -> None:
        """Is it the same model, bit for bit? One that draws random numbers cannot be compared."""
        if self.model.is_random:
            return
        own = self._answer
        difference = float((answer.logits - own.logits).abs().max())
        if not difference <= 1e-3 * (1 + float(own.logits.abs().max())):
            raise ModelError(
                f"The model in the worker process answers differently (scores differ by "
                f"{difference:.3g}): perhaps it is built with random weights each time it is "
                f"loaded. {_REMEDY}"
            )
        is_same = torch.equal(answer.logits, own.logits)
        if not (is_same and torch.equal(answer.gradients, own.gradients)):
            self._notice(
                "workers_round",
                "info",
                "The worker processes round differently from the main one in the last bits, so the "
                "verdict of a sample that is just about to fall may differ from a run in one "
                "process.",
            )

    def _replace(self, worker: _Worker) -> None:
        """A worker died: another one takes its jobs, from their beginning."""
        code = worker.process.wait()
        worker.connection.close()
        self._deaths += 1
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        if self._deaths > _MOST_DEATHS:
            raise ModelCrash(
                f"Worker processes died {self._deaths} times (the last one: {how}). Signal 9 is "
                "usually a lack of memory: resume with fewer workers or a smaller --batch-size. "
                "What was found so far is in the journal."
            )
        self._notice(
            "worker_died",
            "warning",
            f"A worker process died ({how}); its {len(worker.jobs)} jobs were started over in "
            "another one. The result is the same.",
        )
        place = self._workers.index(worker)
        self._workers[place] = self._started(place)
        chunks = {id(chunk): chunk for chunk, _ in worker.jobs.values()}
        for key, chunk in chunks.items():
            rows = [i for other, i in worker.jobs.values() if id(other) == key]
            self._give(self._workers[place], part(chunk, rows))

    def _notice(self, code: str, level: str, text: str) -> None:
        if all(finding.code != code or code == "worker_died" for finding in self.notices):
            finding = Finding.model_validate({"code": code, "level": level, "text": text})
            self.notices.append(finding)
