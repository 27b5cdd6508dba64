"""Every contract, for every registered recipe."""

import pytest

from holdfast.contracts import defenses


@pytest.mark.parametrize("case", defenses.cases(), ids=str)
def test_contract(case):
    case.check()
