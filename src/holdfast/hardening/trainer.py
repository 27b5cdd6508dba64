"""The live parts of a training: weights, optimiser, average; saved and put back together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.defenses.base import Batch, Recipe
from holdfast.hardening import checkpoint
from holdfast.hardening.augment import augmented
from holdfast.hardening.averaging import Average, fresh_batch_norm
from holdfast.hardening.network import Network, attackable, has_batch_norm
from holdfast.hardening.samples import Samples, of_process
from holdfast.hardening.schedules import learning_rate_share
from holdfast.hardening.settings import Settings
from holdfast.hardening.state import State
from holdfast.hardening.step import Lent, averaged_over_processes
from holdfast.model import Model
from holdfast.threat import Threat

_AUGMENT = 21  # what random numbers are for
_STATISTICS_BATCHES = 10


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, against what, how.

    Attributes:
        model: The copy that is trained.
        samples: The data.
        threats: What it shall withstand.
        recipe: What is minimised.
        settings: Everything else.
        fabric: Lightning Fabric, launched.
    """

    model: Model
    samples: Samples
    threats: tuple[Threat, ...]
    recipe: Recipe
    settings: Settings
    fabric: Any


class Trainer:
    """One update after the other; what surrounds them is in :mod:`holdfast.hardening.loop`."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.settings, self.fabric = setup, setup.settings, setup.fabric
        self.network = Network(setup.model).to(setup.model.device)
        self.step = Lent(
            self.network,
            attackable(self.network, setup.model),
            setup.threats,
            seed=self.settings.seed,
            is_eval=self.settings.batch_norm == "eval",
            fabric=self.fabric,
        )
        self.recipe = setup.recipe.with_threats(setup.threats)
        self.state = State(ramp_share=self.settings.ramp_share)
        self.optimiser = _optimiser(self.settings, self.step.weights())
        self._stepper = self.fabric.setup_optimizers(self.optimiser)
        self.average = Average(self.network, self.settings.average, self.settings.ema_decay)
        self.order = setup.samples.order(self.settings.batch_size, self.settings.seed)

    # ------------------------------------------------------------------ updates

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self.state.epoch + self.state.position / self.order.n_batches

    @property
    def learning_rate(self) -> float:
        """What the last update used."""
        return float(self.optimiser.param_groups[0]["lr"])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Places of the samples of the batches to come, from where the training stands, forever."""
        while True:
            first = self.state.position
            for k, rows in enumerate(self.order.epoch(self.state.epoch)):
                if k >= first:
                    yield rows
            self.state.epoch, self.state.position = self.state.epoch + 1, 0

    def updates(self, rows: tuple[Tensor, Tensor], progress: float) -> Iterator[Tensor]:
        """All updates with one batch; their losses, on the device."""
        self._set(progress)
        n = sum(len(part) for part in rows)
        own = of_process(rows, self.fabric.global_rank, self.fabric.world_size)
        batch = self.setup.samples.batch(own[0], own[1], self.settings.label_smoothing)
        if self.settings.augment:
            batch = augmented(batch, self.settings.augment, self.step.rng(batch, _AUGMENT))
        for repeat in range(self.recipe.repeats):
            self.step.repeat = repeat
            yield self._update(batch, n)
            self.state.passes += n * self.recipe.passes / self.recipe.repeats
        self.step.repeat = 0
        self.state.index += 1
        self.state.position += 1
        self.average.update(progress)

    def _set(self, progress: float) -> None:
        """Learning rate and radius for this progress."""
        settings, state = self.settings, self.state
        share = learning_rate_share(settings.schedule, progress, settings.peak_at, state.restart)
        if state.restart is not None:
            share *= min(1.0, 2 * (1 - state.restart))  # little time left: no large steps any more
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * state.rate_scale * share
        since = (progress - state.origin) / max(1 - state.origin, 1e-9)
        self.step.progress, self.step.index = progress, state.index
        self.step.ramp = self.recipe.ramp(since, state.ramp_share)

    def _update(self, batch: Batch, n: int) -> Tensor:
        self.optimiser.zero_grad()
        total = torch.zeros((), device=batch.x.device)
        for part in _parts(batch, self.settings.accumulate):
            weight = len(part) * self.fabric.world_size / n
            self.step.scale = weight
            total += weight * self.recipe.update(self.step, part)
        self._average_gradients()
        self._clip()
        self._stepper.step()
        return averaged_over_processes(self.fabric, [total])[0]

    def _average_gradients(self) -> None:
        if self.fabric.world_size == 1:
            return
        weights = [w for w in self.step.weights() if w.grad is not None]
        means = averaged_over_processes(self.fabric, [w.grad for w in weights])  # type: ignore[misc]
        for weight, mean in zip(weights, means, strict=True):
            weight.grad = mean

    def _clip(self) -> None:
        if self.settings.clip_norm is None:
            return
        precision = self.fabric.strategy.precision
        precision.unscale_gradients(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.step.weights(), self.settings.clip_norm)

    # ------------------------------------------------------------------ weights

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place, with batch statistics of their own."""
        with self.average.swapped_in():
            if self.average.is_on and has_batch_norm(self.network):
                self._refresh_statistics()
            yield

    def _refresh_statistics(self) -> None:
        """Run the recipe on some training batches and keep only what batch norm saw."""
        batches = self.order.epoch(0)
        states = {name: t.clone() for name, t in self.step.state.items()}
        with checkpointed_random(self.setup.model.device), fresh_batch_norm(self.network):
            for _, rows in zip(range(_STATISTICS_BATCHES), batches, strict=False):
                batch = self.setup.samples.batch(*rows)
                with torch.enable_grad():
                    self.recipe.loss(self.step, self.recipe.craft(self.step, batch))
        self.step.state.clear()
        self.step.state.update(states)

    def take_safer(self) -> bool:
        """Go on with a safer recipe; False where there is none."""
        safer = self.recipe.safer()
        if safer is None:
            return False
        self.recipe = safer.with_threats(self.setup.threats)
        self.state.n_safer += 1
        self.step.state.clear()
        return True

    def snapshot(self) -> dict[str, Any]:
        """Copies of everything that an update changes."""
        return copy.deepcopy(
            {
                "network": self.network.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average.state_dict(),
                "recipe_state": dict(self.step.state),
                "scaler": self.fabric.strategy.precision.state_dict(),
            }
        )

    def restore(self, content: dict[str, Any]) -> None:
        """Put a snapshot back; it stays usable."""
        content = copy.deepcopy(content)
        self.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.average.load_state_dict(content["average"])
        device = self.setup.model.device
        self.step.state.clear()
        self.step.state.update({k: t.to(device) for k, t in content["recipe_state"].items()})
        if content["scaler"]:
            self.fabric.strategy.precision.load_state_dict(content["scaler"])

    def checkpoint(self) -> dict[str, Any]:
        """A snapshot with all that it takes to go on bit for bit."""
        random = checkpoint.random_state(self.setup.model.device)
        return self.snapshot() | {"state": self.state.to_dict(), "random": random}

    def resume(self, content: dict[str, Any]) -> None:
        """Go on from a checkpoint, as if nothing had happened."""
        self.state = State.from_dict(content["state"])
        for _ in range(self.state.n_safer):
            safer = self.recipe.safer()
            assert safer is not None
            self.recipe = safer.with_threats(self.setup.threats)
        self.restore(content)
        checkpoint.set_random_state(content["random"], self.setup.model.device)


@contextmanager
def checkpointed_random(device: torch.device) -> Iterator[None]:
    """What runs inside draws random numbers without moving torch's generators on."""
    before = checkpoint.random_state(device)
    try:
        yield
    finally:
        checkpoint.set_random_state(before, device)


def _optimiser(settings: Settings, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(weights, rate, momentum, weight_decay=decay, nesterov=momentum > 0)
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    is_plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    return kind(weights, rate, weight_decay=decay, fused=is_plain)  # a fifth of a small update


def _parts(batch: Batch, n: int) -> Iterator[Batch]:
    """The batch cut into ``n`` parts of nearly equal size."""
    if n == 1:
        yield batch
        return
    for rows in torch.arange(len(batch), device=batch.x.device).tensor_split(min(n, len(batch))):
        values: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
        yield replace(batch, **{k: v[rows] for k, v in values.items() if isinstance(v, Tensor)})
