"""Augmentations against loops over single images."""

from __future__ import annotations

import pytest
import torch

from nnicompress.data.augmentation import random_flip, random_shift, shift
from nnicompress.data.roles import MAX_DRAW


def shifted_by_hand(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def draws(count: int) -> torch.Tensor:
    return torch.randint(MAX_DRAW, (count,))


def test_shift_is_the_loop():
    images = torch.randint(1, 255, (9, 2, 5, 6), dtype=torch.uint8)
    rows, columns = torch.tensor([0, 0, 1, -1, 2, -2, 1, -1, 2]), torch.tensor([0, 1, 0, -1, 2, 1, -2, 2, -1])
    moved = shift(images, rows, columns)
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    for image, row, column, got in zip(images, rows.tolist(), columns.tolist(), moved, strict=True):
        assert torch.equal(got, shifted_by_hand(image, row, column))


def test_random_shift_reaches_every_offset_equally_often():
    images = torch.zeros(9000, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 1
    moved, _ = random_shift(images, draws(9000), 1)
    where = moved.sum(0)[0]
    assert where.sum() == 9000 and (where[1:4, 1:4] > 850).all() and (where[1:4, 1:4] < 1150).all()


def test_random_flip_mirrors_half():
    images = torch.arange(3.0).repeat(4000, 1, 1, 1)
    flipped, _ = random_flip(images, draws(4000))
    mirrored = (flipped[:, 0, 0, 0] == 2).sum().item()
    assert 1850 < mirrored < 2150
    assert ((flipped == images).flatten(1).all(1) | (flipped == images.flip(3)).flatten(1).all(1)).all()


def test_the_same_draw_does_the_same_alone_and_in_a_batch():
    images, throws = torch.randint(255, (20, 3, 8, 8), dtype=torch.uint8), draws(20)
    together, _ = random_shift(images, throws, 2)
    for index in range(20):
        alone, _ = random_shift(images[index : index + 1], throws[index : index + 1], 2)
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("pixels", [1, 4])
def test_one_draw_serves_shift_and_flip_independently(pixels):
    images = torch.zeros(8000, 1, 11, 11)
    images[:, 0, 5, 4] = 1.0
    moved, left = random_shift(images, draws(8000), pixels)
    down = moved.sum((1, 3)).argmax(1) > 5
    flips = random_flip(images, left)[0][:, 0, 5, 6] == 1
    together = (down & flips).float().mean()
    assert abs(together - down.float().mean() * flips.float().mean()) < 0.02
