"""Contracts of recipes: what they may touch, what they must reach, and that they harden at all.

Each takes a recipe and a norm, and raises ``ContractViolation`` with what it saw.
"""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from holdfast import registry
from holdfast.contracts._toys import normal
from holdfast.contracts._violation import require
from holdfast.defenses.base import Batch, Recipe, Step
from holdfast.engine.random import Rng
from holdfast.hardening.step import Lent, own_batch, own_step
from holdfast.model import Model
from holdfast.perturbations.ball import Ball

RADII = {"linf": 0.1, "l2": 0.5, "l1": 1.0, "l0": 2.0}
SHAPE = (1, 4, 4)
N_CLASSES = 3
N_SAMPLES = 6
_UPDATES = 60
_ENOUGH = 0.85  # of the samples hold after training; 95 % can


def norms(recipe: Recipe) -> list[str]:
    """The norms of its card in which it is checked, the usual one first."""
    return [norm for norm in RADII if norm in recipe.card.norms]


# ------------------------------------------------------------------ what it changes


def stays_in_the_set(recipe: Recipe, norm: str) -> None:
    """Crafted inputs are allowed by one of the threats, at the full and at half the radius."""
    for ramp in (1.0, 0.5):
        step, batch = _start(recipe, norm)
        step = replace(step, ramp=ramp)
        points = _updated(recipe, step, batch).adversarial
        inside = [step.bind(batch, threat).contains(points) for threat in step.threats]
        is_allowed = torch.stack(inside).any(0)
        require(
            bool(is_allowed.all()),
            f"{int((~is_allowed).sum())} of {len(batch)} crafted inputs are outside the allowed "
            f"set at {ramp:g} of the radius. Bind with step.bind and end with project.",
        )


def does_nothing_without_room(recipe: Recipe, norm: str) -> None:
    """With radius 0 the crafted inputs are the clean ones, and the loss is a number."""
    step, batch = _start(recipe, norm)
    step = replace(step, ramp=0.0)
    crafted = recipe.craft(step, batch)
    change = float((crafted.adversarial - batch.x).detach().abs().max())
    require(change == 0, f"Without room the inputs moved by {change:g}.")
    loss = recipe.loss(step, crafted)
    require(bool(torch.isfinite(loss)), f"Without room the loss is {float(loss.detach())}.")


# ------------------------------------------------------------------ what it leaves alone


def leaves_its_inputs_alone(recipe: Recipe, norm: str) -> None:
    """Inputs and labels hold the same bytes after an update."""
    step, batch = _start(recipe, norm)
    before = [batch.x.clone(), batch.y.clone()]
    recipe.update(step, batch)
    same = torch.equal(before[0], batch.x) and torch.equal(before[1], batch.y)
    require(same, "The batch was written to: copy, then change.")


def crafts_without_a_trace(recipe: Recipe, norm: str) -> None:
    """Crafting changes no weight, no batch statistic, no mode, no ``.grad``."""
    step, batch = _start(recipe, norm)
    modes = {"training": True, "evaluation": False}
    for name, mode in modes.items():
        step.network.train(mode)
        before = _everything(step.network)
        recipe.craft(step, batch)
        after = _everything(step.network)
        _require_same(before, after, f"after crafting in {name} mode")
        changed = [m for m in step.network.modules() if m.training != mode]
        require(not changed, f"Crafting left {len(changed)} modules out of {name} mode.")
        graded = [n for n, p in step.network.named_parameters() if p.grad is not None]
        require(not graded, f"Crafting left gradients in {', '.join(graded)}.")


def leaves_the_weights_to_the_optimiser(recipe: Recipe, norm: str) -> None:
    """After an update the weights are what they were, bit for bit, and ask for gradients."""
    step, batch = _start(recipe, norm)
    before = {n: p.detach().clone() for n, p in step.network.named_parameters()}
    _updated(recipe, step, batch)
    after = {n: p.detach() for n, p in step.network.named_parameters()}
    _require_same(before, after, "after an update")
    frozen = [n for n, p in step.network.named_parameters() if not p.requires_grad]
    require(not frozen, f"An update left {', '.join(frozen)} frozen.")


def draws_no_other_numbers(recipe: Recipe, norm: str) -> None:
    """Global random numbers of torch are neither used nor moved."""
    step, batch = _start(recipe, norm)
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        recipe.update(step, batch)
        moved = not torch.equal(before, torch.get_rng_state())
    require(not moved, "torch's global random state moved: draw from step.rng.")


