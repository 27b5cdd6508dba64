"""Every contract, for every registered attack, in every norm of its card."""

import pytest

from holdfast import contracts


@pytest.mark.parametrize("case", contracts.cases(), ids=str)
def test_contract(case):
    case.check()
