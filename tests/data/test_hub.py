"""Data sets of `datasets`, saved and read on this machine alone."""

from __future__ import annotations

import io
import json
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from nnicompress.data.classification import SequenceClassification
from nnicompress.data.hub import HubDataset
from nnicompress.data.image_table import ImageTable
from nnicompress.data.token_classification import TokenClassification
from nnicompress.errors import ConfigError, UserError


@pytest.fixture(autouse=True)
def _quiet_and_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path):
    """30 rows with the classes z and y, in this order; every third row is y."""
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["z", "y"]),
        words=datasets.List(datasets.Value("string")),
        tags=datasets.List(datasets.ClassLabel(names=["O", "B", "A"])),
    )
    rows = [{"text": f"text {n}", "label": int(n % 3 == 0), "words": ["a", "b"], "tags": [0, n % 3]} for n in range(30)]
    whole = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(train=whole, dev=whole.select(range(4))).save_to_disk(tmp_path / "splits")
    whole.save_to_disk(tmp_path / "one")
    return tmp_path


def test_splits_become_roles_and_classes_names(saved):
    roles = HubDataset(str(saved / "splits"), validation="dev").roles("label")
    assert {role: len(table) for role, table in roles.items()} == {"train": 27, "validation": 4, "test": 3}
    assert [row["label"] for row in roles["validation"].rows] == ["y", "z", "z", "y"]
    assert [row["label"] for row in roles["test"].rows].count("y") == 1  # stratified
    assert roles["validation"].places[3] == "dev: row 3"
    assert roles["train"].categories == {"label": ["z", "y"], "tags": ["O", "B", "A"]}


def test_a_folder_of_one_split(saved):
    roles = HubDataset(str(saved / "one"), validation_fraction=0.3, test_fraction=0.2).roles()
    assert {role: len(table) for role, table in roles.items()} == {"train": 15, "validation": 9, "test": 6}


def test_tasks_keep_the_order_of_the_data_sets_classes(saved):
    source = HubDataset(str(saved / "splits"), validation="dev")
    text = SequenceClassification(source, "bytes", 2, max_length=16)
    assert text.class_names == ("z", "y")
    assert next(iter(text.validation_loader()))[1].tolist() == [1, 0, 0, 1]
    words = TokenClassification(source, "bytes", 3, tokens="words", max_length=8)
    assert words.class_names == ("O", "B", "A")
    assert next(iter(words.validation_loader()))[1][:, 3].tolist() == [0, 1, 2, 0]


def test_a_folder_of_data_files_with_slices_of_a_split(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    roles = HubDataset(str(folder), train="train[:12]", validation="train[12:16]", test="train[16:]").roles()
    assert [row for table in roles.values() for row in table.rows] == rows


def test_images_come_as_files_and_reach_the_model_as_pixels(tmp_path):
    """Grey images whose level is the class: the loader's pixels say which."""
    rows = []
    for n in range(20):
        content = io.BytesIO()
        Image.fromarray(np.full((9, 7), 250 * (n % 2), dtype=np.uint8)).save(content, "png")
        rows.append({"image": {"bytes": content.getvalue(), "path": None}, "label": n % 2})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["dark", "light"]))
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "images")
    data = ImageTable(
        HubDataset(str(tmp_path / "images"), validation_fraction=0.3, test_fraction=0.3),
        2,
        image_size=8,
        in_channels=1,
        mean=[0.0],
        std=[1.0],
    )
    for _ in range(2):  # a file that is held in memory is read again and again
        inputs, targets = next(iter(data.test_loader()))
        assert inputs.shape == (6, 1, 8, 8) and torch.allclose(inputs.mean((1, 2, 3)), targets * 250 / 255)
    assert data.class_names == ("dark", "light")
    before = data.fingerprint()
    rows[0]["image"] = rows[1]["image"]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "other")
    other = HubDataset(str(tmp_path / "other"), validation_fraction=0.3, test_fraction=0.3)
    assert ImageTable(other, 2, image_size=8).fingerprint() != before


def test_a_secret_label_is_a_missing_one(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["a", "b"]))
    rows = [{"text": "x", "label": -1 if n == 3 else n % 2} for n in range(20)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "x")
    with pytest.raises(ConfigError, match="data.label: train: row 3: no value in the column 'label'"):
        SequenceClassification(HubDataset(str(tmp_path / "x")), "bytes", 2)


def test_wrong_names(saved):
    with pytest.raises(
        ConfigError, match=r"data.source.validation: .* has no split 'deb'; did you mean 'dev'\? \(splits"
    ):
        HubDataset(str(saved / "splits"), validation="deb").roles()
    with pytest.raises(ConfigError, match=r"data.source.name: there is no folder './nowhere'"):
        HubDataset("./nowhere").roles()
    with pytest.raises(ConfigError, match=r"data.source.name: 'no-one/nothing', split 'train': "):
        HubDataset("no-one/nothing").roles()
    with pytest.raises(ConfigError, match="data.source.test_fraction: 0.0 is not between"):
        HubDataset("x", test_fraction=0.0)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what the import system reads as "not there"
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'nnicompress\[datasets\]'"):
        HubDataset("x")
