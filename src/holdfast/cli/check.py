"""``holdfast check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    proof: Annotated[
        Path, typer.Argument(metavar="PROOF", help="The file that verify --certificate wrote.")
    ],
    network: Annotated[Path, typer.Argument(metavar="NETWORK", help="The network, as ONNX.")],
    prop: Annotated[Path, typer.Argument(metavar="PROPERTY", help="The property, as VNN-LIB.")],
) -> None:
    """Check a proof that no input of the network violates the property.

    Every case of the proof is derived again from the two files, without the verifier. Prints
    'accepted' and exits with 0, or 'refused' with the reason and exits with 1.
    """
    from holdfast.certificates import check as derive_again

    result = derive_again(proof, network, prop)
    typer.echo("accepted" if result.accepted else "refused")
    if not result.accepted:
        typer.echo(f"The proof shows nothing: {result.reason}.", err=True)
        raise typer.Exit(1)
    typer.echo(
        f"No input violates the property: {result.n_leaves} cases derived again in "
        f"{result.seconds:.1f} s, in real arithmetic with the weights of the file.",
        err=True,
    )
