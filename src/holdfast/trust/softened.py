"""The same forward pass with another backward pass: steps that lose gradients are smoothed.

Backward pass differentiable approximation (Athalye, Carlini and Wagner, 2018, arXiv:1802.00420):
run ``f`` forwards as it is, and differentiate a smooth ``g`` close to it instead. Here ``g`` is put
in operator by operator, while the model runs: a torch function mode sees every torch function that
the model calls and, for those whose derivative is zero or undefined, ties the value of ``f`` to the
graph of ``g``. The forward bits never change, and nothing of the model is edited.

What is replaced, by name:

- ``round``, ``floor``, ``ceil``, ``trunc``, ``sign``, ``heaviside``, casts to integers: identity,
  or the slope of a sigmoid;
- ``threshold``: comparisons that switch between values which differ at the switch (a mask,
  ``where``, ``masked_fill``): a sigmoid of the distance to the switch. Where both sides agree at
  the switch, as in a ReLU written by hand, nothing is replaced;
- ``topk``: masks made from the positions of the largest values: the same;
- ``remainder``: constant, so that ``x - x % step`` has slope one;
- ``detach``: identity;
- ``bridge``: a tensor shaped like the input that reaches the first layer without a graph (an inner
  optimiser, a denoiser, a round trip through numpy): identity to the input.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from holdfast.rows import like

FLAT = ("round", "floor", "ceil", "trunc", "fix", "rint")
_LAYERS = ("conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul", "addmm", "mm")
_ABOVE = ("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__")
_BELOW = ("lt", "le", "less", "less_equal", "__lt__", "__le__")
_CASTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "_to_copy")
_INTEGER_CASTS = ("int", "long", "short", "byte", "char", "to", "type", "_to_copy")
_MIXING = ("mul", "__mul__", "__rmul__", "multiply", "add", "__add__", "__radd__", "sub", "__sub__")
_MIXING += ("__rsub__", "rsub", "div", "__truediv__", "true_divide", "sum", "mean", "stack", "cat")
WIDTH = 0.25  # of the sigmoid, in mean distances to the switch
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


class _Bridge(torch.autograd.Function):
    """The value of a tensor whose gradient also goes to the model's input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient.reshape(ctx.shape).to(ctx.dtype)


