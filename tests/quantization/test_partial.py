"""Parts of a model in float, against the plans of settings that exclude them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnicompress.quantization.partial import PartialPlans
from nnicompress.quantization.placement import make_plan
from nnicompress.quantization.record import Recorded, record
from nnicompress.quantization.settings import FUNCTIONS, QuantizerSettings


class Net(nn.Module):
    """A residual convolution, and attention whose two products are calls of its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.query, self.key, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.conv(x)).flatten(2).transpose(1, 2)
        scores = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.head(scores @ x).mean(1)


LAYERS = ("stem", "conv", "query", "key", "head")


def plans(*targets: dict[str, object]) -> tuple[PartialPlans, Net, Recorded]:
    torch.manual_seed(0)
    net = Net()
    recorded = record(net, (torch.randn(2, 3, 4, 4),), {})
    return PartialPlans(net, QuantizerSettings.from_targets(targets or [{}]), recorded), net, recorded


def excluding(net: Net, recorded: Recorded, names: tuple[str, ...]) -> set[str]:
    plan = make_plan(net, QuantizerSettings.from_targets([{"exclude_op_names": names}], functions=FUNCTIONS), recorded)
    found = {*plan.activations, *(w.place for w in plan.weights), *(f"{b.module}/bias" for b in plan.biases)}
    return set(found)


def test_parts_are_layers_and_the_products_of_a_forward() -> None:
    assert plans()[0].parts == (*LAYERS, "/matmul")


@pytest.mark.parametrize("names", [(), ("conv",), ("stem", "conv"), ("query", "head"), LAYERS])
def test_a_layer_in_float_is_one_that_is_excluded(names: tuple[str, ...]) -> None:
    partial, net, recorded = plans()
    assert partial.places(names) == excluding(net, recorded, names)


def test_an_add_is_in_integers_as_long_as_a_convolution_feeds_it() -> None:
    partial, _, _ = plans()
    assert "/add_0/output_0" in partial.places(("conv",))
    calls = ("/matmul",)
    assert "/add_0/output_0" not in partial.places(("stem", "conv", "query", "key", *calls))


def test_products_in_float_leave_the_layers_around_them() -> None:
    partial, _, _ = plans()
    gone = partial.places(()) - partial.places(("/matmul",))
    # What the first product reads, and the probabilities that the second one does. The input of `head` stays.
    assert gone == {"query/output_0", "key/output_0", "/softmax_0/output_0"}


def test_all_in_float_is_nothing_and_a_target_may_run_out_of_layers() -> None:
    partial, _, _ = plans({"op_types": ["Conv2d"]}, {"op_types": ["Linear"]})
    assert partial.places(partial.parts) == frozenset()
    without = partial.places(("stem", "conv"))
    assert {place for place in without if place.endswith("/weight")} == {"query/weight", "key/weight", "head/weight"}
