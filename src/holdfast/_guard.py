"""The user's modules and torch's global settings come back as they were, whatever happens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def guarded(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Evaluation mode and no weight gradients on ``device`` inside; everything restored after.

    Compiled code runs as it was written: attacks ask for several gradients of one forward pass,
    and look into the network, which compiled code may refuse.

    Restored are each sub-module's own training flag, each parameter's ``requires_grad``, all
    buffers, the device, torch's random state and its float32 precision settings. ``.grad`` is never
    touched: gradients are taken with respect to inputs only.
    """
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_module_restored(module, device))
        stack.enter_context(_as_written())
        stack.enter_context(_float32())
        stack.enter_context(torch.random.fork_rng(devices=_cuda_index(device)))
        yield


def _as_written() -> AbstractContextManager[object]:
    """No compiled code runs inside; nothing to do, and a second saved, where none was made."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _module_restored(module: nn.Module, device: torch.device) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters()]
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    homes = {t.device for t in (*module.parameters(), *module.buffers())}
    home = next(iter(homes)) if len(homes) == 1 else None
    try:
        if home is not None and home.type != device.type:
            module.to(device)
        _evaluation_mode(module)
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        if home is not None and home.type != device.type:
            module.to(home)
        with torch.no_grad():
            for buffer, value in buffers:
                if not _same(buffer, value):
                    buffer.copy_(value)


def _evaluation_mode(module: nn.Module) -> None:
    """``module.eval()``; exported programs refuse it and have no modes to change."""
    try:
        module.eval()
    except NotImplementedError:
        for m in module.modules():
            m.training = False


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.device), b)


@contextmanager
def _float32() -> Iterator[None]:
    """Full float32 in matrix products and convolutions: TF32 rounds to ten bits."""
    matmul = torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
        torch.backends.cudnn.benchmark = benchmark


def _cuda_index(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [device.index if device.index is not None else torch.cuda.current_device()]
