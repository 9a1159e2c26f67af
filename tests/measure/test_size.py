"""Sizes."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from nnicompress.measure.size import bytes_of, count_parameters, count_zeros, save_weights


def test_parameters_and_zeros() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[1].zero_()
        model[0].bias.fill_(2.0)
    assert count_parameters(model) == 12 + 4 + 4 + 4
    assert count_zeros(model) == 3 + 4  # a row, and batch norm's shift, which starts at zero


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    embed, head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
    head.weight = embed.weight
    size = save_weights(nn.ModuleDict({"embed": embed, "head": head}), tmp_path / "w.safetensors")
    assert 320 < size < 640 and len(load_file(tmp_path / "w.safetensors")) == 1
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "folder/a").write_bytes(b"123")
    (tmp_path / "folder/sub/b").write_bytes(b"4567")
    assert bytes_of(tmp_path / "folder") == 7 and bytes_of(tmp_path / "w.safetensors") == size
