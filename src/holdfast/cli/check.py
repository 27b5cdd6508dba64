"""``holdfast check``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.verify import NetworkFiles, read_files
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.certificates.check import CheckResult


def check(
    proof: Annotated[
        Path, typer.Argument(metavar="PROOF", help="The file that verify --certificate wrote.")
    ],
    network: Annotated[
        Path | None, typer.Argument(metavar="NETWORK", help="The network, as ONNX.")
    ] = None,
    prop: Annotated[
        Path | None, typer.Argument(metavar="PROPERTY", help="The property, as VNN-LIB.")
    ] = None,
    networks: NetworkFiles = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one line of JSON.")
    ] = False,
) -> None:
    """Check a proof that no input of the network violates the property.

    Every case of the proof is derived again from the two files, without the verifier. Prints
    'accepted' and exits with 0, or 'refused' with the reason and exits with 1.
    """
    from holdfast.certificates import check as derive_again

    files: Path | dict[str, Path] | None = network
    if networks:
        files, prop = read_files(networks, network, prop)
    if files is None or prop is None:
        raise InputError(
            "Which network and which property? Write: holdfast check proof.zip net.onnx "
            "property.vnnlib"
        )
    result = derive_again(proof, files, prop)
    word = "accepted" if result.accepted else "refused"
    typer.echo(_as_json(word, result) if as_json else word)
    if not result.accepted:
        typer.echo(f"The proof shows nothing: {result.reason}.", err=True)
        raise typer.Exit(1)
    n = result.n_leaves
    typer.echo(
        f"No input violates the property: {n} case{'s' * (n != 1)} derived again in "
        f"{result.seconds:.1f} s, in real arithmetic with the weights of the file.",
        err=True,
    )


def _as_json(word: str, result: CheckResult) -> str:
    """One line: the result, the reason of a refusal, and how tight the tightest case was."""
    smallest = result.smallest if math.isfinite(result.smallest) else None
    return json.dumps(
        {
            "result": word,
            "reason": result.reason or None,
            "cases": result.n_leaves,
            "smallest_bound": smallest,
            "seconds": round(result.seconds, 3),
        }
    )
