"""A small network on scikit-learn's digits, to show an audit on any machine."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.errors import DataError
from holdfast.modalities import load
from holdfast.plan import DataSpec, ModelSpec, Plan

THREATS = ("linf:0.15", "l2:0.8")
N_SAMPLES = 200
CASCADE = "standard"
WEIGHTS = "weights.safetensors"
SOURCE = "holdfast.demo:digits_cnn"

_EPOCHS = 12
_BATCH = 64
_RATE = 3e-3


def digits_cnn() -> nn.Module:
    """A convolutional network for 8x8 grey images and ten classes, not trained."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(x: Tensor, y: Tensor, seed: int = 0) -> nn.Module:
    """A network trained on ``x`` ``(n, 1, 8, 8)`` and ``y`` ``(n,)``; the seed decides all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_cnn()
        optimiser = torch.optim.Adam(model.parameters(), _RATE)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(x)).split(_BATCH):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


def prepare(directory: Path) -> tuple[Plan, float, float]:
    """Train, save the weights in ``directory``, and plan an audit of the first unseen samples.

    Returns:
        The plan, the accuracy on all unseen samples, and the seconds of training.

    Raises:
        DataError: where the directory cannot be written.
    """
    _clear(directory)
    start = time.perf_counter()
    seen, unseen = (load(f"digits:{part}") for part in ("train", "test"))
    model = train(*seen.fetch(range(len(seen))))
    seconds = time.perf_counter() - start
    x, y = unseen.fetch(range(len(unseen)))
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).float().mean())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), directory / WEIGHTS)
    except OSError as error:
        raise DataError(f"Cannot write to {directory}: {error}.") from None
    plan = Plan(
        model=ModelSpec(source=SOURCE, weights=str(directory / WEIGHTS)),
        data=DataSpec(source="digits:test", n=N_SAMPLES),
        threats=THREATS,
        cascade=CASCADE,
    )
    return plan, accuracy, seconds


def _clear(directory: Path) -> None:
    """Remove an earlier demo's run, which another version may have made; touch nothing else."""
    plan = directory / "plan.toml"
    if not plan.is_file() or Plan.load(plan).model.source != SOURCE:
        return
    for pattern in ("journal.jsonl", "*.safetensors", "report.html", "report.json"):
        for file in directory.glob(pattern):
            file.unlink()
    plan.unlink()
