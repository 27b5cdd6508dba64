"""What to do with a budget: measure this model on this machine, then choose recipe and settings.

The more passes over the data a budget buys, the dearer the recipe: one-step fine-tuning with a
watch for collapse when there is next to no time, then PGD training with as many steps as leave
enough epochs, then perturbed weights too; averaged ones always. Every choice says why.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from holdfast import registry
from holdfast.attacks.pgd import PGD
from holdfast.defenses.base import Recipe
from holdfast.defenses.pgd_training import PGDTraining
from holdfast.errors import PlanError
from holdfast.hardening.alarms import is_single_step
from holdfast.hardening.asking import Ask
from holdfast.hardening.network import has_batch_norm, n_parameters
from holdfast.hardening.samples import Samples
from holdfast.hardening.settings import Settings
from holdfast.hardening.trainer import Setup, Trainer, checkpointed_random
from holdfast.hardening.validation import passes_per_sample, trains_bounds, watch_passes
from holdfast.model import Model
from holdfast.threat import Threat

# Epochs that PGD training with so many steps should have at least, dearest first: a rule of thumb
# between fine-tuning (1 to 3: Croce and Hein, 2022) and training from scratch (15: Wong et al.).
_STEPS_FOR_EPOCHS = ((10, 12.0), (7, 8.0), (5, 5.0), (3, 3.0), (2, 1.5))
_LARGE_EPOCHS = 40.0  # of PGD-10: from here on weight perturbation pays
_FEW_UPDATES = 1500  # of PGD training with two steps: below, batches are halved
_MOST_OF_DOUBLE = 0.7  # time of half a batch over that of the whole, above which it does not pay
_SCRATCH_FACTOR = 1.5
_VALIDATION_TIME = 0.08  # of the training
_FEWEST_VALIDATION, _FEWER_STEPS = 100, 10  # where time is short
_CHECK_TIME = 0.03
_CLOSE_CHECK_TIME = 0.06  # of recipes that may collapse
_ROBUST_START = 0.3  # robust over clean accuracy from which the radius needs no ramp
_CERTIFIED_RAMP = 0.6  # bounds follow the radius slowly
_MEASURE_SHARE, _MOST_MEASURE_S = 0.04, 20.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of an update, as measured: ``fixed + steps * step`` for a batch."""

    batch_size: int
    fixed_s: float
    step_s: float

    def update_s(self, steps: float) -> float:
        """Of one update with so many inner steps."""
        return self.fixed_s + steps * self.step_s

    @property
    def pass_s(self) -> float:
        """Of one sample's forward or backward pass."""
        return self.step_s / (2 * self.batch_size)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user said.

    Attributes:
        seconds: For training and validation; None: ``epochs`` counts.
        epochs: Passes over the training data; None: ``seconds`` count.
        recipe: Fixed by the user, or None.
        from_scratch: Whether the weights are random.
        start: Robust over clean accuracy of the given weights.
        fixed: Settings that the user fixed.
    """

    seconds: float | None
    epochs: float | None
    recipe: Recipe | None
    from_scratch: bool
    start: float
    fixed: dict[str, Any]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do, and why; ``closing_s`` is what the last validation will take at most."""

    recipe: Recipe
    settings: Settings
    reasons: tuple[str, ...]
    closing_s: float


def measure(setup: Setup, batch_size: int, seconds: float) -> Costs:
    """Time a few updates with one and with five inner steps on this machine.

    The weights of ``setup.model`` are used and put back.
    """
    costs: dict[int, float] = {}
    saved = {k: v.detach().clone() for k, v in setup.model.f.state_dict().items()}  # type: ignore[attr-defined]
    for steps in (1, 5):
        settings = setup.settings.model_copy(
            update={"batch_size": batch_size, "n_updates": 1000, "average": "none"}
        )
        with checkpointed_random(setup.model.device):
            trial = replace(setup, settings=settings, recipe=PGDTraining(PGD(steps=steps)))
            costs[steps] = _seconds_per_update(Trainer(trial), seconds / 2)
    setup.model.f.load_state_dict(saved)  # type: ignore[attr-defined]
    step = max((costs[5] - costs[1]) / 4, costs[1] / 20)
    return Costs(batch_size, max(costs[1] - step, step), step)


