"""Run lists of instances in the verification competition's format, resumable at every line."""

from __future__ import annotations

import ast
import csv
import io
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.certificates.exact import holds
from holdfast.properties.counterexample import format_counterexample
from holdfast.properties.errors import PropertyError
from holdfast.properties.networks import Files, Joined, assign
from holdfast.properties.record import Query
from holdfast.properties.vnnlib import read_vnnlib
from holdfast.verifiers.problem import Verdict

FIELDS = ("onnx", "vnnlib", "timeout_s", "result", "seconds", "cpu_seconds", "domains", "reason")


@dataclass(frozen=True, slots=True)
class Instance:
    """A network, a property and a time limit; the names are relative to the list's folder.

    Several networks stand as ``[('f', 'a.onnx'), ('g', 'b.onnx')]``, as in the competition.
    """

    onnx: str
    vnnlib: str
    timeout_s: float

    def files(self, folder: Path) -> Files:
        """The file, or the files by the declared names.

        Raises:
            PropertyError: a list of networks in another form.
        """
        if not self.onnx.startswith("["):
            return folder / self.onnx
        try:
            return {str(name): folder / file for name, file in ast.literal_eval(self.onnx)}
        except (SyntaxError, TypeError, ValueError) as error:
            raise PropertyError(
                f"{self.onnx!r} is not a list of networks such as "
                "[('f', 'a.onnx'), ('g', 'b.onnx')]"
            ) from error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one instance.

    Attributes:
        number: place in the list, from 0.
        n_instances: length of the list.
        instance: the instance.
        result: ``sat``, ``unsat``, ``unknown``, ``timeout`` or ``error``.
        seconds: wall-clock time with reading both files.
        cpu_seconds: processor time of this process.
        domains: parts of the input set that were bounded.
        reason: plain words for everything but ``sat`` and ``unsat``.
        is_resumed: True when it was found in the results of an earlier run.
    """

    number: int
    n_instances: int
    instance: Instance
    result: str
    seconds: float
    cpu_seconds: float
    domains: int
    reason: str = ""
    is_resumed: bool = False


def read_instances(path: str | Path) -> tuple[Instance, ...]:
    """Read ``instances.csv``: network, property, seconds in each line.

    Raises:
        PropertyError: a line has another form, with its number.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        words = error.strerror or error
        raise PropertyError(f"cannot read the list of instances {str(path)!r}: {words}") from error
    found = []
    for number, row in enumerate(rows, 1):
        try:
            onnx, vnnlib, seconds = (cell.strip() for cell in row)
            found.append(Instance(onnx, vnnlib, float(seconds)))
        except ValueError as error:
            raise PropertyError(
                f"{row} is not 'network,property,seconds': {error}", number, 1
            ) from error
    return tuple(found)


def run_instances(
    path: str | Path,
    results: str | Path,
    *,
    timeout_s: float | None = None,
    counterexamples: str | Path | None = None,
    **options: Any,
) -> Iterator[Outcome]:
    """Decide every instance of a list; one line of ``results`` is written as each is done.

    A second call with the same files goes on behind the last whole line.

    Args:
        path: the list, see `read_instances`.
        results: the table to write or to continue, with the columns ``FIELDS``.
        timeout_s: a limit for every instance, where it is smaller than the list's.
        counterexamples: folder for the ``sat`` answers in the competition's format.
        **options: of `holdfast.verifiers.verify.verify`.

    Raises:
        PropertyError: the list cannot be read, or the results belong to another one.
    """
    path, results = Path(path), Path(results)
    instances = read_instances(path)
    known = _resume(results, instances)
    for number, instance in enumerate(instances):
        key = instance.onnx, instance.vnnlib
        if known.get(key):
            row = known[key].pop(0)
            times = float(row[4]), float(row[5]), int(row[6])
            yield Outcome(number, len(instances), instance, row[3], *times, row[7], True)
            continue
        limit = instance.timeout_s if timeout_s is None else min(instance.timeout_s, timeout_s)
        outcome, answer = _run(number, len(instances), path.parent, instance, limit, options)
        if counterexamples is not None and answer:
            Path(counterexamples).mkdir(parents=True, exist_ok=True)
            (Path(counterexamples) / f"{number}.txt").write_text(f"sat\n{answer}\n")
        times = f"{outcome.seconds:.4f}", f"{outcome.cpu_seconds:.4f}"
        _append(results, [*key, limit, outcome.result, *times, outcome.domains, outcome.reason])
        yield outcome


