"""What every test shares: one torch thread (tiny models are fastest so) and fixed seeds."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
