"""Every contract against every attack: :func:`cases` for test runners, :func:`check` for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from holdfast import registry
from holdfast.attacks.base import Attack
from holdfast.contracts import _behaviour, _foresight, _nearest, _strength, _whole
from holdfast.contracts._cases import Checked, Named, check_all
from holdfast.contracts._toys import RADII

SHORT, MEDIUM, LONG = 30, 500, 1000  # points per job: to show conduct, direction, strength
EFFORT_OPTIONS = ("steps", "queries")


@dataclass(frozen=True, slots=True)
class Contract(Named):
    """Something that must hold for every attack.

    Attributes:
        check: Takes an attack and a norm; raises ``ContractViolation``.
        max_queries: The attack is shortened to this many points per job before the check.
    """

    max_queries: int = SHORT


CONTRACTS: dict[str, Contract] = {
    contract.name: contract
    for contract in (
        Contract(_behaviour.stays_in_the_set),
        Contract(_behaviour.keeps_the_type),
        Contract(_behaviour.leaves_its_inputs_alone),
        Contract(_behaviour.repeats_with_the_seed),
        Contract(_behaviour.draws_no_other_numbers),
        Contract(_behaviour.stands_alone),
        Contract(_behaviour.survives_a_stop),
        Contract(_behaviour.uses_the_last_answer),
        Contract(_behaviour.keeps_to_its_budget),
        Contract(_foresight.foresees_its_questions, MEDIUM),
        Contract(_behaviour.takes_any_head),
        Contract(_behaviour.takes_any_shape),
        Contract(_behaviour.survives_bad_gradients),
        Contract(_behaviour.does_nothing_without_room),
        Contract(_behaviour.has_an_honest_card),
        Contract(_strength.improves_on_its_start, MEDIUM),
        Contract(_strength.solves_a_linear_model, LONG),
        Contract(_nearest.finds_the_hyperplane, _nearest.MOST),
        Contract(_strength.reaches_its_target, MEDIUM),
        Contract(_strength.matches_the_grid, MEDIUM),
        Contract(_whole.leaves_no_trace),
        Contract(_whole.leaves_no_trace_of_a_crash),
        Contract(_whole.returns_what_it_found),
        Contract(_whole.does_not_depend_on_the_batch),
        Contract(_whole.pays_what_it_says),
        Contract(_whole.takes_one_logit),
    )
}


@dataclass(frozen=True, slots=True)
class Case(Checked):
    """One contract for one attack in one norm."""

    contract: Contract
    attack: Attack
    norm: str

    def __str__(self) -> str:
        return f"{self.attack.card.name}-{self.norm}-{self.contract.name}"

    def _check(self) -> None:
        self.contract.check(shortened(self.attack, self.contract.max_queries), self.norm)


def shortened(attack: Attack, max_queries: int) -> Attack:
    """The attack with ``steps`` or ``queries`` halved until a job asks at most ``max_queries``.

    Other options stay; an attack without these two stays as it is.
    """
    names = [f.name for f in fields(attack) if f.name in EFFORT_OPTIONS]  # type: ignore[arg-type]
    if attack.card.is_minimal and "steps" in names:
        max_queries *= 2  # of its questions, a part goes into finding the right size
    while attack.max_queries > max_queries:
        halves = {name: getattr(attack, name) // 2 for name in names}
        if not halves or min(halves.values()) < 1:
            break
        attack = replace(attack, **halves)  # type: ignore[type-var]
    return attack


def cases(attacks: Iterable[type[Attack] | Attack] | None = None) -> list[Case]:
    """Every contract for each attack in each norm of its card.

    With pytest, in a plug-in's own tests::

        @pytest.mark.parametrize("case", contracts.cases([MyAttack]), ids=str)
        def test_contract(case):
            case.check()

    Args:
        attacks: Classes or instances; None: every attack of the registry, with default options.
    """
    chosen = registry.attacks().values() if attacks is None else attacks
    instances = [attack() if isinstance(attack, type) else attack for attack in chosen]
    return [
        Case(contract, attack, norm)
        for attack in instances
        for norm in sorted(attack.card.norms & set(RADII))
        for contract in CONTRACTS.values()
    ]


def check(attack: type[Attack] | Attack) -> None:
    """Hold an attack to every contract.

    Raises:
        ContractViolation: with one line for each contract that is not kept.
    """
    check_all(cases([attack]))
