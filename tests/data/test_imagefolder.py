"""Image folders, on files that the test writes with Pillow."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnicompress.data.image_files import centre_box, pillow, random_box
from nnicompress.data.imagefolder import ImageFolder
from nnicompress.errors import ConfigError, UserError

COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "emu": (0, 0, 255)}


def write(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, each a colour: 8 training, 2 validation and 3 test images of a class, in several formats."""
    for role, count in (("train", 8), ("validation", 2), ("test", 3)):
        for name, colour in COLOURS.items():
            for number in range(count):
                suffix = (".png", ".jpg", ".JPEG", ".bmp")[number % 4]
                write(tmp_path / role / name / f"{number}{suffix}", colour, (40 + number, 30))
    return tmp_path


def folder(root: Path, **arguments) -> ImageFolder:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return ImageFolder(str(root), **{"num_classes": 3, "image_size": 16, "batch_size": 4, **plain, **arguments})


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_every_image_has_the_colour_of_its_class(root):
    data = folder(root)
    assert data.classes == ["cat", "dog", "emu"] and data.input_shape == (3, 16, 16)
    for loader, count in ((data.train_loader(0), 24), (data.validation_loader(), 6), (data.test_loader(), 9)):
        inputs, targets = everything(loader)
        assert inputs.shape == (count, 3, 16, 16) and inputs.dtype == torch.float32
        assert torch.equal(inputs.mean((2, 3)).argmax(1), targets)
        assert (inputs.amax((1, 2, 3)) > 0.95).all()


def test_centre_crop_is_that_of_resize_then_crop(tmp_path):
    """A ramp from left to right: the crop's middle is the image's, its width is 7/8 of the short side."""
    ramp = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (40, 1))
    for role in ("train", "val", "test"):
        (tmp_path / role / "a").mkdir(parents=True)
        Image.fromarray(ramp).save(tmp_path / role / "a" / "x.png")
    data = ImageFolder(str(tmp_path), 1, image_size=28, in_channels=1, mean=(0.0,), std=(1.0,), batch_size=1)
    assert data.resize == 32
    inputs, _ = next(iter(data.test_loader()))
    by_hand = Image.fromarray(ramp).resize((64, 32), Image.Resampling.BILINEAR).crop((18, 2, 46, 30))
    assert torch.allclose(inputs[0, 0], torch.from_numpy(np.array(by_hand)) / 255, atol=0.02)


def test_training_images_vary_with_seed_and_epoch_and_not_with_workers(tmp_path):
    noise = np.random.RandomState(0).randint(0, 255, (30, 40, 3), dtype=np.uint8)
    for role in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / role / name).mkdir(parents=True)
            for number in range(5):
                Image.fromarray(noise).save(tmp_path / role / name / f"{number}.png")
    loader, workers = (folder(tmp_path, num_classes=2, num_workers=n).train_loader(0) for n in (0, 2))
    first, _ = everything(loader)
    second, _ = everything(loader)
    assert len({image.numpy().tobytes() for image in [*first, *second]}) == 20
    for epoch in (first, second):
        assert torch.equal(everything(workers)[0], epoch)
    assert not torch.equal(everything(folder(tmp_path, num_classes=2).train_loader(1))[0], first)
    plain, _ = everything(folder(tmp_path, num_classes=2, augment=False).train_loader(0))
    assert len({image.numpy().tobytes() for image in plain}) == 1


def test_random_boxes_stay_inside_with_the_asked_areas():
    chance = random.Random(0)
    shares = []
    for _ in range(2000):
        left, top, right, bottom = random_box(60, 40, chance)
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        shares.append((right - left) * (bottom - top) / 2400)
    assert 0.07 < min(shares) < 0.1 and 0.85 < max(shares) <= 0.9  # 54 x 40 of 60 x 40: an aspect of 4/3
    assert random_box(400, 1, chance) == pytest.approx((199 + 1 / 3, 0, 200 + 2 / 3, 1))
    assert centre_box(40, 30, 0.5) == (12.5, 7.5, 27.5, 22.5)


