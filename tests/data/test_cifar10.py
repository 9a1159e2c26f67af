"""CIFAR-10's binary format, on files that the test writes byte by byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnicompress.data.cifar10 import CIFAR10, MEAN, STD, TEST_FILES, TRAIN_FILES
from nnicompress.errors import ConfigError


def record(number: int) -> bytes:
    """Label `number % 10`; red is `number`, green the row, blue the column."""
    red = bytes([number % 256]) * 1024
    green = bytes(row for row in range(32) for _ in range(32))
    blue = bytes(column for _ in range(32) for column in range(32))
    return bytes([number % 10]) + red + green + blue


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five training files of 20 records and a test file of 30."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for index, name in enumerate(TRAIN_FILES):
        (folder / name).write_bytes(b"".join(record(20 * index + position) for position in range(20)))
    (folder / TEST_FILES[0]).write_bytes(b"".join(record(200 + position) for position in range(30)))
    return tmp_path


def pixels(inputs: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((inputs * std + mean) * 255).round().long()


def test_planes_rows_and_labels(root):
    data = CIFAR10(str(root), batch_size=30)
    inputs, targets = next(iter(data.test_loader()))
    assert inputs.shape == (30, *data.input_shape) == (30, 3, 32, 32) and inputs.dtype == torch.float32
    assert targets.tolist() == [number % 10 for number in range(200, 230)]
    image = pixels(inputs)[7]
    assert (image[0] == 207).all()
    assert torch.equal(image[1], torch.arange(32)[:, None].expand(32, 32))
    assert torch.equal(image[2], torch.arange(32).expand(32, 32))


def test_the_folder_itself_may_be_the_root(root):
    inner = CIFAR10(str(root / "cifar-10-batches-bin"))
    assert inner.fingerprint() == CIFAR10(str(root)).fingerprint()


def test_validation_is_a_stratified_part_of_the_training_files(root):
    data = CIFAR10(str(root), batch_size=100, validation_fraction=0.2, augment=False)
    (train, train_labels), (held, held_labels) = next(iter(data.train_loader(0))), next(iter(data.validation_loader()))
    assert torch.bincount(train_labels).tolist() == [8] * 10 and torch.bincount(held_labels).tolist() == [2] * 10
    numbers = [*pixels(train)[:, 0, 0, 0].tolist(), *pixels(held)[:, 0, 0, 0].tolist()]
    assert sorted(numbers) == list(range(100))


def test_augmentation_moves_up_to_four_pixels_and_mirrors(root):
    data = CIFAR10(str(root), batch_size=90)
    inputs, targets = next(iter(data.train_loader(seed=0)))
    mirrored, rows = 0, set()
    for image, label in zip(pixels(inputs), targets, strict=True):
        inside = image[:, 8:24, 8:24]  # far enough from the border that no padding reaches it
        assert inside[0].unique().numel() == 1 and inside[0, 0, 0] % 10 == label
        down = 8 - inside[1, 0, 0].item()
        step = (inside[2, 0, 1] - inside[2, 0, 0]).item()
        assert step in (-1, 1) and -4 <= down <= 4
        assert (inside[1].diff(dim=0) == 1).all() and (inside[2].diff(dim=1) == step).all()
        mirrored += step == -1
        rows.add(down)
    assert 25 < mirrored < 65 and rows == set(range(-4, 5))
    same, _ = next(iter(CIFAR10(str(root), batch_size=90).train_loader(seed=0)))
    assert torch.equal(inputs, same)


def test_fingerprint_follows_the_content_and_not_the_date(root):
    before = CIFAR10(str(root)).fingerprint()
    file = root / "cifar-10-batches-bin" / TRAIN_FILES[2]
    os.utime(file, (1, 1))
    assert CIFAR10(str(root)).fingerprint() == before
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert CIFAR10(str(root)).fingerprint() != before


def test_a_missing_root(tmp_path):
    with pytest.raises(ConfigError, match="no folder .*cifar-10-binary.tar.gz") as caught:
        CIFAR10(str(tmp_path / "nowhere"))
    assert caught.value.key == "data.root"


def test_a_missing_file_is_named(root):
    (root / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(ConfigError, match="has no data_batch_4.bin; get the binary version"):
        CIFAR10(str(root))


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "data_batch_1"])
def test_the_python_version_is_refused(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"a pickle")
    with pytest.raises(ConfigError, match="Python version, a pickle.*get the binary version"):
        CIFAR10(str(tmp_path))


def test_a_cut_off_file(root):
    file = root / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ConfigError, match=r"test_batch.bin' has 92,185 bytes, not a multiple of 3,073"):
        CIFAR10(str(root))
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="has 0 bytes"):
        CIFAR10(str(root))


def test_a_file_of_another_format(root):
    file = root / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(bytes([73]) * 3073)
    with pytest.raises(ConfigError, match="label 73, above 9"):
        CIFAR10(str(root)).test_loader()


def test_a_number_that_the_data_contradict(root):
    with pytest.raises(ConfigError, match="100 is given, but CIFAR-10 has 10"):
        CIFAR10(str(root), num_classes=100)
