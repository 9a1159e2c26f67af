"""A compact model on disk and back."""

import json
from pathlib import Path

import pytest
import torch

from nnicompress.errors import JobError, UserError
from nnicompress.shrink.description import load, save
from nnicompress.shrink.surgery import shrink
from tests.shrink.removals import masked_copy, remove_share, zoo_case
from tests.zoo import ZOO


@pytest.mark.parametrize("name", sorted(ZOO))
def test_round_trip_gives_equal_outputs_and_attributes(name: str, tmp_path: Path) -> None:
    model, groups, batches = zoo_case(name)
    removal = remove_share(groups, 0.5)
    compact = shrink(masked_copy(model, groups, removal), groups, removal).eval()
    save(compact, ZOO[name]()[0], {"zoo": name}, batches[0], tmp_path)
    loaded = load(tmp_path, lambda recipe: ZOO[recipe["zoo"]]()[0])
    for args, kwargs in batches:
        expected, actual = compact(*args, **kwargs), loaded(*args, **kwargs)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in compact.parameters()]
    for left, right in zip(compact.modules(), loaded.modules(), strict=True):
        assert left.extra_repr() == right.extra_repr()


def test_ties_and_frozen_parameters_come_back(tmp_path: Path) -> None:
    model, groups, batches = zoo_case("tied_weights")
    compact = shrink(model, groups, remove_share(groups, 0.5))
    compact.up.bias.requires_grad_(False)
    save(compact, ZOO["tied_weights"]()[0], {}, batches[0], tmp_path)
    loaded = load(tmp_path, lambda recipe: ZOO["tied_weights"]()[0])
    assert loaded.head.weight is loaded.embedding.weight
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["up.bias"]


def test_an_attribute_that_the_forward_uses_is_stored(tmp_path: Path) -> None:
    model, groups, batches = zoo_case("coincidence")
    compact = shrink(model, groups, remove_share(groups, 0.5))
    save(compact, ZOO["coincidence"]()[0], {}, batches[0], tmp_path)
    assert ["", "hidden", 4] in json.loads((tmp_path / "description.json").read_text())["attributes"]


def test_weights_changed_on_disk_are_noticed(tmp_path: Path) -> None:
    model, groups, batches = zoo_case("vgg")
    compact = shrink(model, groups, remove_share(groups, 0.5))
    save(compact, ZOO["vgg"]()[0], {}, batches[0], tmp_path)
    with torch.no_grad():
        compact.features[0].weight.mul_(2)
    other = tmp_path / "other"
    save(compact, ZOO["vgg"]()[0], {}, batches[0], other)
    (other / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(JobError, match="does not give the stored output"):
        load(tmp_path, lambda recipe: ZOO["vgg"]()[0])


def test_a_folder_without_a_model_and_another_architecture_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model: description.json is missing"):
        load(tmp_path, lambda recipe: ZOO["vgg"]()[0])
    model, groups, batches = zoo_case("vgg")
    save(model, model, {}, batches[0], tmp_path)
    with pytest.raises(JobError, match="MLP as built has other tensors than the stored ones"):
        load(tmp_path, lambda recipe: ZOO["multilayer_perceptron"]()[0])
