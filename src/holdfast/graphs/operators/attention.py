"""Scaled dot-product attention from matrix products and a softmax that knows its mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from holdfast.graphs.builder import Call, Ref, aten
from holdfast.graphs.operators.matmul import matmul
from holdfast.graphs.operators.scale import scale
from holdfast.graphs.operators.softmax import softmax


@aten("scaled_dot_product_attention")
def build(call: Call) -> Ref:
    """``softmax(scale q k^T + mask) v``; query, key and value depend on the input or not."""
    query, key, value = call.args[:3]
    if call.get(6, "enable_gqa", False):
        raise call.error("groups of queries (enable_gqa) are not supported")
    width = query.shape[-1]
    factor = float(call.attributes.get("scale") or 1 / math.sqrt(width))
    scores = matmul(call, scale(call, query, factor, 0.0), _swapped(call, key))
    mask = call.constant(3, "attn_mask")
    if call.get(5, "is_causal", False):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is None:
        return matmul(call, softmax(call, scores, len(scores.shape) - 1), value)
    seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    if mask.dtype != torch.bool:
        scores = scale(call, scores, 1.0, torch.where(seen, mask, 0.0))
    return matmul(call, softmax(call, scores, len(scores.shape) - 1, seen), value)


def _swapped(call: Call, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.transpose(-1, -2)
    return call.move(lambda p: p.transpose(-1, -2), value)
