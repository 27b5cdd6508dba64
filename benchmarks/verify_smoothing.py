"""Randomised smoothing where the truth is known, and its certified curve on a published network.

    python benchmarks/verify_smoothing.py

A linear model under normal noise has known probabilities, so each certificate can be called right
or wrong: 1,000 repetitions for each alpha, with and without early decisions, beside the exact
failure rate of the bound (at most alpha; the measured one scatters around it). The curve is that of
the adversarially trained LeNet for MNIST at sigma 0.25.
"""

from __future__ import annotations

import gzip
import time

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from _common import data_folder, write
from holdfast.verifiers.smoothing import ABSTAIN, binomial_lower, certified_curve, smooth

REPETITIONS, VOTES, SIGMA = 1000, 1000, 0.25


def main() -> None:
    torch.set_num_threads(1)
    rows = [failures(alpha, target) for alpha in (0.05, 0.01, 0.001) for target in (None, 0.05)]
    rows.append(curve())
    for row in rows:
        print(row)
    write("verify_smoothing", {"repetitions": REPETITIONS, "votes": VOTES, "sigma": SIGMA}, rows)


def failures(alpha: float, target: float | None) -> dict:
    """How many of the repetitions certify more than the true radius of 0.12."""

    def linear(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0] + 0.12], 1)

    model = smooth(linear, SIGMA, alpha=alpha, n0=100, n=VOTES)
    result = model.certify(torch.zeros(REPETITIONS, 2), target=target)
    wrong = int((result.radius > 0.12).sum())
    return {
        "what": "failure rate",
        "alpha": alpha,
        "target": target,
        "failures": wrong,
        "rate": wrong / REPETITIONS,
        "exact_rate": exact_rate(alpha) if target is None else None,
        "consistent_with_alpha": bool(wrong <= stats.binom.ppf(0.999, REPETITIONS, alpha)),
        "median_radius": float(np.median(result.radius)),
        "mean_votes": float(result.n_used.mean()),
    }


def exact_rate(alpha: float) -> float:
    """Probability that the bound from all votes lies above the true probability, summed up."""
    k, p = np.arange(VOTES + 1), stats.norm.cdf(0.12 / SIGMA)
    return float(stats.binom.pmf(k[binomial_lower(k, VOTES, alpha) > p], VOTES, p).sum())


def curve() -> dict:
    """Certified accuracy of the first 100 test images."""
    source = data_folder()
    state = torch.load(
        source / "models" / "advertorch" / "mnist_lenet5_advtrained.pt", "cpu", weights_only=True
    )
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    pixels = gzip.decompress((source / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((source / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = (
        torch.frombuffer(bytearray(pixels[: 100 * 784]), dtype=torch.uint8).reshape(-1, 1, 28, 28)
        / 255
    )
    start = time.process_time()
    result = smooth(net, SIGMA, n=VOTES).certify(x)
    seconds = time.process_time() - start
    found = certified_curve(result, list(labels[:100]), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    return {
        "what": "certified accuracy",
        "radii": found.radii.tolist(),
        "accuracy": found.accuracy.tolist(),
        "lower": np.round(found.lower, 4).tolist(),
        "upper": np.round(found.upper, 4).tolist(),
        "abstained": int((result.prediction == ABSTAIN).sum()),
        "cpu_s": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
