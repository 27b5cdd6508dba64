"""The user's module as the network that is trained: normalisation inside, logits out."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from holdfast._heads import Head, as_logits
from holdfast.errors import ModelError
from holdfast.model import Model

_FOR_TRAINING = ("logits", "logit")


class Network(nn.Module):
    """Inputs of the domain ``(n, *shape)`` -> logits ``(n, k)`` float32.

    Attributes:
        module: A copy of the user's module; its parameters are the ones trained.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self.module: nn.Module = model.f  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, differentiable in ``x`` and in the weights."""
        return as_logits(self._model.raw(x), self._model.head)

    def train(self, mode: bool = True) -> Network:
        """Training or evaluation mode; exported programs have only the one they were saved in."""
        self.training = mode
        try:
            self.module.train(mode)
        except NotImplementedError:
            for part in self.module.modules():
                part.training = mode
        return self


def trainable_copy(model: Model) -> Model:
    """A Model around a copy of the module, so that the user's own is never touched.

    Raises:
        ModelError: where there is nothing to train, or its output cannot be trained on.
    """
    if not isinstance(model.f, nn.Module):
        raise ModelError(
            f"{model.description} is no torch.nn.Module, so it has no weights to train. Give the "
            "module itself (package.module:function with --weights FILE, or a .pt2 program). An "
            "ONNX file or a function cannot be hardened: train the model it was made from."
        )
    fresh = Model(
        _copied(model.f),
        domain=model.domain,
        mean=None if model.mean is None else model.mean.tolist(),
        std=None if model.std is None else model.std.tolist(),
        device=model.device,
        n_classes=model.n_classes or None,
        batch_size=model.batch_size,
        description=model.description,
    )
    fresh.head = model.head
    _check_weights(fresh)
    return fresh


def _copied(module: nn.Module) -> nn.Module:
    try:
        with warnings.catch_warnings(), torch.no_grad():  # else TorchScript's copies are no leaves
            warnings.simplefilter("ignore")  # torch's own, while it copies an exported program
            copied = copy.deepcopy(module)
        for own, given in zip(copied.parameters(), module.parameters(), strict=True):
            own.requires_grad_(given.requires_grad)
        return copied
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and your "
            "own object must stay as it is. Give a function that builds it, with --weights FILE."
        ) from None


def _check_weights(model: Model) -> None:
    weights = list(model.f.parameters())  # type: ignore[attr-defined]
    if not weights:
        raise ModelError(f"{model.description} has no parameters: there is nothing to train.")
    if not any(p.requires_grad for p in weights):
        raise ModelError(
            f"None of the {sum(p.numel() for p in weights):,} parameters of {model.description} "
            "asks for a gradient: all are frozen. Call requires_grad_(True) on those to train."
        )


def check_head(model: Model) -> None:
    """Refuse outputs that cannot be trained on; called once the head is recognised."""
    if model.head.kind not in _FOR_TRAINING:
        raise ModelError(
            f"The model's outputs are {model.head.kind}. Training needs logits: leave out the "
            "softmax or argmax at its end (it can be added again behind the hardened model). If "
            "they are scores after all, say so with Model(..., head='logits')."
        )


def attackable(network: Network, model: Model) -> Model:
    """The network as the engine's Model for inner attacks: no checks, no padding."""
    wrapped = Model(network, domain=model.domain, device=model.device)
    wrapped.head = Head("logits", model.n_classes)
    return wrapped


def has_batch_norm(module: nn.Module) -> bool:
    """Whether statistics of batches are part of the module."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def n_parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def is_finite(module: nn.Module) -> bool:
    """Whether every weight is a number."""
    return all(bool(torch.isfinite(p).all()) for p in module.parameters())
