"""What the loop lends to a recipe for one update: see :class:`holdfast.defenses.base.Step`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.attacks.base import Attack, Objective
from holdfast.defenses.base import Batch
from holdfast.engine.inner import inner_attack
from holdfast.engine.random import Rng
from holdfast.hardening.network import Network, attackable
from holdfast.model import Model
from holdfast.threat import AllowedSet, Domain, Threat, parse_threat

_ATTACK, _SHARED = 11, 12  # what random numbers are for


@dataclass
class Lent:
    """A step of the loop; the same object throughout, its numbers moving on."""

    network: nn.Module
    model: Model
    threats: tuple[Threat, ...]
    seed: int = 0
    progress: float = 0.0
    ramp: float = 1.0
    index: int = 0
    repeat: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)
    is_eval: bool = True
    fabric: Any = None
    scale: float = 1.0

    @property
    def threat(self) -> Threat:
        """The first threat; its radius is ramped when it is bound."""
        return self.threats[0]

    @property
    def domain(self) -> Domain:
        """The box of valid inputs."""
        return self.model.domain

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.fabric is None else self.fabric.autocast()

    def full_precision(self) -> AbstractContextManager[Any]:
        """No autocast inside."""
        return torch.autocast(self.model.device.type, enabled=False)

    def logits(self, x: Tensor) -> Tensor:
        """Training-mode logits with the graph to the weights."""
        self.network.train()
        with self._autocast():
            return self.network(x).float()

    def logits_without_gradient(self, x: Tensor) -> Tensor:
        """Logits as attacks see them."""
        with torch.no_grad(), self._as_attacked(), self._autocast():
            return self.network(x).float()

    def bind(self, batch: Batch, threat: Threat | None = None) -> AllowedSet:
        """The allowed changes under the ramped threat."""
        allowed = (threat or self.threat).bind(batch.x, self.domain)
        return allowed if self.ramp >= 1 else allowed.resized(allowed.radius * self.ramp)

    def rng(self, batch: Batch, purpose: int = 0) -> Rng:
        """Random numbers of each sample."""
        return Rng(batch.ids).fold(self.seed).fold(self.index).fold(self.repeat).fold(purpose)

    def shared_rng(self, purpose: int = 0) -> Rng:
        """One row that all processes agree on."""
        one = Rng.from_seed(self.seed, 1, self.model.device).fold(_SHARED)
        return one.fold(self.index).fold(self.repeat).fold(purpose)

    def attack(
        self,
        batch: Batch,
        attack: Attack,
        *,
        threat: Threat | None = None,
        objective: Objective | None = None,
        model: Model | Callable[[Tensor], Tensor] | None = None,
        start: Tensor | None = None,
        keep: Literal["last", "best"] = "last",
    ) -> Tensor:
        """The inner attack, through the engine."""
        with self._buffers_kept(), self._autocast():
            return inner_attack(
                _ramped(attack, self.ramp),
                self.model if model is None else model,
                batch.x,
                batch.y,
                self.bind(batch, threat),
                self.rng(batch, _ATTACK),
                keep=keep,
                objective=objective,
                start=start,
                is_eval=self.is_eval,
            )

    def input_gradient(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], *, create_graph: bool = False
    ) -> Tensor:
        """Gradient of the summed loss with respect to ``x``."""
        x = x if create_graph and x.requires_grad else x.detach().requires_grad_(True)
        with self._as_attacked(), torch.enable_grad(), self._autocast():
            total = loss(self.network(x).float()).sum()
            (gradient,) = torch.autograd.grad(total, x, create_graph=create_graph)
        return gradient

    def weights(self) -> list[nn.Parameter]:
        """The trained weights."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def weight_gradients(self, loss: Tensor) -> list[Tensor]:
        """Gradients of the loss, averaged over processes."""
        weights = self.weights()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        pairs = zip(found, weights, strict=True)
        gradients = [torch.zeros_like(w) if g is None else g for g, w in pairs]
        return averaged_over_processes(self.fabric, gradients)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        if self.fabric is None:
            loss.backward()
        else:
            self.fabric.backward(loss * self.scale)

    # ------------------------------------------------------------------ modes

    @contextmanager
    def _as_attacked(self) -> Iterator[None]:
        """The mode that attacks see; modes and buffers come back."""
        changed = [m for m in self.network.modules() if m.training] if self.is_eval else []
        for m in changed:
            m.training = False
        try:
            with self._buffers_kept():
                yield
        finally:
            for m in changed:
                m.training = True

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """In training mode a forward pass moves the statistics: put them back."""
        if self.is_eval:
            yield
            return
        saved = [(b, b.detach().clone()) for b in self.network.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)


def averaged_over_processes(fabric: Any, tensors: list[Tensor]) -> list[Tensor]:
    """The mean of each tensor over all processes, in one message."""
    if fabric is None or fabric.world_size == 1 or not tensors:
        return tensors
    flat = fabric.all_reduce(torch.cat([t.flatten() for t in tensors]), reduce_op="mean")
    parts = flat.split([t.numel() for t in tensors])
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]


def _ramped(attack: Attack, ramp: float) -> Attack:
    """An absolute step size shrinks with the radius; a relative one does so by itself."""
    size = getattr(attack, "step_size", None)
    if ramp >= 1 or size is None:
        return attack
    return replace(attack, step_size=size * ramp)  # type: ignore[type-var]


def own_step(module: nn.Module | Model, threat: Threat | str, seed: int = 0) -> Lent:
    """A step for one's own training loop: ``loss = recipe(step, batch)`` and nothing else.

    The module is trained in place: what the optimiser does stays the caller's. Set ``progress`` and
    ``ramp``, and raise ``index`` after every update, so that random numbers move on.
    """
    model = Model.wrap(module)
    network = Network(model)
    known = threat if isinstance(threat, Threat) else parse_threat(threat)
    return Lent(network, attackable(network, model), (known,), seed)


def own_batch(x: Tensor, y: Tensor) -> Batch:
    """A batch for one's own loop: the samples are told apart by their place."""
    ids = torch.arange(len(x), device=x.device)
    return Batch(x, y, ids, torch.zeros_like(ids, dtype=torch.bool))
