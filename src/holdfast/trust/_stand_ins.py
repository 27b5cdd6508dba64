"""Smooth stand-ins, operator by operator: what :class:`~holdfast.trust.softened.Softened` puts in.

A rule gets the mode, the operator's name, its value and its arguments; it returns the same value
with a smooth graph, or None to leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holdfast.rows import like

if TYPE_CHECKING:
    from holdfast.trust.softened import Softened

_TO_NEAREST, _TO_ZERO = ("round", "rint"), ("trunc", "fix", "integer cast")
_FLAT = ("round", "rint", "floor", "ceil", "trunc", "fix")
_WIDEST = 1.0  # from this width on, a staircase is replaced by the slope through all its steps
_ABOVE = ("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__")
_BELOW = ("lt", "le", "less", "less_equal", "__lt__", "__le__")
_CASTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "_to_copy")
_INTEGER_CASTS = ("int", "long", "short", "byte", "char", "to", "type", "_to_copy")
_MIXING = ("mul", "__mul__", "__rmul__", "multiply", "add", "__add__", "__radd__", "sub", "__sub__")
_MIXING += ("__rsub__", "rsub", "div", "__truediv__", "true_divide", "sum", "mean", "stack", "cat")
_SAME_AT_SWITCH = 0.2  # a jump smaller than this share of the usual difference is a kink, no step
_NEAR = 0.05  # share of the elements that are nearest to the switch


class _Graft(torch.autograd.Function):
    """The value of one tensor with the gradient of another of the same shape."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, soft: Tensor) -> Tensor:
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, gradient


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _graft(value: Tensor, soft: Tensor) -> Tensor:
    return _Graft.apply(value, soft.expand(value.shape).to(value.dtype))


def _scale(gap: Tensor) -> Tensor:
    """Mean distance to the switch of each row, kept broadcastable."""
    size = gap.detach().abs()
    mean = size.flatten(1).mean(1) if gap.ndim > 1 else size
    return like(mean, gap).clamp_min(1e-6) if gap.ndim > 1 else mean.clamp_min(1e-6)


def _sigmoid(mode: Softened, gap: Tensor) -> Tensor:
    return torch.sigmoid(gap / (_width(mode, gap) * _scale(gap)))


def _width(mode: Softened, gap: Tensor) -> float | Tensor:
    """Each row's own, broadcastable; where rows are no longer what they were, the mean."""
    if not isinstance(mode.width, Tensor):
        return mode.width
    if gap.ndim and len(gap) == len(mode.width):
        return like(mode.width.to(gap.dtype), gap)
    return float(mode.width.mean())


def _stairs(mode: Softened, name: str, x: Tensor) -> Tensor:
    """The stand-in for rounding: ``x`` itself, or a sigmoid at the nearest of the steps.

    The slope of ``x`` promises every small change the same; in truth one that reaches no step does
    nothing, and one that reaches it does much.
    """
    if not isinstance(mode.width, Tensor) and mode.width >= _WIDEST:
        return x
    at = x.detach()
    if name in _TO_NEAREST:
        step = at.floor() + 0.5
    elif name in _TO_ZERO:
        step = torch.where(at < 0, -1.0, 1.0) * at.abs().round().clamp_min(1)
    else:
        step = at.round()
    return _sigmoid(mode, x - step)


# ---------------------------------------------------------------------- rules


def _flat(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0] if args else kwargs.get("input")
    if not _has_gradient(x) or not mode.takes(name):
        return None
    return _graft(value, x if kwargs.get("decimals") else _stairs(mode, name, x))


def _sign(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0] if args else kwargs.get("input")
    if not _has_gradient(x) or not mode.takes("sign" if name == "sgn" else name):
        return None
    soft = _sigmoid(mode, x)
    return _graft(value, soft if name == "heaviside" else 2 * soft)