def _seconds_per_update(trainer: Trainer, seconds: float) -> float:
    """The median of several updates, the first left out."""
    device, taken, began = trainer.setup.model.device, [], time.monotonic()
    for n, rows in enumerate(trainer.batches()):
        start = time.perf_counter()
        for _ in trainer.updates(rows, 0.5):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if n > 0:
            taken.append(time.perf_counter() - start)
        if len(taken) >= 20 or (len(taken) >= 3 and time.monotonic() - began > seconds):
            return statistics.median(taken)
    raise AssertionError("batches never end")


def choose(asked: Asked, setup: Setup) -> Choice:
    """Recipe and settings for what was asked.

    Raises:
        PlanError: where the budget does not buy one pass over the training data.
    """
    samples, model = setup.samples, setup.model
    first = int(asked.fixed.get("batch_size") or _batch_size(samples.n_train, model.device))
    seconds = asked.seconds or 60.0
    costs = measure(setup, first, min(_MOST_MEASURE_S, _MEASURE_SHARE * seconds))
    costs = _smaller(asked, costs, setup)
    epochs = {k: _epochs(asked, costs, samples.n_train, k) for k in (1, 2, 3, 5, 7, 10)}
    _check_affordable(asked, costs, epochs[1], samples.n_train)
    recipe, reasons = _recipe(asked, epochs, setup.threats)
    steps = (recipe.passes - 2) / 2
    settings, more = _settings(asked, setup, costs, recipe)
    said = f"an update of {costs.batch_size} samples takes {costs.update_s(steps):.2g} s here"
    closing = _closing_s(settings, costs, setup.threats)
    return Choice(recipe, settings, (*reasons, f"Measured: {said}.", *more), closing)


def _closing_s(settings: Settings, costs: Costs, threats: tuple[Threat, ...]) -> float:
    """Seconds of the validation after the last update: of averaged weights and of live ones."""
    n_sets = 1 if settings.average == "none" else 2
    passes = passes_per_sample(threats, settings.validation_steps)
    return n_sets * settings.n_validation * passes * costs.pass_s


