"""Filling: masked elements become +0 whatever they held, every bit of the others stays, in any layout and type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nnicompress.pruning.fill import Fill

INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def keep_of(shape: tuple[int, ...], kind: str) -> Tensor:
    """A mask over `shape` that loses rows, columns, both, single elements, everything or nothing."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.ones(shape, dtype=torch.bool)
    if kind in ("rows", "both"):
        keep[::2] = False
    if kind in ("columns", "both"):
        keep[:, 1::3] = False
    if kind == "elements":
        keep = torch.rand(shape, generator=generator) > 0.5
    return keep & (kind != "everything")


def awkward(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers with NaN, both infinities and both zeros among them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    flat = values.view(-1)
    for start, special in enumerate((float("nan"), float("inf"), -float("inf"), 0.0, -0.0)):
        flat[start::7] = special
    return values


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda t: torch.stack([t, t], -1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kind", ["rows", "columns", "both", "elements", "everything", "nothing"])
def test_masked_elements_are_plus_zero_and_no_other_bit_changes(kind: str, dtype: torch.dtype, layout: str) -> None:
    keep = keep_of((8, 6, 3, 3), kind)
    tensor = LAYOUTS[layout](awkward((8, 6, 3, 3), dtype))
    before, strides = tensor.clone().view(INTEGERS[dtype]), tensor.stride()
    fill = Fill(keep)
    for _ in range(2):
        fill(tensor)
        assert torch.equal(tensor.view(INTEGERS[dtype]), torch.where(keep, before, 0))
    assert tensor.stride() == strides


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (5, 1), (1, 5), (4, 3), (3, 2, 2)])
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_any_shape(shape: tuple[int, ...], kept: float) -> None:
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < kept
    parameter = nn.Parameter(torch.full(shape, 3.0))
    with torch.no_grad():
        Fill(keep)(parameter)
    assert torch.equal(parameter.detach(), keep * 3.0)


def test_one_fill_serves_a_weight_and_a_gradient_of_other_type_and_layout() -> None:
    keep = keep_of((8, 6, 3, 3), "both")
    fill = Fill(keep)
    for dtype in (torch.float32, torch.float64):
        for layout in LAYOUTS.values():
            tensor = layout(torch.ones(8, 6, 3, 3, dtype=dtype))
            fill(tensor)
            assert torch.equal(tensor, keep.to(dtype))


def test_autograd_hears_of_it() -> None:
    """A change that the version counter missed would give wrong gradients in silence."""
    weight = nn.Parameter(torch.ones(4, 4))
    loss = (weight * weight).sum()
    with torch.no_grad():
        Fill(torch.eye(4, dtype=torch.bool))(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("tensor", [torch.ones(4, 4, dtype=torch.complex64), torch.ones(4, 4, dtype=torch.int64)])
def test_what_has_no_twin_of_integers_is_filled_all_the_same(tensor: Tensor) -> None:
    keep = keep_of((4, 4), "both")
    Fill(keep)(tensor)
    assert torch.equal(tensor, keep.to(tensor.dtype))


def test_whole_rows_and_columns_take_little_memory() -> None:
    for kind, expected in (("rows", 512), ("columns", 64 * 9), ("both", 512 * 64 * 9)):
        fill = Fill(keep_of((512, 64, 3, 3), kind))
        fill(torch.ones(512, 64, 3, 3))
        assert [pattern.numel() for pattern in fill._patterns.values()] == [expected]