def decide(
    networks: Files, prop: str | Path, timeout_s: float, **options: Any
) -> tuple[Query, Verdict]:
    """Decide one property of one or several networks; a counterexample is judged by the text.

    Args:
        networks: the file, or a file for each declared network by its name.
        prop: the property.
        timeout_s: seconds until the answer is ``timeout``.
        **options: of `holdfast.verifiers.verify.verify`.

    Raises:
        PropertyError: the property cannot be read or does not fit the networks.
    """
    from holdfast.graphs.onnx_reader import read_onnx
    from holdfast.verifiers.verify import verify

    began = time.monotonic()
    query = read_vnnlib(prop)
    query.check_bounded()
    files = assign(query, networks)
    target: Any = next(iter(files.values()))
    wanted = query.prop
    if not query.is_plain:
        joined = Joined.of(query, files)
        target, wanted, options = joined.graph, joined.prop, {**options, "confirm": joined.confirm}
    elif not wanted.clauses:  # no clause is left whose sizes the verifier could compare
        graph = read_onnx(target)
        query.check_counts(graph.nodes[0].size, graph.nodes[-1].size)
    left = max(0.0, timeout_s - (time.monotonic() - began))
    verdict = verify(target, wanted, timeout_s=left, **options)
    found = verdict.counterexample
    if found is not None and not found.rounded and not holds(query.text, found.x, found.y):
        reason = "a counterexample satisfies the rounded property but not its exact text"
        verdict = Verdict(
            "unknown", seconds=verdict.seconds, domains=verdict.domains, reason=reason
        )
    return query, verdict


def _run(
    number: int, total: int, folder: Path, instance: Instance, limit: float, options: dict[str, Any]
) -> tuple[Outcome, str]:
    """The outcome and, for ``sat``, the assignment."""
    wall, cpu, answer = time.perf_counter(), time.process_time(), ""
    try:
        files = instance.files(folder)
        query, verdict = decide(files, folder / instance.vnnlib, limit, **options)
        result, domains, reason = verdict.status, verdict.domains, verdict.reason
        if verdict.counterexample is not None:
            found = verdict.counterexample
            answer = format_counterexample(query, found.x, found.y)
            reason = f"{found.rounded} inputs rounded to float32" if found.rounded else ""
        reason = "; ".join(filter(None, (reason, *query.warnings)))
    except Exception as error:  # one broken instance must not end a run of hundreds
        result, domains, reason = "error", 0, f"{type(error).__name__}: {error}"
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    outcome = Outcome(number, total, instance, result, seconds, cpu_seconds, domains, reason)
    return outcome, answer


def _resume(
    results: Path, instances: tuple[Instance, ...]
) -> dict[tuple[str, str], list[list[str]]]:
    """Whole lines of an earlier run by instance; a torn last line is cut off."""
    if not results.exists():
        _append(results, list(FIELDS))
        return {}
    text = results.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        results.write_text(text or ",".join(FIELDS) + "\n", encoding="utf-8")
    header, *rows = list(csv.reader(io.StringIO(text))) or [list(FIELDS)]
    left = Counter((instance.onnx, instance.vnnlib) for instance in instances)
    known: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows:
        key = (row[0], row[1]) if len(row) == len(FIELDS) else ("", "")
        left[key] -= 1
        known.setdefault(key, []).append(row)
    if tuple(header) != FIELDS or any(n < 0 for n in left.values()):
        raise PropertyError(f"{str(results)!r} holds the results of another list of instances: "
                            "name another file, or remove it")  # fmt: skip
    return known


def _append(results: Path, row: list[Any]) -> None:
    with results.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow([str(v).replace("\n", " ") for v in row])
        file.flush()
