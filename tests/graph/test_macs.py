"""Multiply-accumulates by hand."""

import torch
from torch import nn

from nnicompress.graph.macs import count_macs


def test_convolution_and_linear_by_their_formulas() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(),
        nn.Linear(8 * 8 * 8, 5),
    )  # fmt: skip
    macs = count_macs(model, (torch.randn(2, 3, 16, 16),))
    assert macs.by_module == {"0": 2 * 8 * 8 * 8 * 27, "2": 2 * 8 * 8 * 8 * 9, "4": 2 * 512 * 5}
    assert macs.total == sum(macs.by_module.values())


def test_the_model_is_left_in_its_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = model[1].running_mean.clone()
    count_macs(model, (torch.randn(2, 4),))
    assert model.training and torch.equal(model[1].running_mean, before)


def test_attention_counts_its_projections_and_both_matrix_products() -> None:
    tokens, width = 5, 16
    model = nn.MultiheadAttention(width, 2, batch_first=True)
    x = torch.randn(1, tokens, width)
    by_hand = 4 * tokens * width * width + 2 * tokens * tokens * width
    assert count_macs(model, (x, x, x)).total == by_hand
    fused = count_macs(nn.TransformerEncoderLayer(width, 2, 32, batch_first=True), (x,)).total
    assert fused == by_hand + 2 * tokens * width * 32
