"""Contracts about whole calls, ``attack(model, x, y, threat)``: what the engine makes of an attack.

They hold for every attack that keeps the other contracts; here attack and engine meet.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.base import Attack
from holdfast.contracts._drive import pose
from holdfast.contracts._geometry import excess
from holdfast.contracts._toys import RADII, Modes, Net, inputs
from holdfast.contracts._violation import require
from holdfast.engine.preflight import preflight
from holdfast.errors import ModelCrash
from holdfast.model import Model
from holdfast.threat import parse_threat

N_SAMPLES = 6
WIDE = 3.0  # times the usual radius: most samples fall


def leaves_no_trace(attack: Attack, norm: str) -> None:
    """Weights, gradients, modes, buffers, inputs and torch's settings are the same afterwards."""
    model, x = Modes(8, 3), inputs(50, N_SAMPLES)
    _require_untouched(lambda: attack(model, x, _labels(x), _threat(norm)), model, x)


def leaves_no_trace_of_a_crash(attack: Attack, norm: str) -> None:
    """The same, where the model raises in the middle; the error says that it was the model."""
    calm, x = Modes(8, 3), inputs(50, N_SAMPLES)
    attack(calm, x, _labels(x), _threat(norm), stop="budget")
    model = Modes(8, 3, crash_after=calm.n_calls - 1)

    def crash() -> None:
        try:
            attack(model, x, _labels(x), _threat(norm), stop="budget")
        except ModelCrash:
            return
        require(False, "The model raised, and nobody heard of it.")

    _require_untouched(crash, model, x)


def returns_what_it_found(attack: Attack, norm: str) -> None:
    """The result is allowed, has the input's type, and is no worse than the clean input."""
    model, x = Net(8, 3, seed=51), inputs(52, N_SAMPLES)
    y, eps = _answers(model, x), _radius(norm)
    x_adv = attack(model, x, y, _threat(norm), stop="budget")
    same = (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    require(same, f"x_adv is {tuple(x_adv.shape)} {x_adv.dtype}, x {tuple(x.shape)} {x.dtype}.")
    require(bool((excess(x_adv, x, norm, eps) <= 0).all()), f"x_adv leaves {norm}:{eps:g}.")
    lost = (_confidence(model, x_adv, y) - _confidence(model, x, y)).max()
    if not attack.card.is_minimal:
        require(float(lost) < 0.02, f"The label gains {float(lost):.3g} of confidence.")


def does_not_depend_on_the_batch(attack: Attack, norm: str) -> None:
    """Whatever the batch size and the order of the samples: the same bytes."""
    model, x = Net(8, 3, seed=53), inputs(54, N_SAMPLES)
    y = _answers(model, x)
    whole = attack(model, x, y, _threat(norm))
    for size in (1, 4):
        other = attack(model, x, y, _threat(norm), batch_size=size)
        require(torch.equal(whole, other), f"x_adv differs with batch size {size}.")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = attack(model, x[order], y[order], _threat(norm))
    require(torch.equal(whole[order], shuffled), "x_adv differs with the order of the samples.")


def pays_what_it_says(attack: Attack, norm: str) -> None:
    """The model's counters stay within ``max_queries`` per sample, restart and target."""
    net, x = Net(8, 3, seed=55), inputs(56, N_SAMPLES)
    y = _answers(net, x)
    checked, model = Model(net), Model(net)
    with checked.session():
        preflight(checked, x, y, y)
    attack(model, x, y, _threat(norm), stop="budget")
    jobs = attack.option("restarts", 1) * max(1, attack.option("n_targets", 0))
    limit = N_SAMPLES * jobs * attack.max_queries
    problem = pose(net, x, y, parse_threat(_threat(norm)))
    width = max(1, attack.ask(attack.init(problem)).n_backward)
    forward = model.passes.forward - checked.passes.forward - N_SAMPLES  # the clean pass
    backward = model.passes.backward - checked.passes.backward
    require(
        0 < forward <= limit and backward <= width * limit,
        f"{forward} forward and {backward} backward passes for {N_SAMPLES} samples; max_queries "
        f"allows {limit}.",
    )


def takes_one_logit(attack: Attack, norm: str) -> None:
    """A network with a single output is a classifier of two classes."""
    two, x = Net(8, 2, seed=57), inputs(58, N_SAMPLES)
    y = _answers(two, x)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = two

        def forward(self, x: Tensor) -> Tensor:
            z = self.two(x)
            return (z[:, 1] - z[:, 0])[:, None]

    x_adv = attack(One(), x, y, _threat(norm))
    require(bool((excess(x_adv, x, norm, _radius(norm)) <= 0).all()), "x_adv leaves the set.")
    fooled = int((_answers(two, x_adv) != y).sum())
    alike = int((_answers(two, attack(two, x, y, _threat(norm))) != y).sum())
    require(fooled == alike, f"{fooled} samples fall with one logit, {alike} with two.")


# ------------------------------------------------------------------ what they share


def _radius(norm: str) -> float:
    return 3.0 if norm == "l0" else WIDE * RADII[norm]


def _threat(norm: str) -> str:
    return f"{norm}:{_radius(norm):g}"


def _labels(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 3


def _answers(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def _confidence(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).softmax(1).gather(1, y[:, None])[:, 0]


def _require_untouched(act: Callable[[], object], model: nn.Module, x: Tensor) -> None:
    before = {**_of_model(model), **_of_torch(), "x": _bytes(x)}
    with torch.enable_grad():
        act()
    after = {**_of_model(model), **_of_torch(), "x": _bytes(x)}
    changed = [name for name in before if before[name] != after.get(name)]
    changed += [name for name in after if name not in before]
    require(not changed, f"Changed by the attack: {', '.join(changed)}.")


def _of_model(model: nn.Module) -> dict[str, object]:
    """Everything of a module that a user could miss, by name."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        found[f"mode of {name or 'the model'}"] = module.training
        found[f"hooks of {name or 'the model'}"] = len(module._forward_hooks) + len(
            module._backward_hooks
        )
    for name, parameter in model.named_parameters():
        found[f"weight {name}"] = _bytes(parameter)
        found[f"requires_grad of {name}"] = parameter.requires_grad
        found[f"grad of {name}"] = None if parameter.grad is None else _bytes(parameter.grad)
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = _bytes(buffer)
    return found


def _of_torch() -> dict[str, object]:
    """Global settings and random states."""
    return {
        "torch's random state": _bytes(torch.get_rng_state()),
        "numpy's random state": repr(np.random.get_state()),
        "Python's random state": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matrix precision": torch.get_float32_matmul_precision(),
        "matrix TF32": torch.backends.cuda.matmul.allow_tf32,
        "convolution TF32": torch.backends.cudnn.allow_tf32,
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "cuDNN deterministic": torch.backends.cudnn.deterministic,
        "threads": torch.get_num_threads(),
        "numpy's errors": repr(np.geterr()),
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()
