"""Multi-head attention that keeps the batch axis in front while a module is exported.

Torch's own puts the steps first, in which samples can no longer be told from heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.graphs.errors import GraphError


@contextmanager
def batch_first() -> Iterator[None]:
    """Modules of :class:`torch.nn.MultiheadAttention` run as :func:`attend` inside."""
    before, is_fast = nn.MultiheadAttention.forward, torch.backends.mha.get_fastpath_enabled()
    nn.MultiheadAttention.forward = attend  # type: ignore[assignment, method-assign]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = before  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(is_fast)


def attend(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What :meth:`torch.nn.MultiheadAttention.forward` computes in evaluation mode.

    Raises:
        GraphError: Options that no bounds exist for.
    """
    options = {
        "batch_first=False": not self.batch_first,
        "key_padding_mask": key_padding_mask is not None,
        "add_bias_kv": self.bias_k is not None,
        "add_zero_attn": self.add_zero_attn,
        "a mask for every sample": attn_mask is not None and attn_mask.dim() > 2,
    }
    refused = [name for name, is_used in options.items() if is_used]
    if refused:
        raise GraphError(f"MultiheadAttention with {', '.join(refused)} is not supported")
    q, k, v = (_heads(self, i, z) for i, z in enumerate((query, key, value)))
    mask = None
    if attn_mask is not None:  # True shuts out here, and lets in there
        mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask
    out = F.scaled_dot_product_attention(q, k, v, mask)
    out = self.out_proj(out.transpose(1, 2).flatten(2))
    return out, (None if not need_weights else out.new_zeros(()))


def _heads(self: nn.MultiheadAttention, i: int, z: Tensor) -> Tensor:
    """Queries, keys or values of every head, ``(n, heads, length, width)``."""
    width = self.embed_dim
    if self.in_proj_weight is not None:
        weight = self.in_proj_weight[i * width : (i + 1) * width]
    else:
        weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[i]
    bias = self.in_proj_bias
    bias = None if bias is None else bias[i * width : (i + 1) * width]
    return F.linear(z, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
