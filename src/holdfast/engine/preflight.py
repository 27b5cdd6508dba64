"""Checks of the model before anything starts; each ends in an error, a finding, or silence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.attacks._losses import cross_entropy
from holdfast.attacks.base import Answer, Objective, Query
from holdfast.engine.judge import N_DRAWS, NEIGHBOURS
from holdfast.engine.scan import inside
from holdfast.errors import DataError, ModelError
from holdfast.model import Model, RowBlock
from holdfast.record import Finding
from holdfast.threat import Access
from holdfast.trust.softened import Softened

N_CHECKED = 16
N_COMPARED = 8
EOT_DRAWS = 4  # passes averaged per gradient of a random model (Athalye et al., 2018)
_BLOCKS = (8, 4, 2, 1)
_WIDER_BLOCKS = (16, 32)
_FILLED_BLOCKS = (4, 8, 16)
_SMALL_INPUT, _SMALL_MODEL = 1024, 300_000  # numbers per input and in the model's weights


def preflight(model: Model, x: Tensor, y: Tensor, labels: Tensor) -> list[Finding]:
    """Check ``model`` on some clean inputs ``x`` ``(m, *shape)`` with labels ``y``, and set it up.

    Recognises the head, marks random models, and finds the row block; once per model and shape of
    inputs, what was found is remembered. ``labels`` are all labels of the data.

    Raises:
        ModelError: where the model is not a classifier of single inputs.
        DataError: where the labels do not fit its head.
    """
    x, y = inside(x[:N_CHECKED], model.domain).to(model.device), y[:N_CHECKED].to(model.device)
    shape = tuple(x.shape[1:])
    if shape not in model.checked:
        model.recognise(x)
        _check_labels(model, labels)
        model.checked[shape] = tuple(_check(model, x, y))
    _check_labels(model, labels)
    return list(model.checked[shape])


def _check(model: Model, x: Tensor, y: Tensor) -> list[Finding]:
    findings = list(_head_findings(model))
    findings += _randomness(model, x)
    if not model.is_random:
        _check_rows_apart(model, x)
    if model.access is Access.GRADIENTS:
        findings += _gradients(model, x)
    if not model.is_random:
        findings += _row_block(model, x, y)
        findings += _agreement(model, x[:N_COMPARED], y[:N_COMPARED])
    return findings


def _head_findings(model: Model) -> Iterator[Finding]:
    if model.head.kind.startswith("probabilit"):
        yield Finding(
            code="probabilities",
            level="info",
            text="The model's outputs look like probabilities. Holdfast takes their logarithm, so "
            "that attacks do not lose their gradients in a saturated softmax. A model that gives "
            "logits is audited more reliably. If they are scores after all, say so in Python with "
            "Model(..., head='logits'), or head='logit' for a single one.",
        )
    if model.head.kind == "labels":
        yield Finding(
            code="labels_only",
            level="warning",
            text="The model gives labels only. Attacks that need scores or gradients could not "
            "run, so the robust accuracy is a weak upper bound.",
        )


def _check_labels(model: Model, labels: Tensor) -> None:
    lowest, top = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise DataError(f"There is a label {lowest}. Labels are counted from 0.")
    if top >= model.n_classes:
        raise DataError(
            f"The labels go up to {top}, but the model has {model.n_classes} classes (labels 0 to "
            f"{model.n_classes - 1}). Check that data and model belong together."
        )


def _randomness(model: Model, x: Tensor) -> list[Finding]:
    """The same inputs twice; random models are averaged and judged by majority from here on."""
    first, second = model.logits(x), model.logits(x)
    difference = float((first - second).abs().max())
    if difference <= 1e-4 * (1 + float(first.abs().max())):
        return []
    model.draws = EOT_DRAWS
    return [
        Finding(
            code="random_model",
            level="warning",
            text="The model answers differently when it is asked the same thing twice (largest "
            f"difference of scores {difference:.3g}). Gradients are averaged over {EOT_DRAWS} "
            f"draws and an input counts as fooling the model if most of {N_DRAWS} fresh draws say "
            "so. Rare answers of the model are not audited.",
        )
    ]


def _check_rows_apart(model: Model, x: Tensor) -> None:
    together, alone = model.logits(x), model.replay(x)
    difference = float((together - alone).abs().max())
    is_apart = difference <= NEIGHBOURS * (1 + float(alone.abs().max()))
    if not is_apart and model.batch_size == 1:
        model.max_rows = 1
    elif not is_apart:
        raise ModelError(
            f"The model's answer to an input depends on the other inputs of the batch (scores "
            f"differ by {difference:.3g} between batch sizes 1 and {len(x)}), even in evaluation "
            "mode: perhaps a batch normalisation without stored statistics. Mend the model, or "
            "audit it one input at a time with --batch-size 1."
        )


def _gradients(model: Model, x: Tensor) -> list[Finding]:
    """Whether there are any gradients to follow."""
    if not model.takes_arrays and _is_differentiable(model, x[:1]):
        return []
    model.has_gradients = False
    if not _is_differentiable_at_all(model, x[:1]):
        model.access = Access.SCORES
        return [
            Finding(
                code="no_gradients",
                level="warning",
                text="No gradients flow through the model, so only score-based attacks could run. "
                "If it is a PyTorch model, give the module itself (no numpy, detach or no_grad in "
                "its forward): gradient attacks are far stronger.",
            )
        ]
    return [
        Finding(
            code="no_gradients",
            level="warning",
            text="No gradients flow through the model as it is. Gradient attacks ran all the same, "
            "with smooth stand-ins for the steps that stop them.",
        )
    ]


def _is_differentiable_at_all(model: Model, x: Tensor) -> bool:
    """Whether there are gradients with smooth stand-ins for the steps that stop them."""
    if model.takes_arrays:
        return False
    with Softened():
        try:
            return _is_differentiable(model, x)
        except Exception:
            return False  # the model cannot run with other gradients than its own


def _is_differentiable(model: Model, x: Tensor) -> bool:
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        try:
            out = model.raw(x)
            if not out.requires_grad:
                return False
            return torch.autograd.grad(out.sum(), x, allow_unused=True)[0] is not None
        except RuntimeError:  # NumPy inside, or an operator without a derivative
            return False


def _ask(model: Model, x: Tensor, y: Tensor) -> list[Answer]:
    """What the search gets, and what the judge does where that is rounded otherwise."""
    objective = None
    if model.access is Access.GRADIENTS and model.has_gradients:
        objective = Objective(cross_entropy, (y, torch.full_like(y, -1)))
    answers = model.search([Query(x, objective)])
    return answers if model.tuning.is_exact else answers + model.answer([Query(x)])


def _row_block(model: Model, x: Tensor, y: Tensor) -> list[Finding]:
    """Find the smallest block of rows whose multiples all give the same bits for a row."""
    rows = model.call_rows(tuple(x.shape[1:]))
    if rows == 1:
        return []
    x, y = _repeated(x, rows), _repeated(y, rows)
    model.block = RowBlock(1)
    reference = _ask(model, x, y)
    working = None
    for size in _BLOCKS:
        if not _agrees(model, x, y, reference, size):
            break
        working = size
    if working is None:
        working = next((s for s in _WIDER_BLOCKS if _agrees(model, x, y, reference, s)), None)
    if working is not None:
        model.block = RowBlock(working)
        return []
    if _is_small(model, x):
        for size in _FILLED_BLOCKS:
            model.block = RowBlock(size, is_filled=True)
            reference = _ask(model, x, y)
            if _agrees(model, x, y, reference, 1):
                return []
        model.block = RowBlock(1)
    reference = _ask(model, x, y)
    places = torch.arange(len(x) - 1, -1, -1, device=x.device)
    if _same(_ask(model, x[places], y[places]), reference, places):
        model.block = RowBlock(rows, is_fixed=True)
        return []
    return [
        Finding(
            code="rounding",
            level="info",
            text="On this machine the model's rounding depends on an input's place in the batch, "
            "so the verdict of a sample that is just about to fall may differ between batch "
            "sizes.",
        )
    ]


def _agreement(model: Model, x: Tensor, y: Tensor) -> Iterator[Finding]:
    """Whether the model answers with gradients as it does without them."""
    model.agrees_with_gradients = False
    if model.access is not Access.GRADIENTS or not model.has_gradients:
        return
    objective = Objective(cross_entropy, (y, torch.full_like(y, -1)))
    alone, recorded = (a.logits for a in model.answer([Query(x), Query(x, objective)]))
    model.agrees_with_gradients = torch.equal(alone, recorded)
    difference = float((alone - recorded).abs().max())
    if not difference <= 1e-3 * (1 + float(alone.abs().max())):
        yield Finding(
            code="answers_with_gradients_differ",
            level="warning",
            text="The model answers differently while gradients are recorded (largest difference "
            f"of scores {difference:.3g}), so attacks that follow gradients see another model than "
            "the one that is used. Robust accuracy may be far too high. Give a model whose forward "
            "does not look at torch.is_grad_enabled().",
        )


def _is_small(model: Model, x: Tensor) -> bool:
    """Whether running every input a few times over costs next to nothing."""
    weights = sum(p.numel() for module in model.modules for p in module.parameters())
    return x[0].numel() <= _SMALL_INPUT and weights <= _SMALL_MODEL


def _repeated(x: Tensor, rows: int) -> Tensor:
    return x.repeat(-(-rows // len(x)), *(1,) * (x.ndim - 1))[:rows]


def _agrees(model: Model, x: Tensor, y: Tensor, reference: list[Answer], size: int) -> bool:
    """Whether calls of 1, 2, 3 and 5 blocks, at other places of the batch, give the same bits."""
    for blocks in (1, 2, 3, 5):
        n = blocks * size
        if n > len(x):
            break
        places = torch.arange(len(x) - 1, len(x) - 1 - n, -1, device=x.device)
        if not _same(_ask(model, x[places], y[places]), reference, places):
            return False
    return True


def _same(got: list[Answer], reference: list[Answer], places: Tensor) -> bool:
    return all(_is_row_of(a, b, places) for a, b in zip(got, reference, strict=True))


def _is_row_of(got: Answer, reference: Answer, places: Tensor) -> bool:
    if not torch.equal(got.logits, reference.logits[places]):
        return False
    if reference.gradients.numel() == 0:
        return True
    return torch.equal(got.gradients, reference.gradients[places])
