"""``holdfast verify``: one property of one network, or a list of them."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.errors import InputError, PrerequisiteError

if TYPE_CHECKING:
    from holdfast.properties import Query
    from holdfast.verifiers.problem import Verdict

TIMEOUT_S = 116.0
EXIT_CODES = {"sat": 0, "unsat": 0, "unknown": 10, "timeout": 11}
EXAMPLES = """Examples:

  holdfast verify net.onnx property.vnnlib

  holdfast verify net.onnx property.vnnlib --certificate proof.zip

  holdfast verify property.vnnlib --network f=old.onnx --network g=new.onnx

  holdfast verify --instances instances.csv --out results.csv --timeout 30

Exit codes: 0 for sat and unsat, 10 for unknown, 11 for timeout, 2 for files that cannot be used;
with --instances 0, or 1 where an instance could not be decided."""

_ONE = "One property"
_LIST = "A list of instances"


NetworkFile = Annotated[
    Path | None,
    typer.Argument(metavar="NETWORK", help="The network, as ONNX (.onnx).", show_default=False),
]
PropertyFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="PROPERTY",
        help="What a violation is, as VNN-LIB 1.0 or 2.0 (.vnnlib, also gzipped).",
        show_default=False,
    ),
]
NetworkFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--network",
        metavar="NAME=FILE",
        help="The file of a network that the property (VNN-LIB 2.0) declares under this name; once "
        "for each network that is not equal-to another. PROPERTY is then the only argument.",
        rich_help_panel=_ONE,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Time for each property: 116 if not given; with --instances the list's own, "
        "or this where it is smaller.",
    ),
]
CertificateFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the proof of unsat, for 'holdfast check'.",
        rich_help_panel=_ONE,
    ),
]
InstancesFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A table of network,property,seconds; names are relative to its folder.",
        rich_help_panel=_LIST,
    ),
]
ResultsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The results; the same command again goes on where they end.",
        rich_help_panel=_LIST,
    ),
]
CounterexampleFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write the counterexample of each sat instance to NUMBER.txt here.",
        rich_help_panel=_LIST,
    ),
]
NoAttack = Annotated[
    bool, typer.Option("--no-attack", help="Look for proofs only: sat is then never found.")
]
Seed = Annotated[int, typer.Option(metavar="SEED", help="Of all random numbers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, one line each.")]


def verify(
    network: NetworkFile = None,
    prop: PropertyFile = None,
    networks: NetworkFiles = None,
    timeout: Timeout = None,
    certificate: CertificateFile = None,
    instances: InstancesFile = None,
    out: ResultsFile = None,
    counterexamples: CounterexampleFolder = None,
    no_attack: NoAttack = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find an input that violates a property of a network, or prove that there is none.

    Prints sat with the input and the outputs that onnxruntime gives for it, unsat, unknown, or
    timeout; standard error says in a sentence what that means.
    """
    files: Path | dict[str, Path] | None = network
    if networks:
        files, prop = read_files(networks, network, prop)
    _check_options(files, prop, timeout, certificate, instances, out, counterexamples)
    options: dict[str, Any] = {"attack": not no_attack, "seed": seed}
    if instances is not None:
        from holdfast.cli.instances import run_list

        assert out is not None
        run_list(instances, out, timeout, counterexamples, as_json, options)
        return
    assert files is not None
    assert prop is not None
    limit = TIMEOUT_S if timeout is None else timeout
    _verify_one(files, prop, limit, certificate, as_json, options)


def read_files(
    networks: list[str], first: Path | None, second: Path | None
) -> tuple[dict[str, Path], Path | None]:
    """Files by name from ``NAME=FILE``, and the property, which is then the only argument.

    Raises:
        InputError: another form, a name twice, or a network as argument as well.
    """
    files: dict[str, Path] = {}
    for text in networks:
        name, sign, file = text.partition("=")
        if not (name and sign and file):
            raise InputError(f"--network {text}: must be NAME=FILE, as in --network f=net.onnx.")
        if name in files:
            raise InputError(f"--network {text}: {name} has the file {files[name]} already.")
        files[name] = Path(file)
    if second is not None:
        raise InputError(
            f"{first} {second}: with --network the property is the only argument; give every "
            "network as --network NAME=FILE."
        )
    return files, first


