"""Attention in parts, so that its probabilities can be quantized between its two matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    probabilities: Callable[[Tensor], Tensor],
) -> Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` computes, with `probabilities` quantized.

    Shapes are [..., heads, length, width].
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    found = probabilities(softmax_scores(query * factor, key, attn_mask))
    return (torch.dropout(found, dropout_p, True) if dropout_p > 0 else found) @ value


def softmax_scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The probabilities [..., queries, keys] of scaled queries; a row in which every key is masked is zero."""
    scores = query @ key.transpose(-2, -1)
    if mask is None:
        return scores.softmax(dim=-1)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # torch's own kernels give zeros there, and a softmax of nothing but -inf would be NaN.
    empty = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(dim=-1).masked_fill(empty, 0.0)
