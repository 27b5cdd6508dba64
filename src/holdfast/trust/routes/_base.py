"""What the routes share: one may run through another."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

from holdfast.attacks.base import Answer, Query, Route
from holdfast.model import Model


class Way(Route):
    """A route that a journal can write down, and that can run through another one.

    Attributes:
        name: The module's name.
        inner: The route of the gradients that this one works on; None: the model's own.
    """

    __slots__ = ()

    name: ClassVar[str]
    inner: Way | None

    @abstractmethod
    def describe(self) -> str:
        """What it does, to follow an attack's name: ``through a smooth stand-in for round``."""

    def written(self) -> dict[str, Any]:
        """What :func:`holdfast.trust.routes.route` reads."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        values.pop("directory", None)
        inner = values.pop("inner", None)
        return {"name": self.name, **values, "inner": inner.written() if inner else None}

    def _inside(self, model: Model, queries: list[Query]) -> list[Answer]:
        if self.inner is None:
            return model.averaged(queries, model.draws)
        return self.inner.answers(model, queries)

    def _inner_cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        if self.inner is None:
            return draws, draws * n_backward
        return self.inner.cost(draws, n_backward)


def described(way: Way | None, own: str) -> str:
    """One route after another in words."""
    return own if way is None else f"{own}, {way.describe()}"
