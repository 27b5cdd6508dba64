"""Batches of real and extra samples: shares, order, what is seen when."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.defenses._mixing import MixedBatches
from holdfast.errors import PlanError


@settings(deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 16), st.floats(0, 0.9), st.integers(0, 5)
)
def test_an_epoch_is_one_pass_over_the_real_data(n_real, n_extra, batch_size, share, number):
    try:
        mixed = MixedBatches(n_real, n_extra, batch_size, share)
    except PlanError:
        assert round(share * batch_size) == batch_size
        return
    batches = list(mixed.epoch(number))
    assert len(batches) == mixed.n_batches
    assert sorted(torch.cat([real for real, _ in batches]).tolist()) == list(range(n_real))
    for real, extra in batches[:-1]:
        assert len(real) + len(extra) == batch_size
        assert len(extra) == round(share * batch_size)
    assert all(((extra >= 0) & (extra < n_extra)).all() for _, extra in batches)
    if mixed.n_real_per_batch > 1 and n_real > 1:
        assert min(len(real) for real, _ in batches) > 1  # batch norm cannot take a single one


def test_no_extra_sample_comes_twice_before_all_came_once():
    mixed = MixedBatches(n_real=20, n_extra=13, batch_size=8, share=0.5, seed=3)
    walk = torch.cat([extra for e in range(6) for _, extra in mixed.epoch(e)])
    assert len(walk) == 6 * 20
    for start in range(0, len(walk) - 13, 13):
        assert sorted(walk[start : start + 13].tolist()) == list(range(13))


def test_epochs_are_a_function_of_seed_and_number_alone():
    mixed = MixedBatches(20, 30, 8, 0.5, seed=1)
    last = list(mixed.epoch(4))
    for _ in mixed.epoch(2):
        pass
    again = list(MixedBatches(20, 30, 8, 0.5, seed=1).epoch(4))
    other = list(MixedBatches(20, 30, 8, 0.5, seed=2).epoch(4))

    def order(batches):
        return torch.cat([torch.cat(pair) for pair in batches])

    assert torch.equal(order(last), order(again))
    assert not torch.equal(order(last), order(other))
    assert not torch.equal(order(last), order(list(mixed.epoch(3))))


def test_without_a_share_there_is_no_extra_sample():
    assert all(len(extra) == 0 for _, extra in MixedBatches(20, 0, 8, 0.0).epoch(0))


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.96])
def test_shares_that_leave_nothing_real_are_refused(share):
    with pytest.raises(PlanError, match=r"share|real"):
        MixedBatches(20, 20, 8, share)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(PlanError, match="there is none"):
        MixedBatches(20, 0, 8, 0.5)