def _check_options(
    network: Path | dict[str, Path] | None,
    prop: Path | None,
    timeout: float | None,
    certificate: Path | None,
    instances: Path | None,
    out: Path | None,
    counterexamples: Path | None,
) -> None:
    """Refuse what is missing or does not go together, before anything is read."""
    if timeout is not None and math.isnan(timeout):
        raise InputError("--timeout must be a number of seconds, at least 0; got nan.")
    if instances is None:
        _check_one(network, prop, counterexamples if out is None else out)
    else:
        _check_many(certificate if network is None else network, out)
    for option, file in (("--certificate", certificate), ("--out", out)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise InputError(
                f"{option} {file}: must be a file in a folder that exists; make the folder or "
                "name another file."
            )
    _check_packages()


def _check_one(
    network: Path | dict[str, Path] | None, prop: Path | None, of_many: Path | None
) -> None:
    if network is None or prop is None:
        raise InputError(
            "Which network and which property? Write: holdfast verify net.onnx "
            "property.vnnlib, or give --instances with a list of both."
        )
    if of_many is not None:
        raise InputError("--out and --counterexamples belong to --instances.")


def _check_many(of_one: Path | dict[str, Path] | None, out: Path | None) -> None:
    if of_one is not None:
        raise InputError(
            "--instances names the networks and properties itself and writes no proofs: leave out "
            "NETWORK, PROPERTY and --certificate, or verify that one property without --instances."
        )
    if out is None:
        raise InputError("Where should the results go? Give --out results.csv.")


def _check_packages() -> None:
    """Networks are read with ``onnx``, and counterexamples replayed with ``onnxruntime``."""
    try:
        for package in ("onnx", "onnxruntime"):
            import_module(package)
    except ImportError as error:
        raise PrerequisiteError(
            f'verify needs {error.name}, which is not installed: pip install "holdfast[onnx]"'
        ) from None


def _verify_one(
    network: Path | dict[str, Path],
    prop: Path,
    timeout_s: float,
    certificate: Path | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """Decide one property, print the answer, and exit with its code."""
    from holdfast.properties.instances import decide

    if certificate is not None:
        _check_covered(network, prop)
    wanted = certificate is not None
    query, verdict = decide(network, prop, timeout_s, certificate=wanted, **options)
    typer.echo(_as_json(query, verdict) if as_json else _answer(query, verdict))
    for warning in query.warnings:
        typer.echo(f"Warning: {warning}.", err=True)
    typer.echo(_meaning(verdict, timeout_s), err=True)
    if certificate is not None:
        _write_certificate(verdict, network, prop, certificate)
    if code := EXIT_CODES[verdict.status]:
        raise typer.Exit(code)


def _check_covered(network: Path | dict[str, Path], prop: Path) -> None:
    """Tell before the search, not after it, that no proof can be written for a network."""
    from holdfast.certificates.check import read_steps
    from holdfast.certificates.exact import read_exact
    from holdfast.certificates.several import assigned
    from holdfast.errors import CertificateError
    from holdfast.graphs.onnx_reader import load_model, read_onnx
    from holdfast.properties import read_vnnlib
    from holdfast.properties.networks import assign

    read = read_vnnlib(prop)  # a file that is no property or no network is an error of its own
    for file in assign(read, network).values():
        _ = read_onnx(file) if read.is_plain else load_model(file)
    try:
        query = read_exact(read.text)
        read_steps(query, assigned(query, network), None)
    except CertificateError as error:
        raise CertificateError(
            f"No proof can be written for this network: {error}. It can be verified without "
            "--certificate."
        ) from error


def _write_certificate(
    verdict: Verdict, network: Path | dict[str, Path], prop: Path, path: Path
) -> None:
    from holdfast.certificates.emit import write_proof

    if verdict.status != "unsat":
        typer.echo(f"No proof is written: the answer is {verdict.status}, not unsat.", err=True)
        return
    write_proof(verdict, network, prop, path)
    if isinstance(network, Path):
        words = f"{network} {prop}"
    else:
        words = " ".join([str(prop), *(f"--network {n}={file}" for n, file in network.items())])
    typer.echo(f"Proof: {path}. Check it: holdfast check {path} {words}", err=True)


def _answer(query: Query, verdict: Verdict) -> str:
    """The answer as the verification competition wants it."""
    from holdfast.properties import format_counterexample

    found = verdict.counterexample
    if found is None:
        return verdict.status
    return f"{verdict.status}\n{format_counterexample(query, found.x, found.y)}"


def _as_json(query: Query, verdict: Verdict) -> str:
    found = verdict.counterexample
    content: dict[str, Any] = {
        "result": verdict.status,
        "seconds": round(verdict.seconds, 4),
        "domains": verdict.domains,
        "reason": verdict.reason,
        "warnings": list(query.warnings),
        "counterexample": None,
    }
    if found is not None:
        content["counterexample"] = {
            "x": found.x.tolist(),
            "y": found.y.tolist(),
            "rounded": found.rounded,
        }
    return json.dumps(content)


def _meaning(verdict: Verdict, timeout_s: float) -> str:
    """One plain sentence about what an answer says, and what it does not."""
    seconds = f"({verdict.seconds:.1f} s)"
    match verdict.status:
        case "sat":
            assert verdict.counterexample is not None
            rounded = verdict.counterexample.rounded
            nearest = (
                f"; for {rounded} of the inputs the range holds no float32 value and the nearest "
                "one was taken"
                if rounded
                else ""
            )
            return f"Violated: onnxruntime gives these outputs for this input{nearest} {seconds}."
        case "unsat":
            return (
                "Proven: no input violates the property, in real arithmetic with the weights of "
                f"the file; rounding at run time is not covered {seconds}."
            )
        case "timeout":
            return (
                f"Open: neither a violation nor a proof was found within {timeout_s:g} s, which "
                "says nothing either way; --timeout gives more time."
            )
        case _:
            return f"Open: {verdict.reason or 'the search ended without an answer'} {seconds}."
