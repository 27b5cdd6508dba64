"""A model that answers at random: the intervals of repeated audits hold the long-run value."""

import pytest
import torch
from torch import nn

import holdfast
from holdfast.demo import train
from holdfast.modalities import load

THREAT = "linf:0.06"
CASCADE = [{"attack": "pgd", "loss": "margin", "steps": 6}]
N, N_AUDITS, N_LONG = 40, 10, 3


class Noisy(nn.Module):
    """Adds normal noise to the inputs, anew for every answer."""

    def __init__(self, net, size=0.1):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        return self.net(x + self.size * torch.randn_like(x))


def robust_accuracy(model, x, y, seed):
    options = {"cascade": CASCADE, "curve_steps": 0, "trust": "off", "verify": "off"}
    return holdfast.audit(model, (x, y), THREAT, seed=seed, **options).robust_accuracy


@pytest.mark.slow
def test_the_intervals_of_ten_audits_hold_the_long_run_value():
    seen, unseen = load("digits:train"), load("digits:test")
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Noisy(train(*seen.fetch(range(len(seen)))))
        x, y = unseen.fetch(range(len(unseen)))
        runs = [robust_accuracy(model, x, y, seed).value for seed in range(100, 100 + N_LONG)]
        long_run = sum(runs) / N_LONG
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        rates = [
            robust_accuracy(model, x[rows], y[rows], seed)
            for seed, rows in enumerate(order.split(N)[:N_AUDITS])
        ]
    held = [rate.lower <= long_run <= rate.upper for rate in rates]
    assert 0.2 < long_run < 0.8  # else there is little to miss
    assert len({rate.value for rate in rates}) > 1
    assert len(held) == N_AUDITS
    assert sum(held) >= 9
