"""Transfer: gradients of a small network that was trained on the model's answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

from holdfast.attacks.base import Answer, Query
from holdfast.model import Model
from holdfast.trust.distilling import load
from holdfast.trust.routes._base import Way


@final
@dataclass(frozen=True)
class Surrogate(Way):
    """The model's own logits, the substitute's losses and gradients.

    Attributes:
        file: The substitute's weights.
        directory: Where that lies: the run's directory.
        inner: Always None.
    """

    name: ClassVar[str] = "surrogate"

    file: str = ""
    directory: str = field(default="", repr=False)
    inner: Way | None = None

    @cached_property
    def _net(self) -> Model:
        return Model(load(Path(self.directory) / self.file), head="logits")

    def answers(self, model: Model, queries: list[Query]) -> list[Answer]:
        """One forward pass of the model, one pass there and back of the substitute."""
        net = self._net
        if net.device != model.device:
            net.modules[0].to(model.device)
            net.device = model.device
        net.domain, net.block = model.domain, model.block
        own = model.averaged([replace(q, objective=None, route=None) for q in queries], model.draws)
        other = net.averaged([replace(q, route=None) for q in queries], 1)
        return [Answer(o.logits, s.losses, s.gradients) for o, s in zip(own, other, strict=True)]

    def cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        """The substitute's passes are not the model's."""
        return draws, 0

    def describe(self) -> str:
        """``gradients of a substitute trained on the model's answers``."""
        return "gradients of a substitute trained on the model's answers"


ROUTE = Surrogate
