"""The tests that every attack must pass, shipped so that authors of plug-ins can run them too.

``check(MyAttack)`` runs all of them; ``cases([MyAttack])`` gives them one by one to a test runner.
A contract is a plain function of an attack and a norm that raises :class:`ContractViolation`.
:func:`drive` is the plainest loop that runs an attack: what the engine must equal.
"""

from holdfast.contracts._drive import Trace, drive, pose
from holdfast.contracts._violation import ContractViolation
from holdfast.contracts.suite import CONTRACTS, Case, Contract, cases, check

__all__ = [
    "CONTRACTS",
    "Case",
    "Contract",
    "ContractViolation",
    "Trace",
    "cases",
    "check",
    "drive",
    "pose",
]