def _remainder(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    if not args or not _has_gradient(args[0]) or not mode.takes("remainder"):
        return None
    x, step = args[0], args[1] if len(args) > 1 else kwargs["other"]
    step = step.detach() if isinstance(step, Tensor) else step
    kind = "trunc" if name == "fmod" else "floor"
    return _graft(value, x - step * _stairs(mode, kind, x / step))


def _detach(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    if not args or not _has_gradient(args[0]) or not mode.takes("detach"):
        return None
    return _graft(value, args[0])


def _compare(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    if len(args) < 2 or not any(_has_gradient(a) for a in args[:2]):
        return
    a, b = args[:2]
    mode.remember(value, "gap", "threshold", a - b if name in _ABOVE else b - a)


def _negate(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    found = mode.recall(args[0])
    if found is not None and found[0] == "gap":
        mode.remember(value, "gap", found[1], -found[2])


def _combine(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    found = [mode.recall(a) for a in args[:2]]
    gaps = [f[2] for f in found if f is not None and f[0] == "gap"]
    if not gaps:
        return
    joined = torch.minimum if "and" in name else torch.maximum
    mode.remember(value, "gap", "threshold", gaps[0] if len(gaps) == 1 else joined(*gaps))


def _pick(mode: Softened, name: str, value: Any, args: Any, kwargs: Any) -> None:
    """The positions of the largest values remember how far every value is from being picked."""
    x = args[0]
    if not _has_gradient(x) or not isinstance(value, tuple):
        return
    dim = kwargs.get("dim", args[2] if len(args) > 2 and name == "topk" else -1)
    is_largest = kwargs.get("largest", args[3] if len(args) > 3 else True)
    edge = value[0].amin(dim, keepdim=True) if is_largest else value[0].amax(dim, keepdim=True)
    mode.remember(value[1], "gap", "topk", (x - edge) if is_largest else (edge - x))


def _scatter(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    index = args[2] if len(args) > 2 else kwargs.get("index")
    found = mode.recall(index)
    if found is not None and found[2].shape == value.shape:
        mode.remember(value, "gap", "topk", found[2])


def _cast(mode: Softened, name: str, value: Any, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0]
    if not isinstance(value, Tensor) or not isinstance(x, Tensor):
        return None
    if x.is_floating_point() and not value.is_floating_point():
        if _has_gradient(x) and value.dtype is not torch.bool:
            mode.remember(value, "value", "integer cast", x)
        return None
    found = mode.recall(x)
    if found is None or not value.is_floating_point() or value is x:
        return None
    return _value_of(mode, value, found)


def _value_of(mode: Softened, value: Tensor, found: tuple[str, str, Tensor]) -> Tensor | None:
    """A mask or an integer as a number with a smooth graph."""
    kind, name, source = found
    if kind == "value":
        return _graft(value, _stairs(mode, name, source)) if mode.takes(name) else None
    key = mode.next_switch(name)
    if not mode.takes(key):
        return None
    mask = _graft(value, _sigmoid(mode, source))
    mode.remember(mask, "mask", key, source)
    return mask


def _mix(mode: Softened, name: str, value: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Arithmetic with masks and integers that hang on the input."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if name in ("mul", "__mul__", "__rmul__", "multiply"):
        return _masked(mode, value, args)
    found = [_without_graph(mode.recall(a)) for a in args[:2]]
    if all(f is None for f in found):
        return None
    return _redone(mode, value, args, found, name)


def _without_graph(found: tuple[str, str, Tensor] | None) -> tuple[str, str, Tensor] | None:
    """Nothing for masks that are numbers with a smooth graph already."""
    return None if found is None or found[0] == "mask" else found


def _redone(mode: Softened, value: Tensor, args: Any, found: Any, name: str) -> Tensor | None:
    soft = [
        a if f is None else _value_of(mode, a.to(value.dtype), f)
        for a, f in zip(args[:2], found, strict=False)
    ]
    if any(s is None for s in soft):
        return None
    function = getattr(torch, _PLAIN.get(name, name))
    return _graft(value, function(*reversed(soft) if name in _REVERSED else soft))


def _masked(mode: Softened, value: Tensor, args: Any) -> Tensor | None:
    """``x * mask``."""
    for mask, x in (args[:2], reversed(args[:2])):
        found = mode.recall(mask)
        if found is None:
            continue
        if found[0] == "value":
            soft = _value_of(mode, mask.to(value.dtype), found)
            return None if soft is None else _graft(value, soft * x)
        x = torch.as_tensor(x, dtype=value.dtype, device=value.device)
        if found[0] == "mask":
            return _unless_kink(mode, found, mask, x)
        return _switched(mode, value, found, x, torch.zeros_like(x))
    return None


def _unless_kink(
    mode: Softened, found: tuple[str, str, Tensor], mask: Tensor, x: Tensor
) -> Tensor | None:
    """``x * mask.float()``: nothing to replace after all where x is zero at the switch."""
    _, key, gap = found
    if mode.names is not None or gap.shape != x.shape or jumps(gap, x, torch.zeros_like(x)):
        return None
    mode.met[key] -= 1
    return mask.detach() * x


def _where(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    found = mode.recall(args[0]) if len(args) == 3 else None
    if found is None or found[0] != "gap":
        return None
    a, b = (torch.as_tensor(v, device=value.device) for v in args[1:])
    return _switched(mode, value, found, a, b)


def _fill(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    if len(args) < 3:
        return None
    found = mode.recall(args[1])
    if found is None or found[0] != "gap":
        return None
    return _switched(mode, value, found, torch.as_tensor(args[2], device=value.device), args[0])


def _switched(
    mode: Softened, value: Tensor, found: tuple[str, str, Tensor], a: Tensor, b: Tensor
) -> Tensor | None:
    """``where(gap > 0, a, b)`` with the slope of a sigmoid and gradients on both sides."""
    _, name, gap = found
    if not mode.takes_switch(name, gap, a, b):
        return None
    if mode.is_in_place:  # what the distance was computed from is overwritten
        return _graft(value, a + b)
    share = _sigmoid(mode, gap)
    return _graft(value, share * a + (1 - share) * b)


def jumps(gap: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether the two sides differ where the switch flips."""
    difference = (a - b).detach().abs().expand(gap.shape).flatten()
    if difference.numel() == 0 or float(difference.max()) == 0:
        return False
    k = max(1, int(_NEAR * difference.numel()))
    near = gap.detach().abs().flatten().topk(k, largest=False).indices
    return float(difference[near].mean()) > _SAME_AT_SWITCH * float(difference.mean())


_PLAIN = {"__add__": "add", "__radd__": "add", "__sub__": "sub", "__rsub__": "sub"}
_PLAIN |= {"rsub": "sub", "__truediv__": "div", "true_divide": "div"}
_REVERSED = ("__rsub__", "rsub")
_Rule = Callable[["Softened", str, Any, Any, Any], Tensor | None]
RULES: dict[str, _Rule] = {
    **dict.fromkeys(_FLAT, _flat),
    **dict.fromkeys(("sign", "sgn", "heaviside"), _sign),
    **dict.fromkeys(("remainder", "fmod", "__mod__"), _remainder),
    "detach": _detach,
    **dict.fromkeys((*_ABOVE, *_BELOW), _compare),
    **dict.fromkeys(("logical_not", "bitwise_not", "__invert__"), _negate),
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__", "logical_or", "__or__"), _combine),
    **dict.fromkeys(("topk", "sort"), _pick),
    **dict.fromkeys(("scatter",), _scatter),
    **dict.fromkeys((*_CASTS, *_INTEGER_CASTS), _cast),
    **dict.fromkeys(_MIXING, _mix),
    "where": _where,
    "masked_fill": _fill,
    "__setitem__": _fill,
}
