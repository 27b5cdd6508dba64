"""Certified robustness via randomized smoothing (Cohen et al., 2019, arXiv:1902.02918).

The smoothed classifier answers with the class that the model gives most often when noise is added:
``g(x) = argmax_c P(model(x + noise) = c)``. If the top class has probability of at least p > 1/2,
then g is constant within::

    ||delta||_2 < sigma * Phi^-1(p)    for normal noise of standard deviation sigma (theorem 1),
    ||delta||_1 < lambda * (2 p - 1)   for uniform noise on [-lambda, lambda], of standard deviation
                                       sigma = lambda / sqrt(3) (Yang et al., 2020,
                                       arXiv:2002.08118, table 1).

For discrete data noise replaces elements and certificates count them: see ``discrete_noise``.

p is bounded from below by an exact binomial bound, so each certificate is wrong with probability of
at most ``alpha``. Differences from the paper: sampling stops early once the votes show p <= 1/2
(abstaining certifies nothing, so alpha is untouched; with probability 1 - alpha the answer would
have been the same), and, where only a target radius is asked for, as soon as it is certain, with
alpha spent over the looks so that the error rate is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, ndtri
from torch import Tensor, nn

from holdfast.data import as_inputs
from holdfast.errors import DataError, ModelError, PlanError
from holdfast.verifiers.discrete_noise import DiscreteNoise

Array = NDArray[np.float64]
Noise = Literal["gaussian", "uniform"]

ABSTAIN = -1
BLOCK = 50
"""Noise is drawn this many copies at a time, so that results do not depend on the batch size."""
FIRST_LOOK = 200
"""Votes before the first early decision; the next looks follow at twice as many."""


def binomial_lower(k: ArrayLike, n: ArrayLike, alpha: float) -> Array:
    """Lower confidence bound of a probability after ``k`` of ``n`` successes, exact.

    The bound of Clopper and Pearson (1934): it lies above the true probability in at most a
    fraction ``alpha`` of all experiments, whatever that probability is.
    """
    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    return np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1, alpha), 0.0)


def _two_sided(k: int, n: int) -> float:
    """P-value of the exact test that two classes are equally likely, after ``k <= n / 2`` votes."""
    return min(1.0, 2.0 * float(bdtr(k, n, 0.5)))


def smoothed_radius(p: ArrayLike, sigma: float, noise: Noise = "gaussian") -> Array:
    """Radius within which the top class stays the same; 0 for ``p <= 1/2``.

    Args:
        p: lower bound of the top class's probability.
        sigma: standard deviation of the noise.
        noise: ``"gaussian"`` for a radius in l2, ``"uniform"`` for one in l1.
    """
    p = np.maximum(np.asarray(p, dtype=np.float64), 0.5)
    if noise == "gaussian":
        return sigma * ndtri(p)
    return math.sqrt(3.0) * sigma * (2.0 * p - 1.0)


class Certified(NamedTuple):
    """Certificates of n samples.

    Attributes:
        prediction: class, or ``ABSTAIN``, ``(n,)``.
        radius: certified radius, 0 where it abstains, ``(n,)``.
        p_lower: lower bound of the probability of the predicted class, ``(n,)``.
        n_used: noisy copies that were classified, ``(n,)``.
    """

    prediction: NDArray[np.int64]
    radius: Array
    p_lower: Array
    n_used: NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True)
class SmoothedModel:
    """A model that votes over noisy copies of its input, predicts, abstains and certifies.

    Attributes:
        model: maps inputs ``(b, ...)`` to logits ``(b, k)``, k >= 2.
        sigma: standard deviation of the noise, in units of the input.
        noise: ``"gaussian"`` certifies in l2, ``"uniform"`` in l1, a :class:`DiscreteNoise` in l0
            (sigma is then of no matter).
        denoiser: applied to noisy inputs before the model (Salman et al., 2020, arXiv:2003.01908).
        alpha: probability with which a certificate (or a prediction) may be wrong.
        n0: votes that choose the class.
        n: votes that certify it.
        batch: noisy copies classified at a time.
        seed: of the noise.
    """

    model: Callable[[Tensor], Tensor]
    sigma: float = 0.25
    noise: Noise | DiscreteNoise = "gaussian"
    denoiser: Callable[[Tensor], Tensor] | None = None
    alpha: float = 0.001
    n0: int = 100
    n: int = 100_000
    batch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options that would make a certificate meaningless."""
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise PlanError(f"sigma must be positive and finite, got {self.sigma}")
        if not isinstance(self.noise, DiscreteNoise) and self.noise not in ("gaussian", "uniform"):
            raise PlanError(
                "noise must be 'gaussian', 'uniform' or a DiscreteNoise (Ablation, Categories, "
                f"Flips), got {self.noise!r}"
            )
        if not 0 < self.alpha < 0.5:
            raise PlanError(f"alpha must lie between 0 and 1/2, got {self.alpha}")
        for name in ("n0", "n", "batch"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def norm(self) -> str:
        """Norm of the certified radius."""
        if isinstance(self.noise, DiscreteNoise):
            return self.noise.norm
        return "l2" if self.noise == "gaussian" else "l1"

    def radius(self, p: float, x: Tensor) -> float:
        """The radius certified at one input ``x (*shape)`` whose class has probability >= ``p``."""
        if isinstance(self.noise, DiscreteNoise):
            return float(self.noise.radius(p, x))
        return float(smoothed_radius(p, self.sigma, self.noise))

    def predict(self, x: Tensor, samples: Sequence[int] | None = None) -> NDArray[np.int64]:
        """The class of each input, or ``ABSTAIN``: PREDICT of the paper with ``n`` votes.

        Args:
            x: inputs, ``(m, ...)``.
            samples: a number for each input that selects its noise; its position by default.

        Returns:
            Classes ``(m,)``, each other than the answer of g with probability of at most alpha.
        """
        answers = []
        for row in self._rows(as_inputs(x), samples):
            votes = row.take(self.n)
            second, first = np.sort(votes)[-2:]
            is_clear = _two_sided(int(second), int(first + second)) <= self.alpha
            answers.append(int(votes.argmax()) if is_clear else ABSTAIN)
        return np.array(answers, dtype=np.int64)

    def certify(
        self, x: Tensor, samples: Sequence[int] | None = None, target: float | None = None
    ) -> Certified:
        """CERTIFY of the paper: a class and a radius that hold with probability 1 - alpha.

        Args:
            x: inputs, ``(m, ...)``.
            samples: a number for each input that selects its noise; its position by default.
            target: stop as soon as this radius is certain; the radius found is then smaller than
                with all votes.
        """
        x = as_inputs(x)
        found = [self._certify(row, target) for row in self._rows(x, samples)]
        prediction, p_lower, n_used = (np.array(v) for v in zip(*found, strict=True))
        radius = [self.radius(p, one) for p, one in zip(p_lower.tolist(), x, strict=True)]
        return Certified(prediction, np.array(radius), p_lower, n_used)

    def _certify(self, row: _Votes, target: float | None) -> tuple[int, float, int]:
        chosen = int(row.take(self.n0).argmax())
        taken, hits, p_lower = 0, 0, 0.0
        looks = self._looks()
        for number, look in enumerate(looks, 1):
            hits += int(row.take(look - taken)[chosen])
            taken = look
            share = self.alpha / len(looks)
            if 1 - binomial_lower(taken - hits, taken, share) <= 0.5:
                return ABSTAIN, 0.0, self.n0 + taken
            share = self.alpha if target is None else share
            if look == self.n or target is not None:
                p_lower = float(binomial_lower(hits, taken, share))
                if number == len(looks) or (
                    target is not None and self.radius(p_lower, row.x) >= target
                ):
                    break
        return (chosen if p_lower > 0.5 else ABSTAIN), p_lower, self.n0 + taken

    def _looks(self) -> list[int]:
        """Numbers of votes after which an early decision is tried; the last is ``n``."""
        doubled = [FIRST_LOOK << i for i in range(40) if FIRST_LOOK << i < self.n]
        return [*doubled, self.n]

    def _rows(self, x: Tensor, samples: Sequence[int] | None) -> Iterator[_Votes]:
        numbers = range(len(x)) if samples is None else samples
        if len(numbers) != len(x):
            raise DataError(f"{len(x)} inputs but {len(numbers)} sample numbers")
        return (_Votes(self, one, number) for one, number in zip(x, numbers, strict=True))


class _Votes:
    """The stream of votes for one input: the same for every batch size and every neighbour."""

    def __init__(self, smoothed: SmoothedModel, x: Tensor, sample: int) -> None:
        self.smoothed, self.x = smoothed, x
        state = np.random.SeedSequence([smoothed.seed, sample]).generate_state(1, np.uint64)
        self.generator = torch.Generator(device=x.device)
        self.generator.manual_seed(int(state[0]) >> 1)
        self.spare: Tensor | None = None

    def take(self, n: int) -> NDArray[np.int64]:
        """Classify ``n`` further noisy copies: votes for each class, ``(k,)``."""
        smoothed, total = self.smoothed, np.zeros(1, dtype=np.int64)
        with torch.no_grad(), evaluating(smoothed.model), evaluating(smoothed.denoiser):
            while n > 0:
                noisy = self._noisy(min(n, smoothed.batch))
                n -= len(noisy)
                if smoothed.denoiser is not None:
                    noisy = smoothed.denoiser(noisy)
                logits = smoothed.model(noisy)
                if logits.ndim != 2 or logits.shape[1] < 2:
                    raise ModelError(f"smoothing needs logits (n, k) of k >= 2 classes, the model "
                                     f"gave {tuple(logits.shape)}")  # fmt: skip
                if not torch.isfinite(logits).all():
                    raise ModelError("the model gave logits that are not finite under noise")
                classes = logits.argmax(1).cpu().numpy()
                total = total + np.bincount(classes, minlength=logits.shape[1])
        return total

    def _noisy(self, n: int) -> Tensor:
        parts = [] if self.spare is None else [self.spare]
        while sum(map(len, parts)) < n:
            parts.append(self._block())
        drawn = torch.cat(parts)
        self.spare = drawn[n:]
        return drawn[:n]

    def _block(self) -> Tensor:
        """Noisy copies."""
        noise, sigma = self.smoothed.noise, self.smoothed.sigma
        if isinstance(noise, DiscreteNoise):
            return noise.noisy(self.x, BLOCK, self.generator)
        shape = (BLOCK, *self.x.shape)
        options = {"device": self.x.device, "dtype": self.x.dtype, "generator": self.generator}
        if noise == "gaussian":
            return self.x + sigma * torch.randn(shape, **options)
        return self.x + math.sqrt(3.0) * sigma * (2.0 * torch.rand(shape, **options) - 1.0)


@contextmanager
def evaluating(module: object) -> Iterator[None]:
    """Evaluation mode for the time being; every submodule gets its own mode back."""
    modes = [(m, m.training) for m in module.modules()] if isinstance(module, nn.Module) else []
    if isinstance(module, nn.Module):
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def smooth(
    model: Callable[[Tensor], Tensor],
    sigma: float = 0.25,
    *,
    noise: Noise | DiscreteNoise = "gaussian",
    denoiser: Callable[[Tensor], Tensor] | None = None,
    alpha: float = 0.001,
    n0: int = 100,
    n: int = 100_000,
    batch: int = 1000,
    seed: int = 0,
) -> SmoothedModel:
    """A smoothed copy of a classifier that predicts, abstains and certifies; see `SmoothedModel`.

    Raises:
        PlanError: an option out of range.
    """
    return SmoothedModel(model, sigma, noise, denoiser, alpha, n0, n, batch, seed)


class CertifiedCurve(NamedTuple):
    """Certified accuracy over radii, all ``(r,)``, with an exact interval for the finite sample."""

    radii: Array
    accuracy: Array
    lower: Array
    upper: Array


def certified_curve(
    certified: Certified, y: ArrayLike, radii: ArrayLike, confidence: float = 0.95
) -> CertifiedCurve:
    """Fraction of samples classified rightly with a certified radius of at least each radius.

    Args:
        certified: certificates of the samples.
        y: true classes, ``(n,)``.
        radii: radii, ``(r,)``.
        confidence: of the Clopper-Pearson interval around each fraction.
    """
    y, radii = np.asarray(y), np.asarray(radii, dtype=np.float64)
    if len(y) != len(certified.prediction) or not len(y):
        raise DataError(f"{len(y)} labels for {len(certified.prediction)} certificates")
    radius = np.where(certified.prediction == y, certified.radius, -np.inf)
    hits = (radius[None, :] >= radii[:, None]).sum(axis=1)
    tail = (1 - confidence) / 2
    lower = binomial_lower(hits, len(y), tail)
    upper = 1 - binomial_lower(len(y) - hits, len(y), tail)
    return CertifiedCurve(radii, hits / len(y), lower, upper)
