"""Which attacks are held to the bar of a search, and which to that of an estimate."""

import pytest

from holdfast import registry
from holdfast.contracts._strength import searches_on

MINIMAL = {name: kind for name, kind in registry.attacks().items() if kind.card.is_minimal}


@pytest.mark.parametrize("name", MINIMAL)
def test_only_deepfool_ends_at_its_first_success(name):
    attack = registry.attack(name)
    for norm in MINIMAL[name].card.norms:
        assert searches_on(attack, norm) is (name != "deepfool")
