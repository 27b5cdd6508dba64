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

from holdfast.trust._stand_ins import RULES, jumps

_LAYERS = ("conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul", "addmm", "mm")
WIDTH = 0.25  # of the sigmoid, in mean distances to the switch
_WORDS = {
    "threshold": "a threshold",
    "topk": "the choice of the largest values",
    "bridge": "a part without gradients in front of the first layer",
    "integer cast": "a cast to integers",
    "detach": "a part that was cut off from gradients (detach)",
}


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
        width: Of the sigmoids that stand for steps, in mean distances to the step; one for all rows
            of the input, or each row's own ``(n,)``.

    Attributes:
        met: Replacements that occurred, with the number of times.
        n_calls: Torch functions called.
        n_inner_gradients: Gradients that the model took itself, inside its forward pass.
    """

    def __init__(self, names: Sequence[str] | None = None, width: float | Tensor = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.names = None if names is None else frozenset(names)
        self.met: dict[str, int] = {}
        self.n_calls = 0
        self.n_inner_gradients = 0
        self._x: Tensor | None = None
        self._n_switches = 0
        self.is_in_place = False
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
        rule = RULES.get(base)
        if rule is None:
            return func(*args, **kwargs)
        if not is_in_place:
            value = func(*args, **kwargs)
            soft = rule(self, base, value, args, kwargs)
            return value if soft is None else soft
        before = args[0].clone()
        func(*args, **kwargs)
        self.is_in_place = True
        soft = rule(self, base, args[0], (before, *args[1:]), kwargs)
        self.is_in_place = False
        return args[0] if soft is None else args[0].copy_(soft)

    def takes(self, name: str) -> bool:
        """Whether this replacement is wanted; it is noted that it occurred."""
        self.met[name] = self.met.get(name, 0) + 1
        return self.names is None or name in self.names

    def takes_switch(self, name: str, gap: Tensor, a: Tensor, b: Tensor) -> bool:
        """The same for a switch between two values: the k-th one of the forward pass.

        Whether it jumps is found once, while the replacements are chosen, so that a row's gradient
        does not depend on the rows beside it.
        """
        key = self.next_switch(name)
        if self.names is None:
            return jumps(gap, a, b) and self.takes(key)
        return self.takes(key)

    def next_switch(self, name: str) -> str:
        """The key of the switch that the forward pass has come to."""
        self._n_switches += 1
        return f"{name}@{self._n_switches}"

    # ------------------------------------------------------------------ shadows

    def remember(self, value: Any, kind: str, name: str, source: Tensor) -> None:
        """That ``value``, which has no gradient, hangs on ``source``, which has one."""
        if isinstance(value, Tensor):
            key = id(value)
            reference = weakref.ref(value, lambda _: self._shadows.pop(key, None))
            self._shadows[key] = (reference, kind, name, source)

    def recall(self, value: Any) -> tuple[str, str, Tensor] | None:
        """What ``value`` hangs on: kind (``gap``, ``value`` or ``mask``), name and source."""
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
        if not self.takes("bridge"):
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
