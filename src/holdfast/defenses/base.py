"""What a recipe is: how to change the inputs of a batch, and what to minimise on them.

One training loop (:mod:`holdfast.hardening`) owns everything else: devices, precision, schedules,
averaged weights, checkpoints, alarms. It calls :meth:`Recipe.update` once per batch and takes the
optimiser's step itself. A recipe keeps nothing on itself: what it must remember from one batch to
the next goes into :attr:`Step.state`, a dictionary of tensors that is part of every checkpoint.

Recipes compose: a wrapper (weight perturbation, another loss, other data) is a recipe that holds a
recipe and forwards to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.attacks.base import NORMS, Attack, Objective
from holdfast.engine.random import Rng
from holdfast.threat import AllowedSet, Domain, Threat

if TYPE_CHECKING:
    from holdfast.model import Model


@dataclass(frozen=True, slots=True)
class Card:
    """What users, documentation, planner and contract tests need to know of a recipe.

    Attributes:
        name: The name in plans: the module's name.
        title: One line in plain words.
        paper: Authors, year, title and arXiv number.
        norms: The threats' norms it can work in.
        needs: Data beside labelled samples: ``extra`` (more samples), ``teacher`` (another model).
        n_threats: How many threats it trains against at once: 1, or 0 for any number.
        is_single_step: Whether it can collapse as single-step training does (Wong et al., 2020):
            robust to one step, broken by several. The loop then watches it more closely.
        is_certified: Whether it minimises a bound, so that the result can be proven robust.
        stays_inside: Whether crafted inputs lie in the threat's set; noise may leave it on purpose.
    """

    name: str
    title: str
    paper: str
    norms: frozenset[str] = NORMS
    needs: frozenset[str] = frozenset()
    n_threats: int = 1
    is_single_step: bool = False
    is_certified: bool = False
    stays_inside: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one training step, on the device; a record of rows.

    Attributes:
        x: Clean inputs ``(n, *shape)`` inside the domain, after augmentation.
        y: Labels ``(n,)`` int64.
        ids: Number of each sample in the training data ``(n,)`` int64; extra samples count on.
        is_extra: Whether a sample is an extra (often synthetic) one ``(n,)`` bool.
        x_adv: Changed inputs ``(n, *shape)``, a leaf (it may ask for its own gradient); None before
            :meth:`Recipe.craft`.
        crafted: Whatever else :meth:`Recipe.craft` hands to :meth:`Recipe.loss`, by name.
        y_other: Label of the pasted part ``(n,)`` where CutMix was at work, else None.
        share: How much of each sample is of label ``y`` ``(n,)``; None: all of it.
        smoothing: Label smoothing of :meth:`cross_entropy`.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    is_extra: Tensor
    x_adv: Tensor | None = None
    crafted: Mapping[str, Tensor] = field(default_factory=dict)
    y_other: Tensor | None = None
    share: Tensor | None = None
    smoothing: float = 0.0

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Cross-entropy of the labels ``(n,)``; of both labels where two images were mixed."""
        loss = F.cross_entropy(logits, self.y, reduction="none", label_smoothing=self.smoothing)
        if self.y_other is None or self.share is None:
            return loss
        other = F.cross_entropy(
            logits, self.y_other, reduction="none", label_smoothing=self.smoothing
        )
        return self.share * loss + (1 - self.share) * other

    @property
    def adversarial(self) -> Tensor:
        """The changed inputs where there are any, else the clean ones."""
        return self.x if self.x_adv is None else self.x_adv


