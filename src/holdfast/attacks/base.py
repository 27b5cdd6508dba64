"""What an attack is: three pure functions and a state.

The engine owns the loop. It asks every attack for points (:meth:`Attack.ask`), runs the model once
for all of them, and tells each attack the answer (:meth:`Attack.tell`). An attack never runs the
model, never judges its own success, and keeps its whole memory in a state whose rows can be taken
out, replaced and joined (see :mod:`holdfast.rows`). Row i of a state knows nothing of row j.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from holdfast.engine.random import Rng
from holdfast.threat import Access, AllowedSet, Threat

if TYPE_CHECKING:
    from holdfast.model import Model

NORMS = frozenset({"linf", "l2", "l1", "l0"})


@dataclass(frozen=True, slots=True)
class Card:
    """What users, documentation, planner and contract tests need to know of an attack.

    Attributes:
        name: The name in plans: the module's name.
        title: One line in plain words.
        paper: Authors, year, title and arXiv number.
        access: What it must see of the model.
        norms: The threats' norms it can work in.
        is_stochastic: Whether it draws random numbers.
        is_minimal: Whether it looks for the smallest change rather than for any allowed one.
        is_blind: Whether it searches without gradients, if only at first: what it breaks after
            gradient attacks have failed is a sign that the gradients mislead.
        takes_start: Whether it can go on from any allowed point (:attr:`Problem.start`).
    """

    name: str
    title: str
    paper: str
    access: Access
    norms: frozenset[str] = NORMS
    is_stochastic: bool = True
    is_minimal: bool = False
    is_blind: bool = False
    takes_start: bool = False

    @property
    def sees_less(self) -> bool:
        """Whether it should never find what attacks that follow gradients from x on have missed."""
        return self.is_blind or self.access is not Access.GRADIENTS


@dataclass(frozen=True, slots=True)
class Problem:
    """The jobs that an attack starts with; one row each.

    Attributes:
        x: Clean inputs ``(n, *shape)``.
        y: Labels ``(n,)`` int64.
        target: Class to reach ``(n,)`` int64, or -1 for any but ``y``.
        allowed: The allowed changes of each row.
        rng: Random numbers of each row, already told apart by sample, attack, target and restart.
        logits: The model's answer to ``x``, ``(n, k)``: known from the clean pass, free of charge.
        goal: Class that the attacker wants ``(n,)`` int64, or -1 where any wrong one will do;
            None: the same as ``target``, which may be no more than a direction to try.
        start: Points to begin at ``(n, *shape)``, where the attack can begin anywhere in the
            domain or, with :attr:`Card.takes_start`, in the allowed set; None: at ``x``.
        opening: Gradients ``(n, *shape)`` of :attr:`Attack.opening` at ``x``, where known already,
            zero in rows where they are not; None: in no row.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    allowed: AllowedSet
    rng: Rng
    logits: Tensor
    goal: Tensor | None = None
    start: Tensor | None = None
    opening: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """What to differentiate: ``function(logits, *rows)`` -> ``(n,)``, to be maximised.

    ``rows`` are tensors with one row per point, so that the engine may cut the batch anywhere.

    Attributes:
        width: 0 for one loss per point. Otherwise the function gives ``(n, width)``, and all the
            gradients come from a single forward pass; each is paid as a backward pass.
    """

    function: Callable[..., Tensor]
    rows: tuple[Tensor, ...] = ()
    width: int = 0

    @property
    def n_backward(self) -> int:
        """Backward passes per point."""
        return max(1, self.width)


class Route(ABC):
    """Another way to the gradients than the model's own backward pass, where that one misleads.

    A route only changes what an attack follows. The logits of its answers are the true model's,
    and claims are judged on the true model as always.
    """

    __slots__ = ()

    @abstractmethod
    def answers(self, model: Model, queries: list[Query]) -> list[Answer]:
        """Answer queries that all have an objective of the same width, in one call."""

    @abstractmethod
    def cost(self, draws: int, n_backward: int) -> tuple[int, int]:
        """Forward and backward passes of the model per point of such a query."""


