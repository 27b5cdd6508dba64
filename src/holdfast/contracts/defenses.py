"""Every contract against every recipe: :func:`cases` for test runners, :func:`check` for people.

With pytest, in a plug-in's own tests::

    @pytest.mark.parametrize("case", defenses.cases([MyRecipe]), ids=str)
    def test_contract(case):
        case.check()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

from holdfast import registry
from holdfast.attacks.base import Attack
from holdfast.contracts import _training as training
from holdfast.contracts._cases import Checked, Named, check_all
from holdfast.defenses.base import Recipe

SHORT = 3  # steps of inner attacks: enough to show conduct


@dataclass(frozen=True, slots=True)
class Contract(Named):
    """Something that must hold for every recipe.

    Attributes:
        check: Takes a recipe and a norm; raises ``ContractViolation``.
        every_norm: Whether it is checked in each norm of the card, or in one of them.
        applies: Whether it can be asked of a recipe at all.
    """

    every_norm: bool = False
    applies: Callable[[Recipe], bool] = lambda recipe: True


CONTRACTS: dict[str, Contract] = {
    contract.name: contract
    for contract in (
        Contract(training.stays_in_the_set, True, lambda r: r.card.stays_inside),
        Contract(training.does_nothing_without_room, False, lambda r: r.card.stays_inside),
        Contract(training.leaves_its_inputs_alone),
        Contract(training.crafts_without_a_trace),
        Contract(training.leaves_the_weights_to_the_optimiser),
        Contract(training.reaches_all_weights),
        Contract(training.repeats_with_the_seed),
        Contract(training.draws_no_other_numbers),
        Contract(training.survives_a_stop),
        Contract(training.says_what_it_costs),
        Contract(training.has_an_honest_card),
        Contract(training.hardens, False, lambda r: "linf" in r.card.norms),
    )
}


@dataclass(frozen=True, slots=True)
class Case(Checked):
    """One contract for one recipe in one norm."""

    contract: Contract
    recipe: Recipe
    norm: str

    def __str__(self) -> str:
        return f"{self.recipe.card.name}-{self.norm}-{self.contract.name}"

    def _check(self) -> None:
        self.contract.check(shortened(self.recipe), self.norm)


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with inner attacks of at most :data:`SHORT` steps; other options stay."""
    changes = {}
    for field in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, field.name)
        if isinstance(value, Recipe):
            changes[field.name] = shortened(value)
        elif isinstance(value, Attack) and value.option("steps", 0) > SHORT:
            changes[field.name] = replace(value, steps=SHORT)  # type: ignore[type-var]
        elif field.name == "steps" and isinstance(value, int) and value > SHORT:
            changes[field.name] = SHORT
    return replace(recipe, **changes) if changes else recipe  # type: ignore[type-var]


def cases(recipes: Iterable[type[Recipe] | Recipe] | None = None) -> list[Case]:
    """Every contract for each recipe.

    Args:
        recipes: Classes or instances; None: every recipe of the registry, with default options.
    """
    chosen = registry.recipes().values() if recipes is None else recipes
    instances = [recipe() if isinstance(recipe, type) else recipe for recipe in chosen]
    return [
        Case(contract, recipe, norm)
        for recipe in instances
        for contract in CONTRACTS.values()
        if contract.applies(recipe)
        for norm in training.norms(recipe)[: None if contract.every_norm else 1]
    ]


def check(recipe: type[Recipe] | Recipe) -> None:
    """Hold a recipe to every contract.

    Raises:
        ContractViolation: with one line for each contract that is not kept.
    """
    check_all(cases([recipe]))
