"""Loaders and the seeded sampler: order and augmentation depend on seed and epoch alone."""

from __future__ import annotations

import pytest
import torch

from nnicompress.data.cifar10 import CIFAR10
from nnicompress.data.digits import Digits
from nnicompress.data.imagefolder import ImageFolder
from nnicompress.data.memory import ImagesInMemory
from nnicompress.data.roles import Data, SeededSampler, make_loader
from nnicompress.errors import ConfigError


def dataset(size: int = 50, augmentation=None) -> ImagesInMemory:
    images = torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(size, 1, 2, 2)
    return ImagesInMemory(images, torch.arange(size), scale=1.0, mean=(0.0,), std=(1.0,), augmentation=augmentation)


def add_draw(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    return images + (draws % 200)[:, None, None, None].to(torch.uint8)


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_sampler_is_a_fresh_permutation_each_epoch():
    sampler = SeededSampler(100, seed=3)
    first, second = list(sampler), list(sampler)
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(100))
    assert first != second and len({draw for _, draw in first}) == 100
    assert list(SeededSampler(100, seed=3)) == first
    assert list(SeededSampler(100, seed=4)) != first


def test_set_epoch_goes_anywhere():
    sampler = SeededSampler(20, seed=0)
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1] and list(sampler) == epochs[2]


def test_an_abandoned_epoch_changes_no_later_one():
    whole, broken = (make_loader(dataset(augmentation=add_draw), 8, seed=1) for _ in range(2))
    everything(whole)
    next(iter(broken))
    for got, expected in zip(everything(broken), everything(whole), strict=True):
        assert torch.equal(got, expected)


def test_workers_change_nothing():
    alone = make_loader(dataset(augmentation=add_draw), 8, seed=1)
    shared = make_loader(dataset(augmentation=add_draw), 8, seed=1, num_workers=2)
    for _ in range(2):
        for got, expected in zip(everything(shared), everything(alone), strict=True):
            assert torch.equal(got, expected)


def test_global_random_state_is_left_alone():
    for seed in (None, 1):
        state = torch.get_rng_state()
        everything(make_loader(dataset(augmentation=add_draw if seed else None), 8, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_the_order_is_that_of_the_data():
    inputs, targets = everything(make_loader(dataset(), 8))
    assert targets.tolist() == list(range(50))
    assert torch.equal(inputs[:, 0, 0, 0], torch.arange(50.0))


def test_batches_and_the_last_one():
    assert [len(targets) for _, targets in make_loader(dataset(), 16, seed=0)] == [16, 16, 16, 2]
    loader = make_loader(dataset(), 16, seed=0, drop_last=True)
    assert len(loader) == 3 and loader.batch_size == 16
    assert [len(targets) for _, targets in loader] == [16, 16, 16]
    with pytest.raises(ConfigError, match="64 is more than the 50 training images"):
        make_loader(dataset(), 64, seed=0, drop_last=True)


def test_normalisation_and_a_single_image():
    images = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8)
    data = ImagesInMemory(images, torch.arange(4), scale=255.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = (images[2].permute(1, 2, 0).double() / 255 - mean) / std
    image, label = data[2]
    assert image.dtype == torch.float32 and label == 2
    torch.testing.assert_close(image, expected.permute(2, 0, 1).float(), rtol=1e-5, atol=1e-6)


def test_a_foreign_sampler_draws_from_the_global_generator():
    """A distributed sampler gives bare indices: augmentation goes on, and follows torch's seed."""
    data = dataset(augmentation=add_draw)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(data.__getitems__([0] * 20)[0])
    assert torch.equal(*runs) and len(runs[0].unique()) > 5


@pytest.mark.parametrize("cls", [Digits, CIFAR10, ImageFolder])
def test_every_data_class_has_the_members_of_the_contract(cls):
    for member in ("train_loader", "validation_loader", "test_loader", "fingerprint"):
        assert callable(getattr(cls, member))
    assert isinstance(Digits(), Data)


def test_an_engine_that_counts_from_zero_is_led_past_the_epochs_before() -> None:
    sampler, engine = SeededSampler(9, seed=3), SeededSampler(9, seed=3)
    epochs = [list(sampler) for _ in range(4)]
    engine.first_epoch = 2
    for epoch in (0, 1):
        engine.set_epoch(epoch)
        assert list(engine) == epochs[2 + epoch]