@dataclass(frozen=True, slots=True)
class Query:
    """What an attack wants to know.

    Attributes:
        points: Inputs to run ``(n, *shape)``.
        objective: None where the logits are enough: then no backward pass is paid.
        route: Where gradients come from; None: from the model's own backward pass.
        progress: Share of the attack that is done ``(n,)``, for routes that grow sharper with it.
    """

    points: Tensor
    objective: Objective | None = None
    route: Route | None = None
    progress: Tensor | None = None

    @property
    def n_backward(self) -> int:
        """Backward passes per point."""
        return 0 if self.objective is None else self.objective.n_backward

    def passes(self, draws: int) -> tuple[int, int]:
        """Forward and backward passes per point, where the model is run ``draws`` times."""
        if self.route is None or self.objective is None:
            return draws, draws * self.n_backward
        return self.route.cost(draws, self.n_backward)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Attributes:
        logits: ``(n, k)``.
        losses: The objective's values ``(n,)``, or ``(n, width)``; empty without an objective.
        gradients: Their gradients with respect to the points ``(n, *shape)``, or
            ``(n, width, *shape)``; empty likewise.
    """

    logits: Tensor
    losses: Tensor
    gradients: Tensor


class Attack(ABC):
    """The interface of every attack; concrete ones are final frozen dataclasses of options.

    Attributes:
        card: What it is.
        restarts: Jobs per sample with other random numbers; each runs only if the last one failed.
        n_targets: 0 for one untargeted job, else targeted jobs at the ``n_targets`` likeliest wrong
            classes, one after the other. Ignored where the goal names a class.
    """

    __slots__ = ()

    card: ClassVar[Card]

    @property
    @abstractmethod
    def max_queries(self) -> int:
        """Points that one job may ask for at most."""

    @abstractmethod
    def init(self, problem: Problem) -> Any:
        """The state of new jobs. It has a bool tensor ``finished`` ``(n,)``."""

    @abstractmethod
    def ask(self, state: Any) -> Query:
        """The points that every row wants to know about now."""

    @abstractmethod
    def tell(self, state: Any, answer: Answer) -> Any:
        """The state one step further. Rows that are ``finished`` have nothing more to ask."""

    @property
    def stays_inside(self) -> bool:
        """Whether every point it asks about is allowed; points outside count for nothing."""
        return not self.card.is_minimal

    @property
    def opening(self) -> Callable[..., Tensor] | None:
        """The loss ``f(logits, y, target)`` whose gradient at x every job asks for first.

        None where jobs begin otherwise. Whoever has just run the model at x may know it already.
        """
        return None

    def phase(self, state: Any) -> Tensor | None:
        """What kind of question each row has now ``(n,)`` int64; None: always the same kind.

        Rows of different kinds (several gradients, one, none) are kept apart: ``ask`` and ``tell``
        only ever see rows of one kind together.
        """
        return None

    @property
    def looks_ahead(self) -> bool:
        """Whether it can tell what comes next, in some of its phases."""
        return type(self).ahead is not Attack.ahead

    def ahead(self, state: Any, n: int) -> Any | None:
        """What comes next if the answers change nothing, so that it can be asked in one call.

        Returns:
            ``n`` copies of every row, one after the other: its state after 0, 1, ..., ``n - 1``
            answers that change nothing, ``finished`` from where another question is not sure to
            follow; None where the attack cannot tell.
        """
        return None

    def is_fruitless(self, state: Any, answer: Answer) -> Tensor:
        """Which answers to such copies change nothing but the number of the question ``(m,)``."""
        raise NotImplementedError

    def option(self, name: str, default: int) -> int:
        """An option that not every attack has, e.g. ``restarts``."""
        return int(getattr(self, name, default))

    def options(self) -> dict[str, Any]:
        """All options by name, as a plan writes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __call__(
        self,
        model: Model | Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        threat: Threat | str,
        *,
        targets: Tensor | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        stop: str = "fooled",
    ) -> Tensor:
        """Attack ``x`` ``(n, *shape)`` with labels ``y`` ``(n,)`` and return ``x_adv``.

        Each row holds an allowed input that fools the model where one was found, else the allowed
        input with the largest margin met. The model comes back as it was.

        Args:
            model: A module or callable with inputs in [0, 1] and logits ``(n, k)``, or a
                :class:`~holdfast.Model` for other domains, normalisation and heads.
            x: Clean inputs inside the model's domain.
            y: Labels.
            threat: What may change, e.g. ``"linf:8/255"``.
            targets: Class to reach per sample; None for any wrong answer.
            seed: Of all random numbers. Same seed, same bytes.
            batch_size: Rows in flight; results do not depend on it.
            stop: ``"fooled"``: a row ends when it fools the model. ``"budget"``: every row uses all
                its steps and the point of largest margin is returned (for training).

        Raises:
            InputError: where model, data and threat do not fit together.
        """
        from holdfast.engine.single import attack_batch

        return attack_batch(
            self, model, x, y, threat, targets=targets, seed=seed, batch_size=batch_size, stop=stop
        )
