"""Averaged weights: flatter minima, a few points of robustness, and far less robust overfitting.

``ema``: exponential moving average after every update. ``swa``: the plain mean over the last
quarter (Izmailov et al., 2018, arXiv:1803.05407; with adversarial training Chen et al., 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SWA_FROM = 0.75


class Average:
    """A running average of a module's parameters and floating-point buffers.

    Args:
        module: What is averaged; the average starts as a copy.
        kind: ``none``, ``ema`` or ``swa``.
        decay: Of ``ema``, after a start in which it is smaller.
    """

    def __init__(self, module: nn.Module, kind: str, decay: float) -> None:
        self.kind, self.decay, self.n = kind, decay, 0
        self._module = module
        self.values = (
            {name: t.detach().clone() for name, t in _floats(module)} if kind != "none" else {}
        )

    @property
    def is_on(self) -> bool:
        """Whether the average differs from the live weights by now."""
        return self.kind != "none" and self.n > 0

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the live weights after an update."""
        if self.kind == "none" or (self.kind == "swa" and progress < SWA_FROM):
            return
        weight = 1 / (self.n + 1)
        if self.kind == "ema":
            weight = max(1 - self.decay, 9 / (self.n + 10))
        for name, t in _floats(self._module):
            self.values[name].lerp_(t, weight)
        self.n += 1

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module with the averaged weights; its own come back bit for bit."""
        if not self.is_on:
            yield
            return
        own = {name: t.detach().clone() for name, t in self._module.state_dict().items()}
        self._module.load_state_dict(self.values, strict=False)
        try:
            yield
        finally:
            self._module.load_state_dict(own)

    def state_dict(self) -> dict[str, object]:
        """For checkpoints."""
        return {"n": self.n, "values": self.values}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From a checkpoint."""
        self.n = int(state["n"])  # type: ignore[call-overload]
        for name, value in state["values"].items():  # type: ignore[attr-defined]
            self.values[name].copy_(value)


def _floats(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, t in module.state_dict().items():
        if t.dtype.is_floating_point:
            yield name, t


@contextmanager
def fresh_batch_norm(module: nn.Module) -> Iterator[None]:
    """Training mode with batch-norm statistics that start anew and count every batch alike.

    What runs through the module inside leaves its mean statistics behind: averaged weights need
    statistics of their own.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    module.train()
    try:
        yield
    finally:
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum
