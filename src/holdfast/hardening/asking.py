"""What a user asks for, and everything that is checked before the first update."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from holdfast import registry
from holdfast.data import Data
from holdfast.defenses.base import Recipe
from holdfast.engine.preflight import N_CHECKED, preflight
from holdfast.errors import DataError, ModelError, PlanError, ThreatError
from holdfast.hardening import augment, network
from holdfast.hardening.samples import (
    Samples,
    Store,
    check_same_kind,
    gather,
    n_shared,
    with_extra,
)
from holdfast.hardening.settings import Settings
from holdfast.model import Model
from holdfast.plan import checked
from holdfast.record import Finding
from holdfast.threat import Access, Threat

_EXTRA_SHARE = 0.5  # as in PORT (Sehwag et al., 2022)


@dataclass(frozen=True)
class Ask:
    """A hardening as it is asked for.

    Attributes:
        model: The model as it came; never changed.
        train: Data to train on.
        threats: What the model shall withstand.
        validation: Samples to choose by; None: a part of the training data, set apart.
        test: Samples for the audits before and after; None: the validation samples.
        extra: More samples (often synthetic) to mix in.
        recipe: None: chosen.
        seconds: For all of it; None: ``epochs``.
        epochs: Of training.
        from_scratch: Throw the weights away first.
        settings: Those that are fixed, by name.
        seed: Of all random numbers.
        audit: Whether to audit before and after.
        n_audit: Samples of the audits; None: as many as the budget allows.
        groups: A value per test sample; accuracies are compared within.
        source: Where the model came from, as on the command line.
        weights: Its weights' file.
        command: What repeats it.
        names: Sources of the data, for the plan.
    """

    model: Model
    train: Data
    threats: tuple[Threat, ...]
    validation: Data | None = None
    test: Data | None = None
    extra: Data | None = None
    recipe: Recipe | None = None
    seconds: float | None = None
    epochs: float | None = None
    from_scratch: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    audit: bool = True
    n_audit: int | None = None
    groups: Sequence[object] | None = None
    source: str = ""
    weights: str | None = None
    command: str = ""
    names: dict[str, str] = field(default_factory=dict)

    @property
    def budget(self) -> str:
        """The bound as text."""
        return f"{self.seconds:g}s" if self.seconds is not None else f"{self.epochs:g} epochs"


@dataclass(frozen=True)
class Ready:
    """A hardening that passed all checks."""

    model: Model
    samples: Samples
    findings: tuple[Finding, ...]


def prepare(ask: Ask, device: torch.device) -> Ready:
    """Check everything, copy the model, set the validation samples apart.

    Raises:
        InputError: where something does not fit; nothing was written or changed.
    """
    _check_bounds(ask)
    _check_settings(ask)
    ask.model.device = device
    copy = network.trainable_copy(ask.model)
    x, y = ask.train.fetch(range(min(N_CHECKED, len(ask.train))))
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x.flatten(1)).all(1)).nonzero()[0])
        raise DataError(
            f"Sample {bad} of the training data has NaN or infinite values. Remove or repair it."
        )
    for threat in ask.threats:
        threat.check(ask.model.domain, tuple(ask.train.shape))
    _check_recipe(ask.recipe, ask.threats)
    samples = gather(ask.train, copy, ask.seed, ask.validation, ask.settings.get("n_validation"))
    findings = list(_looked_at(ask.model, x, y, samples.store.y))
    copy.head = ask.model.head
    if ask.extra is not None:
        share = ask.settings.get("extra_share", _EXTRA_SHARE)
        samples = with_extra(samples, ask.extra, copy, share)
    if ask.from_scratch:
        renew(copy.f, ask.seed)  # type: ignore[arg-type]
    if ask.test is not None:
        test = Store(ask.test, copy)
        check_same_kind(samples.store, test, "test")
        findings += _shared(samples, test)
    augment.check(tuple(ask.settings.get("augment", ())), samples.store.shape)
    return Ready(copy, samples, tuple(findings))


def _check_bounds(ask: Ask) -> None:
    if (ask.seconds is None) == (ask.epochs is None):
        raise PlanError(
            "How long may it take? Give either a budget (--budget 45min) or a number of epochs "
            "(--epochs 30)."
        )
    if ask.epochs is not None and not (isinstance(ask.epochs, Real) and ask.epochs > 0):
        raise PlanError(f"The number of epochs is {ask.epochs!r}; give one above 0.")
    if ask.n_audit is not None and ask.n_audit < 1:
        raise PlanError(f"n_audit is {ask.n_audit}; give at least 1 sample, or audit=False.")
    if not isinstance(ask.seed, Integral):
        raise PlanError(f"The seed is {ask.seed!r}; give a whole number.")


def _check_settings(ask: Ask) -> None:
    known = Settings.model_fields
    unknown = [name for name in ask.settings if name not in known]
    if unknown:
        raise PlanError(f"Unknown setting {unknown[0]!r}. Settings: {', '.join(known)}.")
    with checked("The settings"):
        Settings(**ask.settings)


def _check_recipe(recipe: Recipe | None, threats: tuple[Threat, ...]) -> None:
    if recipe is None:
        return
    card = recipe.card
    wrong = [t for t in threats if t.norm not in card.norms]
    if wrong:
        raise ThreatError(
            f"The recipe {card.name!r} does not work in {wrong[0].norm}; it works in "
            f"{', '.join(sorted(card.norms))}. Recipes: {', '.join(registry.recipes())}."
        )
    if card.n_threats and len(threats) > card.n_threats:
        several = [name for name, r in registry.recipes().items() if r.card.n_threats == 0]
        raise ThreatError(
            f"The recipe {card.name!r} trains against one threat; {len(threats)} were given. "
            f"Recipes for several: {', '.join(several) or 'none'}."
        )


def _looked_at(
    model: Model, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor
) -> list[Finding]:
    """The engine's checks of the model, which also recognise its head."""
    with model.session():
        findings = preflight(model, x.to(model.device), y, labels)
    network.check_head(model)
    if model.access is not Access.GRADIENTS:
        raise ModelError(
            f"No gradients flow through {model.description}, so it cannot be trained against "
            "attacks. Give the torch.nn.Module itself (no numpy or detach in its forward)."
        )
    return findings