def test_grey(root):
    data = folder(root, in_channels=1, mean=(0.0,), std=(1.0,))
    inputs, targets = everything(data.test_loader())
    assert inputs.shape == (9, 1, 16, 16)
    # ITU-R 601: grey is 0.299 red, 0.587 green, 0.114 blue.
    grey = torch.tensor([0.299, 0.587, 0.114])[targets]
    assert torch.allclose(inputs.mean((1, 2, 3)), grey, atol=0.01)


def test_default_normalisation_is_imagenets(root):
    inputs, targets = everything(ImageFolder(str(root), 3, image_size=8).test_loader())
    red = inputs[targets == 0][0, :, 4, 4]
    assert torch.allclose(red, torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]), atol=0.02)


def test_val_is_a_name_too_and_both_are_ambiguous(root):
    shutil.copytree(root / "validation", root / "val")
    with pytest.raises(ConfigError, match="validation and val both exist; choose by data.validation_folder"):
        folder(root)
    assert len(folder(root, validation_folder="val").samples["validation"]) == 6
    shutil.rmtree(root / "validation")
    assert len(folder(root).samples["validation"]) == 6


def test_validation_held_out_of_the_train_folder(root):
    shutil.rmtree(root / "validation")
    data = folder(root, validation_fraction=0.25)
    train, held = ({path for path, _ in data.samples[role]} for role in ("train", "validation"))
    assert len(train) == 18 and len(held) == 6 and not train & held
    assert sorted(label for _, label in data.samples["validation"]) == [0, 0, 1, 1, 2, 2]


def test_fingerprint_follows_names_sizes_and_dates(root):
    before = folder(root).fingerprint()
    assert folder(root, augment=False).fingerprint() == before
    file = root / "train" / "cat" / "0.png"
    os.utime(file, ns=(1, 1))
    dated = folder(root).fingerprint()
    assert dated != before
    file.rename(file.with_name("00.png"))
    assert folder(root).fingerprint() not in (before, dated)


def test_missing_root_and_missing_role(root):
    with pytest.raises(ConfigError, match="no folder .*nowhere") as caught:
        folder(root / "nowhere")
    assert caught.value.key == "data.root"
    shutil.rmtree(root / "test")
    with pytest.raises(
        ConfigError, match=r"no folder for the test images.*\(there: train, validation\).*data.test_folder"
    ):
        folder(root)
    shutil.rmtree(root / "validation")
    with pytest.raises(ConfigError, match="validation or val is not in.*or set data.validation_fraction"):
        folder(root)


def test_classes_that_differ_between_roles(root):
    (root / "validation" / "emu").rename(root / "validation" / "gnu")
    with pytest.raises(ConfigError, match="validation' lacks emu and has gnu, unknown to the train folder"):
        folder(root)


def test_an_empty_class(root):
    for file in (root / "train" / "dog").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(ConfigError, match="dog' holds no image file"):
        folder(root)


def test_a_wrong_number_of_classes(root):
    with pytest.raises(
        ConfigError, match=r"10 is given, but the number of folders in .*train' is 3; write num_classes: 3"
    ):
        folder(root, num_classes=10)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(root, workers):
    (root / "test" / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="0.png' is not an image that Pillow can read"):
        everything(folder(root, num_workers=workers).test_loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": 8}, "data.resize: 8 is smaller than image_size"),
        ({"in_channels": 2}, "data.in_channels: 2 is neither"),
        ({"mean": (0.5,)}, "data.mean: 1 numbers for 3 channels"),
        ({"validation_fraction": 1.5}, "data.validation_fraction: 1.5 is not between"),
        ({"validation_fraction": 0.2, "validation_folder": "val"}, "data.validation_folder: given together"),
        ({"batch_size": 0}, "data.batch_size: 0 is not a positive"),
    ],
)
def test_wrong_settings(root, arguments, message):
    with pytest.raises(ConfigError, match=message):
        folder(root, **arguments)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # what the import system reads as "not there"
    with pytest.raises(UserError, match=r"needs Pillow: pip install 'nnicompress\[vision\]'"):
        pillow()
