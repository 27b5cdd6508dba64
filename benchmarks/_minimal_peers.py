"""Minimal-norm attacks of other libraries: ``(net, x, y, passes) -> x_adv``, given their passes.

Every attack is told its number of steps so that it spends about ``passes`` forward plus backward
passes per sample; what it really spent is measured, not believed.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
ORDER = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}
SEARCHES = 9  # values of c in Carlini-Wagner and EAD
BISECTIONS = 10  # of the radius, where an attack needs one


def _stub(name: str, **content: Any) -> None:
    """A module that is imported for show only."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module


def load_advlib(folder: Path) -> Any:
    """``adv_lib.attacks`` from a checkout; what it imports and does not need here is stubbed."""
    _stub("visdom", Visdom=object)
    _stub("torchvision", models=None)
    _stub("distutils")
    _stub("distutils.version", LooseVersion=lambda text: [int(n) for n in text.split(".")[:2]])
    sys.path.insert(0, str(folder))
    return importlib.import_module("adv_lib.attacks")


def advlib(folder: Path) -> dict[str, dict[str, Run]]:
    """The attacks of adversarial-library by norm and name."""
    lib = load_advlib(folder)
    apgd = importlib.import_module("adv_lib.attacks.auto_pgd").minimal_apgd

    def plain(name: str, per_step: int = 2, option: str = "steps", **fixed: Any) -> Run:
        def run(net: nn.Module, x: Tensor, y: Tensor, passes: int) -> Tensor:
            steps = {option: max(1, passes // per_step)}
            return getattr(lib, name)(net, x, y, **steps, **fixed)

        return run

    def bisected(norm: str) -> Run:
        def run(net: nn.Module, x: Tensor, y: Tensor, passes: int) -> Tensor:
            n_iter = max(10, passes // (2 * BISECTIONS) - 2)
            most = {"linf": 1.0, "l2": 10.0, "l1": 100.0}[norm]
            options = {"binary_search_steps": BISECTIONS, "n_iter": n_iter}
            return apgd(net, x, y, ORDER[norm], most, **options)

        return run

    def fab(norm: str) -> Run:
        return plain("fab", 11, "n_iter", norm=ORDER[norm])  # two forward and nine backward

    found: dict[str, dict[str, Run]] = {}
    for norm, order in ORDER.items():
        found[norm] = {
            "advlib fmn": plain("fmn", norm=order),
            "advlib pdpgd": plain("pdpgd", option="num_steps", norm=order),
        }
    for norm in ("linf", "l2", "l1"):
        found[norm] |= {"advlib fab": fab(norm), "advlib apgd": bisected(norm)}
    found["l2"] |= {
        "advlib ddn": plain("ddn"),
        "advlib alma": plain("alma", option="num_steps"),
        "advlib pdgd": plain("pdgd", option="num_steps"),
        "advlib sdf": plain("sdf", 11),
        "advlib tr": plain("tr", option="iter", adaptive=True),
        "advlib cw": plain("carlini_wagner_l2", 2 * SEARCHES, "max_iterations"),
    }
    found["l1"] |= {"advlib alma": plain("alma", option="num_steps", distance="l1")}
    found["l0"] |= {
        "advlib sigma_zero": plain("sigma_zero", option="num_steps"),
        "advlib pdpgd 2/3": plain("pdpgd", option="num_steps", norm=0, proximal_operator=23),
        "advlib vfga": plain("vfga", 22, "max_iter", targeted=False),
    }
    return found


def foolbox() -> dict[str, dict[str, Run]]:
    """The attacks of Foolbox by norm and name."""
    import foolbox as fb

    def call(make: Callable[[int], Any], net: nn.Module, x: Tensor, y: Tensor, n: int) -> Tensor:
        model = fb.PyTorchModel(net, bounds=(0, 1), device=x.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attack = make(n)
            begun = (
                {"starting_points": started(model, x, y)} if hasattr(attack, "init_attack") else {}
            )
            _, clipped, _ = attack(model, x, y, epsilons=None, **begun)
        return clipped.detach()

    def started(model: Any, x: Tensor, y: Tensor) -> Tensor:
        """By noise, or else at the nearest image with another answer: all must start somewhere."""
        found = start.run(model, x, fb.Misclassification(y))
        apart = torch.cdist(x.flatten(1), x.flatten(1))
        apart[y[:, None] == y] = torch.inf
        is_wrong = model(found).argmax(1) != y
        return torch.where(is_wrong[:, None, None, None], found, x[apart.argmin(1)])

    attacks = fb.attacks
    # its default looks for a starting point with up to a million passes
    start = attacks.LinearSearchBlendedUniformNoiseAttack(directions=5, steps=40)
    boundary = importlib.import_module("foolbox.attacks.brendel_bethge")
    names = {"linf": "Linfinity", "l2": "L2", "l1": "L1", "l0": "L0"}
    found: dict[str, dict[str, Run]] = {}
    for norm, prefix in names.items():
        fmn = getattr(attacks.fast_minimum_norm, f"{'LInf' if norm == 'linf' else prefix}FMNAttack")
        bb = getattr(boundary, f"{prefix}BrendelBethgeAttack")
        found[norm] = {
            "foolbox fmn": partial(call, lambda n, f=fmn: f(steps=max(1, n // 2))),
            "foolbox bb": partial(call, lambda n, b=bb: b(start, steps=max(1, (n - 61) // 2))),
        }
    found["l2"] |= {
        "foolbox ddn": partial(call, lambda n: attacks.DDNAttack(steps=max(1, n // 2))),
        "foolbox deepfool": partial(call, lambda n: attacks.L2DeepFoolAttack(steps=n // 20)),
        "foolbox cw": partial(
            call, lambda n: attacks.L2CarliniWagnerAttack(SEARCHES, max(1, n // 2 // SEARCHES))
        ),
    }
    found["linf"] |= {
        "foolbox deepfool": partial(call, lambda n: attacks.LinfDeepFoolAttack(steps=n // 20))
    }
    found["l1"] |= {
        "foolbox ead": partial(
            call,
            lambda n: attacks.EADAttack(
                SEARCHES, max(1, n // 3 // SEARCHES), decision_rule="L1", abort_early=False
            ),
        )
    }
    return found