def _smaller(asked: Asked, costs: Costs, setup: Setup) -> Costs:
    """Costs of a smaller batch, where the time buys few updates: more of them learn more.

    Epochs are repeatable, so what is chosen for them hangs on no measurement.
    """
    least, n_train = _sizes(setup.model.device)[0] // 2, setup.samples.n_train
    is_free = asked.seconds is not None and "batch_size" not in asked.fixed
    while is_free and costs.batch_size > least:
        updates = _epochs(asked, costs, n_train, 2) * n_train / costs.batch_size
        if updates >= _FEW_UPDATES:
            return costs
        share = _MEASURE_SHARE * (asked.seconds or 0) / 2
        less = measure(setup, costs.batch_size // 2, min(_MOST_MEASURE_S, share))
        if less.update_s(2) > _MOST_OF_DOUBLE * costs.update_s(2):
            return costs
        costs = less
    return costs


def _epochs(asked: Asked, costs: Costs, n_train: int, steps: int) -> float:
    if asked.seconds is None:
        return asked.epochs or 1.0
    usable = asked.seconds * (1 - _VALIDATION_TIME - _CHECK_TIME)
    return usable / (costs.update_s(steps) * n_train / costs.batch_size)


def _check_affordable(asked: Asked, costs: Costs, epochs: float, n_train: int) -> None:
    if asked.seconds is None or epochs >= 1:
        return
    needed = asked.seconds / epochs
    raise PlanError(
        f"The budget leaves {asked.seconds:.3g} s for training, but one pass over the {n_train} "
        f"training samples takes {needed:.3g} s here even with the cheapest recipe. Give at least "
        f"--budget {math.ceil(2 * needed)}s, fewer samples (--n), or a faster device."
    )


def _recipe(
    asked: Asked, epochs: dict[int, float], threats: tuple[Threat, ...]
) -> tuple[Recipe, list[str]]:
    if asked.recipe is not None:
        return asked.recipe, [f"The recipe {asked.recipe.describe()} was asked for."]
    if len(threats) > 1:
        return _for_several(epochs)
    need = _SCRATCH_FACTOR if asked.from_scratch else 1.0
    if epochs[10] >= _LARGE_EPOCHS * need:
        return _large(epochs)
    for steps, fewest in _STEPS_FOR_EPOCHS:
        if epochs[steps] >= fewest * need:
            text = f"The budget buys {epochs[steps]:.1f} epochs of PGD training with {steps} steps"
            return PGDTraining(PGD(steps=steps)), [f"{text}: enough for that many steps."]
    text = f"The budget buys {epochs[1]:.1f} epochs even with a single inner step"
    return _single_step(), [f"{text}: single-step training, watched for collapse."]


def _large(epochs: dict[int, float]) -> tuple[Recipe, list[str]]:
    """Weight perturbation on PGD training; TRADES holds more but costs more clean accuracy."""
    recipe: Recipe = PGDTraining(PGD(steps=10))
    if "awp" in registry.recipes():
        recipe = registry.recipe("awp", recipe=recipe)
    text = f"The budget buys {epochs[10]:.0f} epochs of PGD training with 10 steps"
    advice = "--recipe trades withstands a little more, at a price in clean accuracy"
    return recipe, [f"{text}: enough for {recipe.describe()} ({advice})."]


def _single_step() -> Recipe:
    if "n_fgsm" in registry.recipes():
        return registry.recipe("n_fgsm")
    return PGDTraining(PGD(steps=1))


def _for_several(epochs: dict[int, float]) -> tuple[Recipe, list[str]]:
    for name in ("eat", "msd", "max"):
        if name in registry.recipes():
            return registry.recipe(name), ["Several threats: a recipe that trains against all."]
    raise PlanError("Several threats need a recipe for several: name it with --recipe.")


def _settings(
    asked: Asked, setup: Setup, costs: Costs, recipe: Recipe
) -> tuple[Settings, list[str]]:
    samples, model = setup.samples, setup.model
    module: nn.Module = model.f  # type: ignore[assignment]
    update_s = costs.fixed_s / 2 * recipe.passes if recipe.passes else costs.fixed_s
    update_s = max(costs.update_s((recipe.passes - 2) / 2), min(update_s, costs.fixed_s))
    per_epoch = samples.order(costs.batch_size, 0).n_batches
    n_updates = None if asked.epochs is None else max(1, round(asked.epochs * per_epoch))
    total = n_updates or max(1, int((asked.seconds or 0) / update_s))
    looks = _rounds(samples, costs, recipe, total, setup.threats)
    optimiser, reason = _optimiser(module, asked.from_scratch, costs.batch_size)
    chosen: dict[str, Any] = {
        "n_updates": n_updates,
        "seconds": asked.seconds,
        "batch_size": costs.batch_size,
        **optimiser,
        "ramp_share": _ramp(asked, recipe),
        "average": "ema",
        "ema_decay": 1 - 1 / min(1000, max(20, total // 50)),
        "augment": _augment(samples.store.shape),
        "precision": best_precision(model.device, module),
        **looks,
        "seed": asked.seed,
    }
    ramp = chosen["ramp_share"]
    said = f"The radius grows from zero over the first {ramp:.0%} of the training."
    start = "The model withstands part of the attacks already: the radius is full from the start."
    return Settings(**(chosen | asked.fixed)), [reason, said if ramp > 0 else start]


def _batch_size(n: int, device: torch.device) -> int:
    """Many updates where data is scarce; full kernels where it is not."""
    sizes = _sizes(device)
    fits = [size for size in sizes if n / size >= 150]
    return fits[-1] if fits else min(sizes[0], max(8, n // 8))


def _sizes(device: torch.device) -> tuple[int, ...]:
    return (64, 128) if device.type == "cpu" else (128, 256, 512)


def _rounds(
    samples: Samples, costs: Costs, recipe: Recipe, total: int, threats: tuple[Threat, ...]
) -> dict[str, int]:
    """How often to validate and to look for a collapse, and on how many samples."""
    update = costs.batch_size * max(recipe.passes, 2.0)
    for steps in (Settings().validation_steps, _FEWER_STEPS):
        passes = passes_per_sample(threats, steps)
        most = _VALIDATION_TIME * total * update / (6 * passes)  # six rounds at least
        if most >= _FEWEST_VALIDATION:
            break
    n = int(min(len(samples.split.validation), max(most, _FEWEST_VALIDATION)))
    per_epoch = samples.order(costs.batch_size, 0).n_batches
    apart = n * passes / (_VALIDATION_TIME * update)
    per_round = max(1, min(max(per_epoch, round(apart)), max(1, total // 3)))
    if is_single_step(recipe):  # at least twice per epoch: a collapse takes less than one
        apart = watch_passes(n, is_glance=True) / (_CLOSE_CHECK_TIME * update)
        per_check = min(max(per_epoch // 2, 1), math.ceil(apart))
    else:
        apart = watch_passes(n, is_glance=True) / (_CHECK_TIME * update)
        per_check = max(per_round, math.ceil(apart), 1)
    return {
        "n_validation": n,
        "validation_steps": steps,
        "updates_per_round": per_round,
        "updates_per_check": min(per_check, per_round),
    }


def _optimiser(
    module: nn.Module, from_scratch: bool, batch_size: int
) -> tuple[dict[str, Any], str]:
    """As published for the kind of network, scaled with the batch where that is usual."""
    how = "from scratch" if from_scratch else "fine-tuning"
    if any(isinstance(m, nn.LayerNorm) for m in module.modules()):
        rate = 5e-4 if from_scratch else 1e-4
        values = {"optimiser": "adamw", "learning_rate": rate, "weight_decay": 0.05}
        return values | {"schedule": "cosine"}, f"AdamW at {rate:g}, as for transformers, {how}."
    if has_batch_norm(module):
        rate = (0.1 if from_scratch else 0.03) * batch_size / 128
        values = {"optimiser": "sgd", "learning_rate": rate, "weight_decay": 5e-4}
        return values | {"schedule": "cyclic"}, f"SGD at {rate:g}, for a batch-norm network, {how}."
    rate = 3e-3 if n_parameters(module) < 1_000_000 else 1e-3
    rate = rate if from_scratch else rate / 1.5
    rate = round(rate * min(1.0, math.sqrt(batch_size / 64)), 5)
    values = {"optimiser": "adam", "learning_rate": rate, "weight_decay": 0.0}
    return values | {"schedule": "cyclic"}, f"Adam at {rate:g}, for a plain network, {how}."


def _ramp(asked: Asked, recipe: Recipe) -> float:
    if trains_bounds(recipe):
        return _CERTIFIED_RAMP
    if asked.from_scratch:
        return 0.5
    return 0.0 if asked.start > _ROBUST_START else 0.3


def _augment(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Shifts and mirrors for colour images; a mirrored digit is another sign."""
    is_photo = len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= 24
    return ("crop", "flip") if is_photo else ()


def precision(ask: Ask) -> str:
    """As the user said, else the fastest that is safe."""
    f = ask.model.f
    known = isinstance(f, nn.Module)
    chosen = best_precision(ask.model.device, f) if known else "32-true"
    return str(ask.settings.get("precision", chosen))


def best_precision(device: torch.device, module: nn.Module) -> str:
    """Sixteen bits with a float's range where the device has them and the network is large."""
    if device.type != "cuda" or n_parameters(module) < 1_000_000:
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"


def start_ratio(clean: float, robust: float) -> float:
    """Robust over clean accuracy of weights."""
    return robust / clean if clean > 0 else 0.0


def describe_model(model: Model) -> dict[str, Any]:
    """What a plan remembers of the model."""
    return {"description": model.description, "n_parameters": n_parameters(model.f)}  # type: ignore[arg-type]