# ------------------------------------------------------------------ what it reaches


def reaches_all_weights(recipe: Recipe, norm: str) -> None:
    """One update leaves a finite gradient in every weight, and not zero everywhere."""
    step, batch = _start(recipe, norm)
    loss = recipe.update(step, batch)
    require(loss.ndim == 0 and not loss.requires_grad, "update must return a detached scalar.")
    require(bool(torch.isfinite(loss)), f"The loss is {float(loss)}.")
    for name, p in step.network.named_parameters():
        require(p.grad is not None, f"No gradient reached {name}.")
        found: Any = p.grad
        require(bool(torch.isfinite(found).all()), f"The gradient of {name} is not finite.")
        require(bool((found != 0).any()), f"The gradient of {name} is zero everywhere.")


# ------------------------------------------------------------------ what it depends on


def repeats_with_the_seed(recipe: Recipe, norm: str) -> None:
    """Same seed, same gradients to the bit, whatever was trained in between."""
    first = _gradients(recipe, norm)
    _gradients(recipe, norm, seed=1)
    again = _gradients(recipe, norm)
    _require_same(first, again, "in a second run with the same seed")


def survives_a_stop(recipe: Recipe, norm: str) -> None:
    """Stopped, written down and gone on with: the gradients of an uninterrupted run."""
    whole = _gradients(recipe, norm, updates=3)
    stopped = _gradients(recipe, norm, updates=3, stop_after=2)
    _require_same(whole, stopped, "after a stop (memory belongs into step.state, as tensors)")


# ------------------------------------------------------------------ what it says of itself


def says_what_it_costs(recipe: Recipe, norm: str) -> None:
    """``passes`` is no less than the forward passes through the network."""
    step, batch = _start(recipe, norm)
    rows: list[int] = []
    hook = step.network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    try:
        recipe.update(step, batch)
    finally:
        hook.remove()
    paid = recipe.repeats * sum(rows) / len(batch)
    require(
        paid <= recipe.passes,
        f"passes is {recipe.passes:g}, but a batch takes {paid:g} forward passes per sample.",
    )


def has_an_honest_card(recipe: Recipe, norm: str) -> None:
    """The card says what it is, and the options build an equal recipe."""
    card = recipe.card
    require(bool(card.name and card.title and card.paper), f"The card is not complete: {card}.")
    require(recipe.repeats >= 1, f"repeats is {recipe.repeats}.")
    known = registry.recipes().get(card.name)
    own = type(recipe).__module__.startswith("holdfast.defenses.")
    module = type(recipe).__module__.rpartition(".")[2]
    require(not own or module == card.name, f"The name {card.name!r} is not the module's.")
    require(not own or known is type(recipe), f"The registry does not find {card.name!r}.")
    require(type(recipe)(**recipe.options()) == recipe, "The options do not build an equal recipe.")
    ramps = [recipe.ramp(p, 0.5) for p in (0.0, 0.2, 0.4, 0.6, 1.0)]
    fine = ramps == sorted(ramps) and ramps[-1] == 1 and min(ramps) >= 0
    require(fine, f"The ramp does not rise from 0 to 1: {ramps}.")
    require(recipe.ramp(0.0, 0.0) == 1, "Without a share to ramp in, the ramp must be 1.")


def hardens(recipe: Recipe, norm: str) -> None:
    """A linear model learns to do without the many small features that an attacker can flip."""
    x, y = _features()
    step, batch = _lent(_linear(), ("linf",)), own_batch(x, y)
    step = replace(step, threats=(Ball("linf", _FLIP),) * len(_threats(recipe, norm)))
    held = _trained(recipe, step, batch)
    require(
        held >= _ENOUGH,
        f"After training, {held:.0%} of the samples hold; with the robust feature alone 95 % do.",
    )


_FLIP = 0.1  # more than the small features differ, less than the robust one
_SMALL = 0.06


@cache
def _features() -> tuple[Tensor, Tensor]:
    """One feature that is right in 95 % and cannot be flipped, 31 small ones that can (Tsipras)."""
    n = 80
    y = torch.arange(n) % 2
    sign = (2.0 * y - 1).to(torch.float64)
    x = 0.5 + _SMALL * sign[:, None] + 0.01 * normal(5, n, 32)
    flipped = torch.where(torch.arange(n) % 20 < 1, -1.0, 1.0).to(torch.float64)
    x[:, 0] = 0.5 + 0.3 * sign * flipped
    return x.float().reshape(n, 1, 4, 8), y


