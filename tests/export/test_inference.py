"""What a data object tells about inference, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nnicompress.data.cifar10 import CIFAR10, RECORD, TEST_FILES, TRAIN_FILES
from nnicompress.data.digits import Digits
from nnicompress.data.imagefolder import ImageFolder
from nnicompress.errors import UserError
from nnicompress.export.inference import inference_facts, write_inference_files
from nnicompress.pipeline.smoke import FewBatches


class Members:
    """Data with some of the optional members."""

    num_classes, input_shape = 2, (3,)

    def __init__(self, **members: Any) -> None:
        vars(self).update(members)


class Tokenizer:
    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "tokenizer.json").write_text("{}")


def test_the_digits_tell_what_makes_their_batches(tmp_path: Path) -> None:
    data = Digits()
    write_inference_files(data, tmp_path)
    facts = json.loads((tmp_path / "preprocessing.json").read_text())
    assert (facts["data"], facts["input_shape"]) == ("Digits", [1, 8, 8])
    raw = torch.from_numpy(data.images[data.indices["test"]][:64]).float()
    first, _ = next(iter(data.test_loader()))
    by_hand = (raw / facts["divide_by"] - facts["mean"][0]) / facts["std"][0]
    torch.testing.assert_close(by_hand, first)
    assert json.loads((tmp_path / "labels.json").read_text()) == [str(n) for n in range(10)]
    assert not (tmp_path / "tokenizer").exists()


def test_cifar_tells_its_labels_and_scaling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in TRAIN_FILES + TEST_FILES:
        records = rng.integers(0, 256, (20, RECORD), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        records.tofile(tmp_path / name)
    data = CIFAR10(str(tmp_path), batch_size=20)
    facts, labels, _ = inference_facts(data)
    assert labels is not None and (labels[0], labels[3], labels[9]) == ("airplane", "cat", "truck")
    raw = torch.from_numpy(np.fromfile(tmp_path / "test_batch.bin", dtype=np.uint8).reshape(-1, RECORD)[:, 1:].copy())
    pixels = raw.reshape(-1, 3, 32, 32).float() / facts["divide_by"]
    mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((pixels - mean) / std, next(iter(data.test_loader()))[0])


def test_an_image_folder_tells_its_classes_resize_and_crop(tmp_path: Path) -> None:
    for role in ("train", "validation", "test"):
        for name in ("cat", "dog"):
            (tmp_path / role / name).mkdir(parents=True)
            Image.new("RGB", (12, 10), (200, 100, 50)).save(tmp_path / role / name / "a.png")
    data = ImageFolder(str(tmp_path), num_classes=2, image_size=7, batch_size=2)
    facts, labels, _ = inference_facts(data)
    assert labels == ["cat", "dog"]
    assert (facts["resize"]["short_side"], facts["crop"]) == (8, {"centre": 7})
    one = next(iter(data.test_loader()))[0][0, :, 0, 0]
    by_hand = (np.array([200, 100, 50]) / 255 - facts["mean"]) / facts["std"]
    np.testing.assert_allclose(one.numpy(), by_hand, rtol=1e-5)


def test_data_that_tell_nothing_leave_the_shape_alone(tmp_path: Path) -> None:
    write_inference_files(Members(), tmp_path)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["preprocessing.json"]
    assert json.loads((tmp_path / "preprocessing.json").read_text()) == {"data": "Members", "input_shape": [3]}


def test_a_tokenizer_is_saved(tmp_path: Path) -> None:
    write_inference_files(Members(tokenizer=Tokenizer(), class_names=("no", "yes")), tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "tokenizer/tokenizer.json").is_file()
    assert json.loads((tmp_path / "labels.json").read_text()) == ["no", "yes"]


def test_a_smoke_run_tells_the_same() -> None:
    facts, labels, _ = inference_facts(FewBatches(Digits()))
    assert labels == [str(n) for n in range(10)] and facts["mean"] == [0.3]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"preprocessing": [1]}, "Members.preprocessing is a list; it must be a mapping of plain values"),
        ({"preprocessing": {"mean": torch.ones(3)}}, "can't be written as JSON: .*; give plain values"),
        ({"class_names": "ab"}, "Members.class_names is a str; it must be a list of texts"),
        ({"class_names": [0, 1]}, "Members.class_names is a list; it must be a list of texts"),
        ({"class_names": ["a", "b", "c"]}, "Members.class_names has 3 names, and num_classes is 2"),
        ({"tokenizer": 3}, r"Members.tokenizer is an int; it must have save_pretrained\(folder\)"),
    ],
)
def test_wrong_members_are_named(members: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inference_facts(Members(**members))  # type: ignore[arg-type]
