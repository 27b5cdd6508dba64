import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from holdfast.evaluation.statistics import Rate, clopper_pearson, paired

counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_is_scipys_exact_one(pair, confidence):
    k, n = pair
    if n == 0:
        return
    expected = binomtest(k, n).proportion_ci(confidence, method="exact")
    rate = Rate.of(k, n, confidence)
    assert (rate.lower, rate.upper) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert rate.lower <= rate.value <= rate.upper


@pytest.mark.parametrize(("n", "p"), [(10, 0.03), (30, 0.5), (200, 0.81), (200, 0.999)])
def test_interval_covers_what_it_promises(n, p):
    k = np.arange(n + 1)
    lower, upper = clopper_pearson(k, np.full_like(k, n))
    assert binom.pmf(k, n, p)[(lower <= p) & (p <= upper)].sum() >= 0.95


def test_interval_at_the_edges():
    assert Rate.of(0, 100).lower == 0.0
    assert Rate.of(100, 100).upper == 1.0
    assert Rate.of(0, 100).upper == pytest.approx(1 - 0.025 ** (1 / 100))
    nothing = Rate.of(0, 0)
    assert (nothing.lower, nothing.upper) == (0.0, 1.0)
    assert math.isnan(nothing.value)
    assert nothing.to_dict()["value"] is None


def test_rate_prints_its_interval():
    assert str(Rate.of(412, 1000)) == "0.412 [0.381, 0.443] (n=1000)"
    assert str(Rate.of(0, 0)) == "not known (n=0)"
    assert float(Rate.of(1, 4)) == 0.25


@pytest.mark.parametrize(("k", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_nonsense_is_refused(k, n, confidence):
    with pytest.raises(ValueError, match=r"successes|confidence"):
        clopper_pearson(k, n, confidence)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_paired_is_the_sign_test(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    result = paired(first, second)
    disagreements = result.gained + result.lost
    if disagreements:
        assert result.p_value == pytest.approx(binomtest(result.gained, disagreements).pvalue)
    else:
        assert result.p_value == 1.0
    assert paired(second, first).gained == result.lost
    if pairs:
        assert result.difference == pytest.approx((sum(second) - sum(first)) / len(pairs))


def test_paired_needs_pairs():
    with pytest.raises(ValueError, match="2 and 1"):
        paired([True, False], [True])