def _linear() -> Model:
    """A linear model of inputs around 0, so that no weight has to make up for another's offset."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Flatten(), nn.Linear(32, 2)), mean=0.5)


def _trained(recipe: Recipe, step: Lent, batch: Batch) -> float:
    """The share of samples that hold against the exact worst change, after training."""
    optimiser = torch.optim.Adam(step.weights(), 0.1)
    for i in range(_UPDATES):
        step.index, step.repeat = i // recipe.repeats, i % recipe.repeats
        step.progress = i / _UPDATES
        optimiser.zero_grad()
        recipe.update(step, batch)
        optimiser.step()
    weight, bias = (p.detach() for p in step.network.parameters())
    gap = weight[1] - weight[0]
    margin = (batch.x.flatten(1) - 0.5) @ gap + bias[1] - bias[0]
    margin = torch.where(batch.y == 1, margin, -margin) - _FLIP * gap.abs().sum()
    return float((margin > 0).float().mean())


# ------------------------------------------------------------------ the toys


class _Toy(nn.Module):
    """A small network with everything a recipe could disturb: kernels, batch norm, vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4 * 16, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 1, 4, 4) -> (n, 3)``."""
        hidden = self.norm(self.conv(x)).relu()
        return self.last(hidden.flatten(1))


@cache
def _lent_once() -> tuple[Lent, dict[str, Tensor]]:
    """One network for all contracts: those that bound it have to trace it only once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        toy = _Toy()
        toy.norm.running_mean += 0.1  # type: ignore[operator]
        toy.norm.running_var *= 1.5  # type: ignore[operator]
    step = own_step(toy, Ball("linf", RADII["linf"]))
    return step, copy.deepcopy(step.network.state_dict())


def _lent(module: Model, names: tuple[str, ...]) -> Lent:
    step = own_step(module, Ball(names[0], RADII[names[0]]))
    return replace(step, threats=tuple(Ball(name, RADII[name]) for name in names))


def _threats(recipe: Recipe, norm: str) -> tuple[str, ...]:
    """The norm, and another one for recipes that train against several."""
    if recipe.card.n_threats == 1:
        return (norm,)
    return (norm, "l1" if norm != "l1" else "linf")


def _start(recipe: Recipe, norm: str, seed: int = 0) -> tuple[Lent, Batch]:
    """A fresh step on the toy network, in training mode, and a batch."""
    step, weights = _lent_once()
    step.network.load_state_dict(copy.deepcopy(weights))
    step.network.zero_grad()
    step.network.requires_grad_(True)
    step.network.train()
    threats = tuple(Ball(name, RADII[name]) for name in _threats(recipe, norm))
    fresh = replace(step, threats=threats, seed=seed, state={}, notes={}, index=0, repeat=0)
    x = Rng.from_seed(3, N_SAMPLES).uniform(SHAPE)
    return fresh, own_batch(x, torch.arange(N_SAMPLES) % N_CLASSES)


def _updated(recipe: Recipe, step: Step, batch: Batch) -> Batch:
    """What is crafted after one update: recipes with a memory have moved on by then."""
    recipe.update(step, batch)
    return recipe.craft(step, batch)


def _gradients(
    recipe: Recipe, norm: str, *, seed: int = 0, updates: int = 2, stop_after: int = 0
) -> dict[str, Tensor]:
    """Gradients summed over some updates; with a stop the recipe and its memory are made anew."""
    step, batch = _start(recipe, norm, seed)
    for i in range(updates):
        if stop_after and i == stop_after:
            recipe = type(recipe)(**recipe.options())
            step = replace(step, state=_reread(step.state), notes={})
        step.index, step.repeat = i // recipe.repeats, i % recipe.repeats
        recipe.update(step, batch)
    return {n: _found(p) for n, p in step.network.named_parameters()}


def _found(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def _reread(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _everything(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _require_same(before: dict[str, Tensor], after: dict[str, Tensor], when: str) -> None:
    names = [name for name, value in before.items() if not torch.equal(value, after[name])]
    require(not names, f"{', '.join(names)} differ {when}.")
