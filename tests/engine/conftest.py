"""A real network on real data, trained once per worker in about a second."""

from __future__ import annotations

import pytest
import torch

from holdfast.data import ArrayData
from holdfast.demo import train
from holdfast.modalities import load

N = 60


@pytest.fixture(scope="session")
def digits():
    """Sixty unseen digits ``(60, 1, 8, 8)`` and the network that is asked about them."""
    torch.set_num_threads(1)
    seen, unseen = load("digits:train"), load("digits:test")
    net = train(*seen.fetch(range(len(seen))))
    x, y = unseen.fetch(range(N))
    return net, ArrayData(x, y)
