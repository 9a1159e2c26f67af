"""Seeds, threads and switches: applied within a run, given back after it."""

import random

import numpy as np
import pytest
import torch

from nnicompress.errors import ConfigError
from nnicompress.pipeline.seeding import controlled, resolve_device
from nnicompress.pipeline.settings import RuntimeSettings

CPU = RuntimeSettings(device="cpu", threads=1)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_equal_seeds_draw_equal_numbers() -> None:
    drawn = []
    for seed in (3, 3, 4):
        with controlled(seed, CPU):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_the_process_is_given_back_as_it_was() -> None:
    with controlled(0, CPU):
        pass
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    threads = torch.get_num_threads()
    with controlled(5, RuntimeSettings(device="cpu", threads=threads + 1)):
        draw()
        assert torch.get_num_threads() == threads + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert draw() == expected
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_device_that_is_not_there_is_the_users_error() -> None:
    assert resolve_device(RuntimeSettings(device="cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"runtime\.device: device 'cuda:63' is not available"):
        resolve_device(RuntimeSettings(device="cuda:63"))
