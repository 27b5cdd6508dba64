"""The plan of a hardening: what was asked, what was chosen, and whether it is the same again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from holdfast.defenses.base import Recipe
from holdfast.errors import JournalError
from holdfast.hardening import auto
from holdfast.hardening.asking import Ask, Ready
from holdfast.hardening.auditing import Audits
from holdfast.hardening.settings import HardenPlan, Settings
from holdfast.hardening.trainer import Setup
from holdfast.hardening.validation import validate

PLAN = "plan.json"
_LEAST_TRAINING_S = 1.0
_QUICK_LOOK = 100


def _asked_plan(ask: Ask, ready: Ready) -> HardenPlan:
    """The part of the plan that is asked for, not chosen."""
    samples = ready.samples
    extra = None if samples.extra is None else samples.extra.hash
    return HardenPlan(
        model={"source": ask.source, "weights": ask.weights, **auto.describe_model(ready.model)},
        data={
            **ask.names,
            "train_hash": samples.store.hash,
            "validation_hash": samples.validation_store.hash,
            "extra_hash": extra,
        },
        threats=tuple(t.describe() for t in ask.threats),
        recipe="" if ask.recipe is None else ask.recipe.describe(),
        from_scratch=ask.from_scratch,
        budget=f"{ask.budget}, seed {ask.seed}, {sorted(ask.settings.items())}",
    )


def old_plan(ask: Ask, ready: Ready, directory: Path) -> HardenPlan | None:
    """The plan of an earlier sitting of the same hardening."""
    path = directory / PLAN
    if not path.is_file():
        return None
    old = HardenPlan.model_validate_json(path.read_bytes())
    if old.id != _asked_plan(ask, ready).id:
        raise JournalError(
            f"{directory} holds another hardening (of {old.model.get('description')} against "
            f"{', '.join(old.threats)}, {old.budget}). Give another --out, or the same options."
        )
    return old


def new_plan(ask: Ask, ready: Ready, fabric: Any, audits: Audits, began: float) -> HardenPlan:
    """Measure and choose, on the first process; the others do the same."""
    plan = _asked_plan(ask, ready)
    if fabric.is_global_zero:
        draft = Settings(n_updates=1, seed=ask.seed)
        setup = Setup(
            ready.model,
            ready.samples,
            ask.threats,
            ask.recipe or _any_recipe(),
            draft,
            _alone(fabric),
        )
        start = 0.0 if ask.from_scratch else _start(setup)
        seconds = None
        if ask.seconds is not None:
            reserve = audits.reserve_s
            seconds = max(_LEAST_TRAINING_S, ask.seconds - (time.monotonic() - began) - reserve)
        asked = auto.Asked(
            seconds, ask.epochs, ask.recipe, ask.from_scratch, start, ask.settings, ask.seed
        )
        chosen = auto.choose(asked, setup)
        settings = chosen.settings
        if ask.seconds is not None:
            spent = time.monotonic() - began + chosen.closing_s
            left = max(_LEAST_TRAINING_S, ask.seconds - spent - audits.reserve_s)
            settings = settings.model_copy(update={"seconds": left})
        plan = plan.model_copy(
            update={
                "recipe": chosen.recipe.describe(),
                "settings": settings,
                "reasons": chosen.reasons,
            }
        )
    return fabric.broadcast(plan)


def _any_recipe() -> Recipe:
    from holdfast.defenses.pgd_training import PGDTraining

    return PGDTraining()


def _alone(fabric: Any) -> Any:
    """A Fabric of one process, for measuring on the first of several."""
    if fabric.world_size == 1:
        return fabric
    return _Alone(fabric)


class _Alone:
    """What a trainer needs of Fabric, for one process among several."""

    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, fabric: Any) -> None:
        self.strategy, self.autocast = fabric.strategy, fabric.autocast

    def setup_optimizers(self, optimiser: Any) -> Any:
        return optimiser

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def _start(setup: Setup) -> float:
    """Robust over clean accuracy of the weights as they came, on a few validation samples."""
    from holdfast.hardening.trainer import Trainer

    score = validate(Trainer(setup).step, setup.samples, _QUICK_LOOK, 10)
    return auto.start_ratio(score.clean, score.robust)
