"""Augmentation as pure functions of a batch of images and one draw (a random integer) an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spend(draws: Tensor, sides: int) -> tuple[Tensor, Tensor]:
    """Throw a die: values in `range(sides)` and what is left of the draws for the next throw."""
    return draws % sides, draws // sides


def shift(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Move image n of `[N, C, H, W]` down by `rows[n]` and right by `columns[n]` pixels; zeros come in."""
    count, channels, height, width = images.shape
    margin = int(max(rows.abs().max(), columns.abs().max())) if count else 0
    padded = F.pad(images, (margin, margin, margin, margin))
    from_rows = torch.arange(height) + margin - rows[:, None]
    from_columns = torch.arange(width) + margin - columns[:, None]
    return padded[
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        from_rows[:, None, :, None],
        from_columns[:, None, None, :],
    ]


def random_shift(images: Tensor, draws: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Move each image by up to `pixels` both ways (the pad-and-crop of He et al. 2016); images and spent draws."""
    rows, draws = spend(draws, 2 * pixels + 1)
    columns, draws = spend(draws, 2 * pixels + 1)
    return shift(images, rows - pixels, columns - pixels), draws


def random_flip(images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the images left to right; images and spent draws."""
    mirrored, draws = spend(draws, 2)
    return torch.where(mirrored.bool()[:, None, None, None], images.flip(3), images), draws
