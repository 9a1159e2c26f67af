"""Quantized modules compute what torch's do while nothing is simulated, and what their quantized weights do then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.quantization.attention import attention
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.modules import SWAPS, add_transformers, channel_axis, swap, swap_back
from nnicompress.quantization.scheme import Granularity, Scheme


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(5, 4)


CASES: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (numbers(2, 4, 9),)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (numbers(2, 4, 5, 5),)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2), (numbers(2, 2, 5, 5, 5),)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (numbers(2, 4, 5),)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        (numbers(2, 4, 5, 5),),
    ),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (numbers(2, 2, 3, 3, 3),)),
    "Linear": (lambda: nn.Linear(4, 5, bias=False), (numbers(3, 4),)),
    "Embedding": (lambda: nn.Embedding(7, 4, padding_idx=0), (torch.arange(6).view(2, 3),)),
    "Conv1D": (conv1d_of_transformers, (numbers(2, 3, 4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_with_quantized_weights_it_is_the_module_with_these_weights(name: str) -> None:
    build, inputs = CASES[name]
    torch.manual_seed(1)
    module = build()
    add_transformers()
    plain, weight = type(module), module.weight
    want = module(*inputs)
    axis = channel_axis(module)
    quantizer = FakeQuantizer(Scheme("int4", symmetric=True, granularity=Granularity(axis)), weight.shape)
    assert len(quantizer.scale) == want.shape[1 if "Conv" in name and name != "Conv1D" else -1] or (
        name in ("Embedding", "ConvTranspose2d")  # a row of the table; the channels of one group
    )
    quantizer.set_parameters(torch.full_like(quantizer.scale, 0.05), quantizer.zero_point)
    swap(module, name)["weight"] = quantizer
    assert type(module) is SWAPS[plain] and module.weight is weight
    assert torch.equal(module(*inputs), want)
    quantizer.simulating = True
    found = module(*inputs)
    swap_back(module)
    assert type(module) is plain and list(module._modules) == []
    with torch.no_grad():
        weight.copy_(quantizer(weight))
    assert torch.equal(found, module(*inputs)) and not torch.equal(found, want)


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
    "added": {"attn_mask": numbers(5, 5)},
    "one a head": {"attn_mask": numbers(3 * 2, 5, 5)},
    "padding": {"key_padding_mask": torch.arange(5) >= torch.tensor([[3], [5], [4]])},
    "both": {
        "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1),
        "key_padding_mask": torch.arange(5) >= torch.tensor([[3], [5], [4]]),
    },
    "weights of each head": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_multihead_attention_spelled_out(mask: str, batch_first: bool) -> None:
    torch.manual_seed(2)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=batch_first)
    query, memory = numbers(3, 5, 8), 2 * numbers(3, 5, 8)
    if not batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    want, want_weights = module(query, memory, memory, **MASKS[mask])
    swap(module, "attention")
    found, weights = module(query, memory, memory, **MASKS[mask])
    swap_back(module)
    torch.testing.assert_close(found, want)
    assert (weights is None) == (want_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, want_weights)


def test_multihead_attention_without_a_batch() -> None:
    torch.manual_seed(2)
    module = nn.MultiheadAttention(8, 2)
    x = numbers(5, 8)
    want, want_weights = module(x, x, x)
    swap(module, "attention")
    found, weights = module(x, x, x)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(weights, want_weights)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"is_causal": True},
        {"attn_mask": torch.ones(4, 4, dtype=torch.bool).tril()},
        {"attn_mask": numbers(4, 4)},
        {"scale": 0.3},
        {"enable_gqa": True},
    ],
)
def test_attention_in_parts_is_torchs(more: dict[str, Any]) -> None:
    query, key, value = numbers(2, 4, 4, 8), 2 * numbers(2, 4, 4, 8), 3 * numbers(2, 4, 4, 8)
    if more.get("enable_gqa"):
        key, value = key[:, :2], value[:, :2]
    want = nn.functional.scaled_dot_product_attention(query, key, value, **more)
    torch.testing.assert_close(attention(query, key, value, probabilities=lambda x: x, **more), want)


def test_a_subclass_is_not_swapped() -> None:
    class Own(nn.Linear):
        pass

    module = Own(2, 2)
    swap(module, "own")
    assert type(module) is Own
