"""Counter-based random numbers: distributions, independence, and the same bytes everywhere."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from holdfast.engine.random import Rng
from holdfast.rows import join, take

GOLDEN = [[-5504138050601482059, -3047031695876823473], [6779305923087132384, -6234615823503962005]]
P = 1e-4  # chance of a false alarm per test; seeds are fixed, so it happens now or never
N = 20_000
SOURCES = ["rows", "elements", "folds", "folds of folds", "seeds", "skips"]


@cache
def sources():
    """Numbers along every axis on which two numbers can differ."""
    rng = Rng.from_seed(5, N)
    one = Rng.from_seed(5, 1)
    steps = Rng(one.key.expand(N).clone()).fold(torch.arange(N))
    return {
        "rows": rng.uniform((), torch.float64),
        "elements": one.uniform((N,), torch.float64)[0],
        "folds": steps.uniform((), torch.float64),
        "folds of folds": steps.fold(3).uniform((), torch.float64),
        "seeds": torch.cat([Rng.from_seed(s).uniform((), torch.float64) for s in range(1000)]),
        "skips": torch.cat([one.skip(i).uniform((), torch.float64) for i in range(1000)]),
    }


@pytest.mark.parametrize("name", SOURCES)
def test_uniform(name):
    u = sources()[name].numpy()
    assert stats.kstest(u, "uniform").pvalue > P
    assert (u >= 0).all()
    assert (u < 1).all()


@pytest.mark.parametrize("name", SOURCES)
def test_neighbours_are_independent(name):
    """Pairs (u_i, u_{i + lag}) fill the unit square evenly."""
    u = sources()[name].numpy()
    for lag in (1, 2, 7):
        table, _, _ = np.histogram2d(u[:-lag], u[lag:], bins=8, range=[[0, 1], [0, 1]])
        assert stats.chisquare(table.ravel()).pvalue > P, lag


def test_the_checks_see_bad_generators():
    weyl = (np.arange(N) * 0.6180339887) % 1.0  # even, but each number gives away the next
    table, _, _ = np.histogram2d(weyl[:-1], weyl[1:], bins=8, range=[[0, 1], [0, 1]])
    assert stats.kstest(weyl, "uniform").pvalue > P
    assert stats.chisquare(table.ravel()).pvalue < P
    biased = sources()["rows"].numpy() ** 1.05
    assert stats.kstest(biased, "uniform").pvalue < P


def number_of_repeats(fold):
    """How often one of the bits of 200 rows, 50 folds and 50 elements occurs again."""
    rng = Rng.from_seed(1, 200)
    bits = torch.cat([fold(rng, step).bits((50,)).flatten() for step in range(50)])
    return len(bits) - len(bits.unique())


def test_streams_do_not_overlap():
    assert number_of_repeats(lambda rng, step: rng.fold(step)) == 0
    assert number_of_repeats(lambda rng, step: rng.skip(step)) > 0  # no substitute for a fold


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 62, 63])
def test_every_bit_is_fair(bit):
    ones = ((Rng.from_seed(2).bits((N,)) >> bit) & 1).sum().item()
    assert stats.binomtest(int(ones), N).pvalue > P


def test_normal():
    z = Rng.from_seed(3, 100).normal((1000,), torch.float64).flatten()
    assert torch.isfinite(z).all()
    assert stats.kstest(z.numpy(), "norm").pvalue > P
    assert stats.kstest(z.float().numpy(), "norm").pvalue > P


class Extremes(Rng):
    """The two ends of what ``bits`` can give."""

    __slots__ = ()

    def bits(self, shape):
        ends = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
        return ends.expand(len(self.key), 4).reshape(-1, *shape)


def test_no_extreme_is_infinite_or_out_of_range():
    rng = Extremes(torch.zeros(1, dtype=torch.int64))
    for dtype in (torch.float32, torch.float64):
        assert torch.isfinite(rng.normal((4,), dtype)).all()
        assert (rng.uniform((4,), dtype) < 1).all()
        assert (rng.uniform((4,), dtype) >= 0).all()
    for high in (1, 2, 3, 5, 10, 255, 1000, 2**20 + 1, 2**31 - 1):
        assert (rng.integers(high, (4,)) < high).all()
        assert (rng.integers(high, (4,)) >= 0).all()


def test_integers_are_even_and_fit_a_limit_per_row():
    draws = Rng.from_seed(4, N).integers(7)
    assert stats.chisquare(torch.bincount(draws, minlength=7).numpy()).pvalue > P
    high = torch.arange(1, N + 1)
    draws = Rng.from_seed(4, N).integers(high)
    assert (draws < high).all()
    assert stats.kstest((draws / high)[100:].numpy(), "uniform").pvalue > P / 100


def test_sign():
    signs = Rng.from_seed(6, N).sign(())
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), N).pvalue > P


@given(
    seed=st.integers(0, 2**64 - 1),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    order=st.permutations(range(12)),
)
def test_same_bytes_for_any_batch_and_order(seed, cuts, order):
    rng = Rng.from_seed(seed, 12).fold(torch.arange(12) // 3)
    whole = rng.normal((3, 2))
    edges = [0, *sorted(cuts), 12]
    parts = [torch.arange(a, b) for a, b in pairwise(edges)]
    split = torch.cat([take(rng, rows).normal((3, 2)) for rows in parts])
    assert torch.equal(split, whole)
    shuffled = torch.tensor(order)
    assert torch.equal(take(rng, shuffled).normal((3, 2)), whole[shuffled])
    assert torch.equal(join([take(rng, rows) for rows in parts]).key, rng.key)


def test_fold_takes_an_integer_as_a_tensor_of_it():
    rng = Rng.from_seed(8, 5)
    for value in (0, 1, -1, 2**40):
        rows = torch.full((5,), value)
        assert torch.equal(rng.fold(value).key, rng.fold(rows).key)
    assert torch.equal(rng.fold(2**64 + 3).key, rng.fold(3).key)


def test_skip_goes_on_where_the_elements_end():
    rng = Rng.from_seed(9, 4)
    assert torch.equal(rng.bits((10,))[:, 6:], rng.skip(6).bits((4,)))
    assert torch.equal(rng.skip(2).skip(3).key, rng.skip(5).key)


def test_numbers_of_this_version():
    """Journals are resumed across machines: these values may never change."""
    assert Rng.from_seed(0, 2).fold(7).bits((2,)).tolist() == GOLDEN
