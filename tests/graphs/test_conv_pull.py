"""Coefficients before convolutions are those of the transposed convolution, however computed."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from holdfast.graphs.operator import Box
from holdfast.graphs.operators.conv import Conv
from holdfast.graphs.window import Window

CASES = [
    (n_in, kernel, stride, padding, size)
    for n_in, kernel, stride, padding, size in itertools.product(
        (1, 3, 8), (2, 3, 4), (1, 2, 3), (0, 1), (9, 10)
    )
    if padding < kernel
]


def made(n_in, kernel, stride, padding, dtype):
    torch.manual_seed(0)
    weight = torch.randn(5, n_in, kernel, kernel, dtype=dtype)
    bias = torch.randn(5, dtype=dtype)
    return Conv(weight, bias, (stride, stride), (padding, padding), (1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n_in", "kernel", "stride", "padding", "size"), CASES)
def test_whole_maps_and_windows(n_in, kernel, stride, padding, size, dtype):
    op = made(n_in, kernel, stride, padding, dtype)
    z = torch.zeros(1, n_in, size, size + 1, dtype=torch.float64, requires_grad=True)
    weight = op.weight.double()
    out = F.conv2d(z, weight, op.bias.double(), op.stride, op.padding)
    rows = torch.randn(2, 1, *out.shape[1:], dtype=dtype)
    expected = torch.stack(
        [torch.autograd.grad((out[0] * r[0]).sum(), z, retain_graph=True)[0][0] for r in rows]
    )
    box = Box(z.detach().to(dtype), z.detach().to(dtype))
    pulled = op.pull(rows, [box])
    torch.testing.assert_close(
        pulled.coefficients[0][:, 0].double(), expected, rtol=1e-4, atol=1e-4
    )
    # The same as windows that cover the whole output.
    window = Window(rows, torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    spread, constant = op.pull_window(window, [box])
    torch.testing.assert_close(
        spread.spread(z.shape[1:])[:, 0].double(), expected, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(constant, pulled.constant, rtol=1e-4, atol=1e-4)
    # Small windows are multiplied by a matrix.
    part = window._replace(A=rows[..., :2, :2].contiguous())
    small = torch.zeros_like(rows)
    small[..., :2, :2] = rows[..., :2, :2]
    spread, _ = op.pull_window(part, [box])
    torch.testing.assert_close(
        spread.spread(z.shape[1:]), op.pull(small, [box]).coefficients[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("n_in", "kernel", "stride", "padding", "size"), CASES[::3])
def test_gradients_are_those_of_the_convolution(n_in, kernel, stride, padding, size):
    op = made(n_in, kernel, stride, padding, torch.float32)
    weights = torch.randn(2, n_in, size, size + 1)
    expected = F.conv2d(weights, op.weight, None, op.stride, op.padding)
    rows = torch.randn(2, 1, *expected.shape[1:], requires_grad=True)
    box = Box(weights[:1], weights[:1])
    pulled = op.pull(rows, [box]).coefficients[0][:, 0]
    (found,) = torch.autograd.grad((pulled * weights).sum(), rows)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-4)
