"""Images named by a table, against Pillow and image folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nnicompress.data.image_files import ImageFiles
from nnicompress.data.image_table import EncodedImage, ImageTable
from nnicompress.data.imagefolder import ImageFolder
from nnicompress.data.roles import Data
from nnicompress.data.sources import Files
from nnicompress.errors import ConfigError, UserError

COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "emu": (0, 0, 255)}
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


@pytest.fixture
def path(tmp_path):
    """Three classes of ten images, each class a colour, each image of its own brightness and size."""
    (tmp_path / "images").mkdir()
    lines = ["image,label"]
    for name, colour in COLOURS.items():
        for number in range(10):
            file = tmp_path / "images" / f"{name}{number}.png"
            Image.new("RGB", (30 + number, 20), tuple(max(value - number, 0) for value in colour)).save(file)
            lines.append(f"images/{file.name},{name}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def data(path, **settings) -> ImageTable:
    source = Files(str(path), validation_fraction=0.2, test_fraction=0.3)
    return ImageTable(source, **{"num_classes": 3, "image_size": 16, "batch_size": 4, **PLAIN, **settings})


def everything(loader):
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_every_image_has_the_colour_of_its_class(path):
    table = data(path)
    assert isinstance(table, Data) and table.class_names == ("cat", "dog", "emu") and table.input_shape == (3, 16, 16)
    for loader, count in ((table.train_loader(0), 15), (table.validation_loader(), 6), (table.test_loader(), 9)):
        inputs, targets = everything(loader)
        assert inputs.shape == (count, 3, 16, 16)
        assert torch.equal(inputs.mean((2, 3)).argmax(1), targets)
        assert targets.bincount().tolist() == [count // 3] * 3


def test_a_table_of_a_folder_is_the_folder(tmp_path):
    """Cropping, normalising and augmenting are those of ImageFolder, image by image."""
    rows = []
    for role in ("train", "val", "test"):
        for number, name in enumerate(COLOURS):
            (tmp_path / role / name).mkdir(parents=True)
            file = tmp_path / role / name / "0.png"
            noise = np.random.RandomState(number).randint(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(file)
            rows.append({"image": str(file), "label": name})
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows[6:])))
    source = Files(*[str(tmp_path / "x.jsonl")] * 3)
    table, folder = ImageTable(source, 3, image_size=12), ImageFolder(str(tmp_path), 3, image_size=12)
    assert table.preprocessing == folder.preprocessing
    for got, expected in (
        (table.test_loader(), folder.test_loader()),
        (table.train_loader(1), folder.train_loader(1)),
    ):
        (images, labels), (same, equal) = everything(got), everything(expected)
        assert torch.equal(images, same) and torch.equal(labels, equal)


def test_training_varies_with_seed_and_epoch_and_not_with_workers(path):
    alone, shared = (data(path, num_workers=workers).train_loader(0) for workers in (0, 2))
    epochs = [everything(alone) for _ in range(2)]
    for inputs, targets in epochs:
        other, same = everything(shared)
        assert torch.equal(inputs, other) and torch.equal(targets, same)
    assert not torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(everything(data(path).train_loader(1))[1], epochs[0][1])


def test_paths_below_another_root(path, tmp_path):
    (tmp_path / "tables").mkdir()
    moved = path.rename(tmp_path / "tables" / "table.csv")
    with pytest.raises(ConfigError, match=r"data.image: table.csv:\d+: there is no file .*; see data.root"):
        data(moved)
    assert len(data(moved, root=str(tmp_path)).samples["train"]) == 15


def test_the_fingerprint_follows_images_and_labels(path, tmp_path):
    before = data(path).fingerprint()
    assert data(path, augment=False).fingerprint() == before
    Image.new("RGB", (50, 50)).save(tmp_path / "images" / "cat0.png")
    changed = data(path).fingerprint()
    assert changed != before
    path.write_text(path.read_text().replace("cat0.png,cat", "cat0.png,dog"))
    assert data(path).fingerprint() not in (before, changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "images"}, "data.image: there is no column 'images'; did you mean 'image'"),
        ({"label": "class"}, r"data.label: there is no column 'class' \(columns: image, label\)"),
        ({"num_classes": 2}, r"2 is given, but the number of labels in the training data \(cat, dog, emu\) is 3"),
        ({"class_names": ["cat", "dog", "eme"]}, "the label 'emu' is none of the classes .*; did you mean 'eme'"),
        ({"root": "/no/where"}, "data.root: no folder '/no/where'"),
        ({"image_size": 0}, "data.image_size: 0 is not a positive number"),
        ({"resize": 8}, "data.resize: 8 is smaller than image_size"),
        ({"in_channels": 2}, "data.in_channels: 2 is neither"),
        ({"mean": [0.5]}, "data.mean: 1 numbers for 3 channels"),
        ({"std": [1.0, 0.0, 1.0]}, r"data.std: \[1.0, 0.0, 1.0\] are not all positive"),
        ({"num_workers": -1}, "data.num_workers: -1 is negative"),
        ({"batch_size": 0}, "data.batch_size: 0 is not a positive"),
    ],
)
def test_wrong_settings(path, settings, message):
    with pytest.raises(ConfigError, match=message):
        data(path, **settings)


def test_something_that_is_no_path(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"image": 3, "label": 0}]))
    with pytest.raises(ConfigError, match="data.image: x.json: row 1: int where the path of an image is needed"):
        ImageTable(Files(*[str(tmp_path / "x.json")] * 3), 1)


def test_a_broken_image_in_memory_is_named_by_its_row(tmp_path):
    image = EncodedImage(b"not an image", "train: row 7")
    dataset = ImageFiles([(image, 0)], input_shape=(3, 8, 8), resize=8, mean=[0.0], std=[1.0], augment=False)
    with pytest.raises(UserError, match="train: row 7' is not an image that Pillow can read"):
        dataset[0]