class Softened(TorchFunctionMode):
    """Inside, guilty operators have a smooth backward pass.

    Args:
        names: Which of the replacements above to make; None: all that occur.
        width: Of the sigmoids that stand for steps, in mean distances to the step.

    Attributes:
        met: Replacements that occurred, with the number of times.
        n_calls: Torch functions called.
        n_inner_gradients: Gradients that the model took itself, inside its forward pass.
    """

    def __init__(self, names: Sequence[str] | None = None, width: float = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.names = None if names is None else frozenset(names)
        self.met: dict[str, int] = {}
        self.n_calls = 0
        self.n_inner_gradients = 0
        self._x: Tensor | None = None
        self._n_switches = 0
        self._is_in_place = False
        self._shadows: dict[int, tuple[Any, str, str, Tensor]] = {}

    # ------------------------------------------------------------------ the mode

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, and tie its value to a smooth graph where it needs one."""
        kwargs = kwargs or {}
        name = name_of(func)
        self.n_calls += 1
        if name in ("grad", "backward") and self._x is not None:
            self.n_inner_gradients += 1
        if name == "requires_grad_" and self._x is None:
            self._x = func(*args, **kwargs)
            return self._x
        if self._x is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        return self._run(func, name, args, kwargs)

    def _run(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        is_in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        base = name[:-1] if is_in_place and name != "__setitem__" else name
        if base in ("numpy", "__array__"):  # a detach that was made to carry a gradient
            return func(args[0].detach(), *args[1:], **kwargs)
        if base in _LAYERS:
            return func(*self._bridged(args), **kwargs)
        rule = _RULES.get(base)
        if rule is None:
            return func(*args, **kwargs)
        if not is_in_place:
            value = func(*args, **kwargs)
            soft = rule(self, base, value, args, kwargs)
            return value if soft is None else soft
        before = args[0].clone()
        func(*args, **kwargs)
        self._is_in_place = True
        soft = rule(self, base, args[0], (before, *args[1:]), kwargs)
        self._is_in_place = False
        return args[0] if soft is None else args[0].copy_(soft)

    def _takes(self, name: str) -> bool:
        """Whether this replacement is wanted; it is noted that it occurred."""
        self.met[name] = self.met.get(name, 0) + 1
        return self.names is None or name in self.names

    def _takes_switch(self, name: str, gap: Tensor, a: Tensor, b: Tensor) -> bool:
        """The same for a switch between two values: the k-th one of the forward pass.

        Whether it jumps is found once, while the replacements are chosen, so that a row's gradient
        does not depend on the rows beside it.
        """
        key = self._next_switch(name)
        if self.names is None:
            return _jumps(gap, a, b) and self._takes(key)
        return self._takes(key)

    def _next_switch(self, name: str) -> str:
        self._n_switches += 1
        return f"{name}@{self._n_switches}"

    # ------------------------------------------------------------------ shadows

    def _remember(self, value: Any, kind: str, name: str, source: Tensor) -> None:
        """That ``value``, which has no gradient, hangs on ``source``, which has one."""
        if isinstance(value, Tensor):
            key = id(value)
            reference = weakref.ref(value, lambda _: self._shadows.pop(key, None))
            self._shadows[key] = (reference, kind, name, source)

    def _recall(self, value: Any) -> tuple[str, str, Tensor] | None:
        found = self._shadows.get(id(value))
        if found is None or found[0]() is not value:
            return None
        return found[1:]

    def _bridged(self, args: Any) -> Any:
        z = args[0] if args else None
        x = self._x
        if not isinstance(z, Tensor) or x is None or z is x or z.grad_fn is not None:
            return args
        if not z.is_floating_point() or z.shape[:1] != x.shape[:1] or z.numel() != x.numel():
            return args
        if not self._takes("bridge"):
            return args
        return (_Bridge.apply(z, x), *args[1:])


def name_of(func: Callable[..., Any]) -> str:
    """``round`` for ``torch.round``, ``Tensor.round`` and ``aten.round.default`` alike."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        return "detach" if owner == "data" else owner
    return name.partition(".")[0]


def words(names: Sequence[str]) -> str:
    """``round and topk``: replacements as a reader knows them, each once."""
    plain = list(dict.fromkeys(_WORDS.get(kind(name), kind(name)) for name in names))
    return plain[0] if len(plain) == 1 else f"{', '.join(plain[:-1])} and {plain[-1]}"


def kind(name: str) -> str:
    """``threshold`` for ``threshold@3``."""
    return name.partition("@")[0]


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
    return torch.sigmoid(gap / (mode.width * _scale(gap)))


# ---------------------------------------------------------------------- rules
# (mode, name, value, args, kwargs) -> the value with a smooth graph, or None to leave it


def _flat(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0] if args else kwargs.get("input")
    if not _has_gradient(x) or not mode._takes(name):
        return None
    return _graft(value, x)


def _sign(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0] if args else kwargs.get("input")
    if not _has_gradient(x) or not mode._takes("sign" if name == "sgn" else name):
        return None
    soft = _sigmoid(mode, x)
    return _graft(value, soft if name == "heaviside" else 2 * soft)


def _remainder(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    if not args or not _has_gradient(args[0]) or not mode._takes("remainder"):
        return None
    return value.detach()


def _detach(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    if not args or not _has_gradient(args[0]) or not mode._takes("detach"):
        return None
    return _graft(value, args[0])


def _compare(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    if len(args) < 2 or not any(_has_gradient(a) for a in args[:2]):
        return
    a, b = args[:2]
    mode._remember(value, "gap", "threshold", a - b if name in _ABOVE else b - a)


def _negate(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    found = mode._recall(args[0])
    if found is not None and found[0] == "gap":
        mode._remember(value, "gap", found[1], -found[2])


def _combine(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    found = [mode._recall(a) for a in args[:2]]
    gaps = [f[2] for f in found if f is not None and f[0] == "gap"]
    if not gaps:
        return
    joined = torch.minimum if "and" in name else torch.maximum
    mode._remember(value, "gap", "threshold", gaps[0] if len(gaps) == 1 else joined(*gaps))


def _pick(mode: Softened, name: str, value: Any, args: Any, kwargs: Any) -> None:
    """The positions of the largest values remember how far every value is from being picked."""
    x = args[0]
    if not _has_gradient(x) or not isinstance(value, tuple):
        return
    dim = kwargs.get("dim", args[2] if len(args) > 2 and name == "topk" else -1)
    is_largest = kwargs.get("largest", args[3] if len(args) > 3 else True)
    edge = value[0].amin(dim, keepdim=True) if is_largest else value[0].amax(dim, keepdim=True)
    mode._remember(value[1], "gap", "topk", (x - edge) if is_largest else (edge - x))


def _scatter(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> None:
    index = args[2] if len(args) > 2 else kwargs.get("index")
    found = mode._recall(index)
    if found is not None and found[2].shape == value.shape:
        mode._remember(value, "gap", "topk", found[2])


def _cast(mode: Softened, name: str, value: Any, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0]
    if not isinstance(value, Tensor) or not isinstance(x, Tensor):
        return None
    if x.is_floating_point() and not value.is_floating_point():
        if _has_gradient(x) and value.dtype is not torch.bool:
            mode._remember(value, "value", "integer cast", x)
        return None
    found = mode._recall(x)
    if found is None or not value.is_floating_point() or value is x:
        return None
    return _value_of(mode, value, found)


def _value_of(mode: Softened, value: Tensor, found: tuple[str, str, Tensor]) -> Tensor | None:
    """A mask or an integer as a number with a smooth graph."""
    kind, name, source = found
    if kind == "value":
        return _graft(value, source) if mode._takes(name) else None
    key = mode._next_switch(name)
    if not mode._takes(key):
        return None
    mask = _graft(value, _sigmoid(mode, source))
    mode._remember(mask, "mask", key, source)
    return mask


def _mix(mode: Softened, name: str, value: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Arithmetic with masks and integers that hang on the input."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if name in ("mul", "__mul__", "__rmul__", "multiply"):
        return _masked(mode, value, args)
    found = [_without_graph(mode._recall(a)) for a in args[:2]]
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
        found = mode._recall(mask)
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
    if mode.names is not None or gap.shape != x.shape or _jumps(gap, x, torch.zeros_like(x)):
        return None
    mode.met[key] -= 1
    return mask.detach() * x


def _where(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    found = mode._recall(args[0]) if len(args) == 3 else None
    if found is None or found[0] != "gap":
        return None
    a, b = (torch.as_tensor(v, device=value.device) for v in args[1:])
    return _switched(mode, value, found, a, b)


def _fill(mode: Softened, name: str, value: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    if len(args) < 3:
        return None
    found = mode._recall(args[1])
    if found is None or found[0] != "gap":
        return None
    return _switched(mode, value, found, torch.as_tensor(args[2], device=value.device), args[0])


def _switched(
    mode: Softened, value: Tensor, found: tuple[str, str, Tensor], a: Tensor, b: Tensor
) -> Tensor | None:
    """``where(gap > 0, a, b)`` with the slope of a sigmoid and gradients on both sides."""
    _, name, gap = found
    if not mode._takes_switch(name, gap, a, b):
        return None
    if mode._is_in_place:  # what the distance was computed from is overwritten
        return _graft(value, a + b)
    share = _sigmoid(mode, gap)
    return _graft(value, share * a + (1 - share) * b)


def _jumps(gap: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether the two sides differ where the switch flips."""
    difference = (a - b).detach().abs().expand(gap.shape).flatten()
    if difference.numel() == 0 or float(difference.max()) == 0:
        return False
    k = max(1, int(_NEAR * difference.numel()))
    near = gap.detach().abs().flatten().topk(k, largest=False).indices
    return float(difference[near].mean()) > _SAME_AT_SWITCH * float(difference.mean())


_WORDS = {
    "threshold": "a threshold",
    "topk": "the choice of the largest values",
    "bridge": "a part without gradients in front of the first layer",
    "integer cast": "a cast to integers",
    "detach": "a part that was cut off from gradients (detach)",
}
_PLAIN = {"__add__": "add", "__radd__": "add", "__sub__": "sub", "__rsub__": "sub"}
_PLAIN |= {"rsub": "sub", "__truediv__": "div", "true_divide": "div"}
_REVERSED = ("__rsub__", "rsub")
_Rule = Callable[[Softened, str, Any, Any, Any], Tensor | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(FLAT, _flat),
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
