"""The embedded digits: the same images as scikit-learn's, folds that cover them, and a network that learns them."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nnicompress.data.digits import FILE, MEAN, STD, Digits
from nnicompress.errors import ConfigError
from nnicompress.models.resnet import resnet20
from tests.data.test_augmentation import shifted_by_hand


def test_the_file_is_scikit_learns():
    truth = load_digits()
    data = Digits()
    assert np.array_equal(data.images[:, 0], truth.images) and np.array_equal(data.labels, truth.target)
    assert FILE.stat().st_size < 50_000


@pytest.mark.parametrize("num_folds", [2, 5, 10])
def test_every_image_is_tested_once(num_folds):
    folds = [Digits(fold=fold, num_folds=num_folds) for fold in range(num_folds)]
    tested = np.concatenate([data.indices["test"] for data in folds])
    assert sorted(tested) == list(range(1797))


@pytest.mark.parametrize("fold", range(5))
def test_roles_share_no_image_and_every_class_has_its_share(fold):
    data = Digits(fold=fold)
    roles = [set(data.indices[role]) for role in ("train", "validation", "test")]
    assert set.union(*roles) == set(range(1797)) and sum(map(len, roles)) == 1797
    assert [len(role) for role in roles] == [1797 - len(roles[2]) - len(roles[1]), 179, 360 if fold < 2 else 359]
    whole = np.bincount(data.labels)
    for role, share in zip(data.indices.values(), (0.7, 0.1, 0.2), strict=True):
        assert np.abs(np.bincount(data.labels[role]) - share * whole).max() < 2


def test_no_two_roles_hold_equal_pixels():
    """The 1,797 images are all different, so sharing no index is sharing no image."""
    pixels = {hashlib.sha256(image.tobytes()).hexdigest() for image in Digits().images}
    assert len(pixels) == 1797


def test_batches():
    data = Digits(batch_size=100)
    loader = data.train_loader(seed=0)
    inputs, targets = next(iter(loader))
    assert inputs.shape == (100, *data.input_shape) and inputs.dtype == torch.float32
    assert targets.shape == (100,) and targets.dtype == torch.int64 and data.num_classes == 10
    assert len(loader) == 13 and len(loader.dataset) == 1258
    labels = torch.cat([targets for _, targets in data.test_loader()])
    assert torch.equal(labels, torch.from_numpy(data.labels[data.indices["test"]]))


def test_same_seed_same_epochs_another_seed_other_ones():
    def two_epochs(seed: int) -> torch.Tensor:
        loader = Digits().train_loader(seed)
        return torch.stack([torch.cat([inputs for inputs, _ in loader]) for _ in range(2)])

    first = two_epochs(1)
    assert torch.equal(first, two_epochs(1))
    assert not torch.equal(first, two_epochs(2)) and not torch.equal(first[0], first[1])


def test_training_images_are_shifts_of_the_originals_and_others_are_untouched():
    data = Digits(batch_size=2000)
    loader = data.train_loader(seed=0)
    order = [index for index, _ in loader.sampler]
    loader.sampler.set_epoch(0)
    inputs, _ = next(iter(loader))
    pixels = ((inputs * STD + MEAN) * 16).round().to(torch.uint8)
    originals = torch.from_numpy(data.images[data.indices["train"]])[order]
    offsets = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    seen = set()
    for image, original in zip(pixels[:100], originals[:100], strict=True):
        matches = [o for o in offsets if torch.equal(image, shifted_by_hand(original, *o))]
        assert matches
        seen.update(matches)
    assert seen == set(offsets)

    for role, loader in (("validation", data.validation_loader()), ("test", data.test_loader())):
        inputs, _ = next(iter(loader))
        restored = ((inputs * STD + MEAN) * 16).round().to(torch.uint8)
        assert np.array_equal(restored, data.images[data.indices[role]])


def test_shift_zero_leaves_training_images_alone():
    data = Digits(batch_size=2000, shift=0)
    inputs, _ = next(iter(data.train_loader(seed=0)))
    whole = torch.from_numpy(data.images[data.indices["train"]]).double().sum()
    assert torch.isclose(((inputs * STD + MEAN) * 16).double().sum(), whole, rtol=1e-5)


def test_fingerprint_follows_the_content():
    data, again = Digits(), Digits(fold=1)
    assert data.fingerprint() == again.fingerprint()
    again.images[5, 0, 2, 2] += 1
    assert data.fingerprint() != again.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        ({"fold": 5}, "data.fold", r"5 is outside 0 \.\.\. 4 \(num_folds is 5\)"),
        ({"fold": -1}, "data.fold", "-1 is outside"),
        ({"num_folds": 1}, "data.num_folds", "1 is outside"),
        ({"validation_fraction": 0.0}, "data.validation_fraction", "0.0 is outside"),
        ({"batch_size": 0}, "data.batch_size", "not a positive number"),
        ({"num_classes": 100}, "data.num_classes", "100 is given, but the digits have 10; write num_classes: 10"),
        ({"in_channels": 3}, "data.in_channels", "the digits have 1"),
        ({"image_size": 32}, "data.image_size", "the digits have 8"),
        ({"shift": 8}, "data.shift", "8 is outside"),
    ],
)
def test_wrong_settings(arguments, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Digits(**arguments)
    assert caught.value.key == key


def accuracy(model: torch.nn.Module, loader) -> float:
    model.eval()
    with torch.no_grad():
        correct = [(model(inputs).argmax(1) == targets).float() for inputs, targets in loader]
    return torch.cat(correct).mean().item()


def test_a_network_learns_from_one_epoch(record_property):
    data, model = Digits(batch_size=16), resnet20(num_classes=10, in_channels=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    started = time.process_time()
    for inputs, targets in data.train_loader(seed=0):
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    record_property("cpu_seconds_an_epoch", time.process_time() - started)
    assert accuracy(model, data.test_loader()) > 0.6


def test_feeding_an_epoch_costs_next_to_nothing():
    """0.01 CPU-seconds, measured; training on it takes 70 times that. The bound leaves room for a slow machine."""
    loader = Digits().train_loader(seed=0)
    started = time.process_time()
    assert sum(len(targets) for _, targets in loader) == 1258
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("shift", [0, 1])
def test_batches_are_dense_in_the_default_layout(shift: int) -> None:
    data = Digits(shift=shift)
    for loader in (data.train_loader(0), data.validation_loader(), data.test_loader()):
        assert {images.stride() for images, _ in loader} == {(64, 64, 8, 1)}
