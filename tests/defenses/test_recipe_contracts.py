"""For each contract of recipes the defects it catches; none is without one."""

import pytest
import recipe_defects as d

from holdfast.contracts import ContractViolation
from holdfast.contracts.defenses import CONTRACTS, Case, check

CATCHES = {
    "stays_in_the_set": [d.LeavesTheBall, d.LeavesTheDomain, d.ForgetsTheRamp],
    "does_nothing_without_room": [d.ForgetsTheRamp],
    "leaves_its_inputs_alone": [d.WritesIntoX],
    "crafts_without_a_trace": [
        d.CraftsInTrainingMode,
        d.StaysInEvaluationMode,
        d.LeavesGradientsBehind,
    ],
    "leaves_the_weights_to_the_optimiser": [
        d.StepsItself,
        d.ForgetsToMoveBack,
        d.FreezesTheWeights,
    ],
    "reaches_all_weights": [d.DetachesTheBody, d.InfiniteLoss, d.ReturnsAGraph],
    "repeats_with_the_seed": [d.UsesTorchsNumbers],
    "draws_no_other_numbers": [d.UsesTorchsNumbers, d.SeedsTorch],
    "survives_a_stop": [d.RemembersInItself, d.ForgetsItsState],
    "says_what_it_costs": [d.UnderstatesItsCost],
    "has_an_honest_card": [d.DropsAnOption, d.RampsBackwards],
    "hardens": [d.TrainsOnCleanInputs, d.HelpsTheLabel, d.RaisesTheLoss],
}
PAIRS = [(name, kind) for name, kinds in CATCHES.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), PAIRS, ids=[f"{n}-{k.__name__}" for n, k in PAIRS])
def test_caught(name, kind):
    with pytest.raises(ContractViolation) as caught:
        Case(CONTRACTS[name], kind(), "linf").check()
    assert isinstance(caught.value.__cause__, ContractViolation), caught.value


def test_every_contract_catches_something():
    assert CATCHES.keys() == CONTRACTS.keys()


def test_the_sound_one_is_not_caught():
    check(d.Sound)


def test_one_line_for_each_broken_contract():
    with pytest.raises(ContractViolation) as caught:
        check(d.TrainsOnCleanInputs)
    assert len(str(caught.value).splitlines()) == 1
    assert "planted-linf-hardens: After training" in str(caught.value)