def _shared(samples: Samples, test: Store) -> list[Finding]:
    """Test samples that training sees make the audit at the end worthless."""
    n = n_shared(samples, test)
    if n == 0:
        return []
    return [
        Finding(
            code="test_in_training",
            level="warning",
            text=f"{n} of {len(test)} test samples are in the training data too: the accuracies "
            "after hardening are too good. Take them out of one of the two.",
        )
    ]


def renew(module: nn.Module, seed: int) -> None:
    """Random weights, as the module's own layers make them.

    Raises:
        ModelError: where a part has weights but no way to renew them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in module.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(part.parameters(recurse=False), None) is not None:
                raise ModelError(
                    f"The part {name or 'itself'!r} of {type(module).__name__} "
                    f"({type(part).__name__}) has weights but no reset_parameters(): training "
                    "from scratch needs one. Give a function that builds the network anew, and "
                    "leave out --weights and --from-scratch."
                )


def make_fabric(device: torch.device, precision: str) -> Any:
    """Lightning Fabric on this device; under torchrun one of several processes."""
    from lightning_fabric import Fabric

    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    options: dict[str, Any] = {"devices": 1, "precision": precision}
    if world > 1:
        options |= {"devices": here, "num_nodes": world // here, "strategy": "ddp"}
    elif device.type == "cuda":
        options |= {"devices": [device.index or 0]}
    fabric = Fabric(accelerator=device.type, **options)
    fabric.launch()
    return fabric


def settings_in_words(settings: Settings) -> dict[str, Any]:
    """Settings that differ from doing nothing, for a card."""
    hidden = {"n_updates", "seconds"}
    return {
        k: v for k, v in settings.model_dump().items() if k not in hidden and v not in (None, ())
    }


def plain(record: Any) -> dict[str, Any]:
    """A flat dataclass as a dictionary, without copying what it holds."""
    return {f.name: getattr(record, f.name) for f in fields(record)}
