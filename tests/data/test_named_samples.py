"""Datasets whose samples are mappings: batches by hand, order by seed, errors in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnicompress.data.named_samples import NamedSamples
from nnicompress.data.roles import Data
from nnicompress.errors import ConfigError


class Squares:
    def __init__(self, size: int, first: int = 0) -> None:
        self.size, self.first = size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.first + index
        return {"number": torch.tensor([float(number), 1.0]), "square": number**2}


def make(**more: Any) -> NamedSamples:
    return NamedSamples(Squares(10), Squares(5, first=100), batch_size=4, label="square", **more)


def test_batches_are_pairs_of_named_inputs_and_labels() -> None:
    data = make()
    assert isinstance(data, Data) and data.input_shape == (2,)
    batches = list(data.validation_loader())
    assert [sorted(inputs) for inputs, _ in batches] == [["number"], ["number"]]
    assert torch.cat([labels for _, labels in batches]).tolist() == [(100 + i) ** 2 for i in range(5)]
    assert all((inputs["number"][:, 0] ** 2 == labels).all() for inputs, labels in data.train_loader(0))


def test_each_epoch_serves_every_sample_in_an_order_of_seed_and_epoch() -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = make().train_loader(seed)
        return [torch.cat([labels for _, labels in loader]).tolist() for _ in range(2)]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) == [i**2 for i in range(10)]
    assert first != second and epochs(0) == [first, second] and epochs(1) != [first, second]


def test_the_test_data_are_their_own_or_the_validation_data() -> None:
    def labels(data: NamedSamples) -> list[int]:
        return torch.cat([labels for _, labels in data.test_loader()]).tolist()

    assert labels(make()) == [(100 + i) ** 2 for i in range(5)]
    assert labels(make(test=Squares(2, first=7))) == [49, 64]


def test_the_fingerprint_changes_with_the_data() -> None:
    assert make().fingerprint() == make().fingerprint()
    assert make().fingerprint() != make(test=Squares(3)).fingerprint()
    assert make().fingerprint() != NamedSamples(Squares(10, first=1), Squares(5), label="square").fingerprint()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"label": "squares"}, "data.label: a sample has no 'squares'; did you mean 'square'?"),
        ({"train": 3}, "data.train: int is no dataset: it needs __len__ and __getitem__"),
        ({"test": iter([])}, "data.test: list_iterator is no dataset"),
        ({"batch_size": 0}, "data.batch_size: 0 is not a positive number"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(change: dict[str, Any], line: str) -> None:
    settings = {"train": Squares(10), "validation": Squares(5), "batch_size": 4, "label": "square"}
    with pytest.raises(ConfigError) as caught:
        NamedSamples(**{**settings, **change})
    assert str(caught.value).startswith(line)