class Step(Protocol):
    """What the loop lends to a recipe for one update.

    Attributes:
        network: Inputs in the domain to logits ``(n, k)``: the user's module with normalisation and
            head. Its parameters are the live weights.
        model: The same as :class:`~holdfast.Model`, for attacks.
        threats: All threats, at their full radius.
        progress: Share of the training that is done, in [0, 1].
        ramp: Share of the radius in use, in [0, 1]: rises from 0 at first, then stays at 1.
        index: Number of the update.
        seed: Of the training.
        repeat: How often this batch was used before (see :attr:`Recipe.repeats`).
        state: What the recipe remembers: named tensors, part of every checkpoint.
        notes: Named parts of the loss for the log, detached: ``step.notes["kl"] = kl.detach()``.
    """

    network: nn.Module
    model: Model
    threats: tuple[Threat, ...]
    progress: float
    ramp: float
    index: int
    seed: int
    repeat: int
    state: dict[str, Tensor]
    notes: dict[str, Tensor]

    @property
    def domain(self) -> Domain:
        """The box of valid inputs."""
        ...

    @property
    def threat(self) -> Threat:
        """The (first) threat; :meth:`bind` ramps its radius."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Training-mode logits ``(n, k)`` float32, with the graph to the weights."""
        ...

    def logits_without_gradient(self, x: Tensor) -> Tensor:
        """Logits in the mode that attacks see (evaluation by default), without any graph."""
        ...

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
        """Changed inputs ``(n, *shape)``, detached and allowed.

        Weights get no gradients and the network is in the recorded mode (evaluation by default)
        while it runs; modes and buffers come back as they were.

        Args:
            batch: The samples; random numbers hang on their ids.
            attack: Steps, start and step size; an absolute ``step_size`` is ramped as the radius.
            threat: Instead of :attr:`threat`.
            objective: What to maximise, ``function(logits, *rows)`` -> ``(n,)``, instead of the
                attack's own loss; e.g. TRADES' divergence, with the clean answers as rows.
            model: Another network to attack, e.g. a static one of an ensemble.
            start: First points, instead of the attack's own.
            keep: ``last`` iterate (as in training papers, one pass cheaper) or ``best``: that of
                the largest loss met.
        """
        ...

    def input_gradient(
        self, x: Tensor, loss: Callable[[Tensor], Tensor], *, create_graph: bool = False
    ) -> Tensor:
        """Gradient ``(n, *shape)`` with respect to ``x`` of ``loss(logits)`` ``(n,)``, summed.

        In the mode that attacks see. With ``create_graph`` it can be differentiated further, with
        respect to the weights too.
        """
        ...

    def bind(self, batch: Batch, threat: Threat | None = None) -> AllowedSet:
        """The allowed changes of the clean inputs under the ramped threat."""
        ...

    def rng(self, batch: Batch, purpose: int = 0) -> Rng:
        """Random numbers of each sample, keyed by (seed, update, repeat, sample, purpose)."""
        ...

    def shared_rng(self, purpose: int = 0) -> Rng:
        """One row of random numbers for choices that the whole batch shares, over processes too."""
        ...

    def full_precision(self) -> AbstractContextManager[None]:
        """Float32 inside, where the loop otherwise uses a shorter type; for double backward."""
        ...

    def weight_gradients(self, loss: Tensor) -> list[Tensor]:
        """Gradients of ``loss`` for :meth:`weights`, averaged over processes; ``.grad`` untouched.

        Weights that the loss does not depend on get zeros.
        """
        ...

    def weights(self) -> list[nn.Parameter]:
        """The trained weights."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a scalar loss (scaled, synchronised over processes)."""
        ...


class Recipe(ABC):
    """The interface of every recipe; concrete ones are final frozen dataclasses of options."""

    __slots__ = ()

    card: ClassVar[Card]

    @property
    @abstractmethod
    def passes(self) -> float:
        """Forward plus backward passes per sample of a batch, over all its repeats."""

    @property
    def repeats(self) -> int:
        """Updates made with each batch, one after the other (free training); an epoch has fewer."""
        return 1

    def craft(self, step: Step, batch: Batch) -> Batch:
        """The batch with ``x_adv``; by default nothing is changed."""
        return batch

    @abstractmethod
    def loss(self, step: Step, batch: Batch) -> Tensor:
        """What to minimise on a crafted batch: a scalar with the graph to the weights."""

    def finish(self, step: Step, batch: Batch) -> None:  # noqa: B027 (optional)
        """After the backward pass of a crafted batch: ``batch.x_adv.grad`` is there if asked."""

    def update(self, step: Step, batch: Batch) -> Tensor:
        """Craft, and accumulate the gradients; the detached loss. Wrappers may override it."""
        crafted = self.craft(step, batch)
        loss = self.loss(step, crafted)
        step.backward(loss)
        self.finish(step, crafted)
        return loss.detach()

    def ramp(self, progress: float, share: float) -> float:
        """Share of the radius in use: from 0 to 1 over the first ``share`` of the training."""
        return 1.0 if share <= 0 else min(1.0, progress / share)

    def safer(self) -> Recipe | None:
        """A recipe to go on with after a collapse: a stronger inner attack; None: there is none."""
        return None

    def with_threats(self, threats: Sequence[Threat]) -> Self:
        """The recipe fitted to the threats, for those whose options depend on them."""
        return self

    def options(self) -> dict[str, Any]:
        """All options by name, as a plan writes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def describe(self) -> str:
        """The text that :func:`holdfast.hardening.recipe_text.parse_recipe` reads.

        For example ``trades(beta=6.0, attack=pgd(steps=10))``.
        """
        inner = ", ".join(f"{name}={_text(value)}" for name, value in self.options().items())
        return f"{self.card.name}({inner})"

    def __call__(self, step: Step, batch: Batch) -> Tensor:
        """Craft, then the loss: what one's own training loop calls."""
        return self.loss(step, self.craft(step, batch))


def _text(value: Any) -> str:
    if isinstance(value, Recipe):
        return value.describe()
    if isinstance(value, Attack):
        options = {k: v for k, v in value.options().items() if v != _default(value, k)}
        inner = ", ".join(f"{name}={_text(option)}" for name, option in options.items())
        return f"{value.card.name}({inner})"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return f"{value!r}"


def _default(attack: Attack, name: str) -> Any:
    return next(f.default for f in fields(attack) if f.name == name)  # type: ignore[arg-type]
