"""Peak memory against hand counts."""

import torch
from torch import Tensor, nn

from nnicompress.measure.memory import peak_memory


class Widening(nn.Module):
    """4 -> 100 -> 4 numbers, then 4 -> 100 again: the peak lies where two layers' values are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 100, bias=False)
        self.down = nn.Linear(100, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def test_the_peak_is_where_most_is_alive() -> None:
    batch = 16
    weights = 2 * 400
    values = batch * (4 + 100 + 4)
    assert peak_memory(Widening(), ((torch.randn(batch, 4),), {})) == 4 * (weights + values)


def test_what_is_released_does_not_add_up() -> None:
    layers = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(8)])
    x = torch.randn(50, 100)
    # Input and two neighbouring results; never all eight.
    assert peak_memory(layers, ((x,), {})) == 4 * (8 * 10_000 + 3 * 5_000)


def test_views_and_in_place_results_are_no_new_memory() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(inplace=True), nn.Flatten())
    assert peak_memory(model, ((torch.randn(2, 8),), {})) == 4 * (64 + 16 + 16)


def test_the_mode_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    assert model.training
    peak_memory(model, ((torch.randn(2, 4),), {}))
    assert model.training
