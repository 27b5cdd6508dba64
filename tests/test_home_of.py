"""Where a model's weights live, and in which type."""

from __future__ import annotations

import torch
from torch import nn

from holdfast import Model
from holdfast._wrapping import home_of


def test_a_function_without_weights_is_at_home_on_the_cpu_in_float32():
    assert home_of([]) == (torch.device("cpu"), torch.float32)
    assert Model(lambda x: x).dtype == torch.float32


def test_the_first_floating_point_weight_gives_the_type():
    counted = nn.BatchNorm1d(3, affine=False)  # its counter is an integer
    assert home_of([counted.double()])[1] == torch.float64
    assert home_of([nn.Linear(2, 2).half(), nn.Linear(2, 2)])[1] == torch.float16


def test_integers_alone_give_no_type():
    layer = nn.Module()
    layer.register_buffer("index", torch.arange(3))
    assert home_of([layer])[1] == torch.float32


def test_weights_of_a_function_count_too():
    net = nn.Linear(2, 2).double()
    assert Model(lambda x: net(x)).dtype == torch.float64


def test_a_device_that_was_named_wins():
    assert Model(nn.Linear(2, 2), device="meta").device == torch.device("meta")
    assert Model(nn.Linear(2, 2, device="meta")).device == torch.device("meta")
