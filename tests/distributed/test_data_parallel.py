"""Two real processes beside one: the same batches, gradients, losses, masks and weights."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators.data_parallel import batch_size, part, samples
from tests.distributed import problems
from tests.distributed.conftest import Found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("case", problems.ALIKE)
def test_two_processes_end_with_the_weights_of_one(case: str, together: Found) -> None:
    torch.manual_seed(0)
    alone = problems.ALIKE[case]()
    assert_close(together[0][case]["weights"], alone["weights"])
    assert_equal(together[0][case]["weights"], together[1][case]["weights"])


@pytest.mark.parametrize("case", ["plain", "accumulated"])
def test_losses_are_those_of_the_whole_batches(case: str, together: Found) -> None:
    torch.manual_seed(0)
    alone = problems.ALIKE[case]()
    assert len(alone["losses"]) == len(together[0][case]["losses"]) > 5
    assert together[0][case]["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert together[0][case]["losses"] == together[1][case]["losses"]
    assert together[0][case]["metrics"] == together[1][case]["metrics"] != []


def test_a_plain_loop_of_global_batches_is_the_truth(together: Found) -> None:
    """Written by hand, without anything of the package."""
    model = problems.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    data = torch.utils.data.DataLoader(problems.dataset(), problems.BATCH_SIZE, shuffle=True, generator=generator)
    model.train()
    for _ in range(2):
        for batch in data:
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
    assert_close(together[0]["plain"]["weights"], problems.tensors(model))


def test_masks_are_those_of_one_process(together: Found) -> None:
    torch.manual_seed(0)
    alone = problems.pruned()
    assert sum(int((~mask).sum()) for mask in alone["masks"].values()) > 40
    for process in together:
        assert_equal(process["pruned"]["masks"], alone["masks"])
        for name, mask in alone["masks"].items():
            assert not process["pruned"]["weights"][name][~mask].any()


def test_a_parameter_of_a_compressor_is_trained_in_common(together: Found) -> None:
    torch.manual_seed(0)
    alone = problems.accumulated()["own"]
    assert abs(float(alone) - 0.5) > 0.1
    assert together[0]["accumulated"]["own"] == together[1]["accumulated"]["own"] == pytest.approx(float(alone))


def test_nothing_is_left_on_the_model(together: Found) -> None:
    for process in together:
        assert process["plain"]["attributes"] == []
        assert process["plain"]["hooks"] == 0
        assert process["plain"]["unused"]  # as in one process, a parameter that no forward uses gets no gradient


def test_each_process_draws_its_own_dropout(together: Found) -> None:
    first, second = (process["drawn"]["numbers"] for process in together)
    assert len(first) == len(second) == len(set(first)) == len(set(second))
    assert not set(first) & set(second)
    assert together[0]["drawn"]["afterwards"] == together[1]["drawn"]["afterwards"]


def test_a_training_resumed_in_two_processes_ends_with_the_same_bits(together: Found) -> None:
    for process in together:
        assert_equal(process["dropped"]["weights"], together[0]["dropped"]["expected"])


def test_buffers_are_those_of_the_main_process(together: Found) -> None:
    """By hand: two halves of each batch, the first one's statistics are kept, the gradients averaged."""
    model = problems.measuring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for inputs, targets in torch.utils.data.DataLoader(problems.dataset(), problems.BATCH_SIZE, drop_last=True):
        halves = model, copy.deepcopy(model)
        for half, part_of in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
            half.zero_grad()
            nn.functional.cross_entropy(half(inputs[part_of]), targets[part_of]).backward()
        for first, second in zip(*(half.parameters() for half in halves), strict=True):
            first.grad = (first.grad + second.grad) / 2
        optimizer.step()
    for process in together:
        assert_close(process["buffered"]["weights"], problems.tensors(model))
    assert_equal(together[0]["buffered"]["weights"], together[1]["buffered"]["weights"])


def test_batches_that_a_distributed_sampler_has_dealt_out_are_not_cut(together: Found) -> None:
    assert [process["dealt"]["sizes"] for process in together] == [[4, 4, 4, 4, 4, 1]] * 2
    assert_equal(together[0]["dealt"]["weights"], together[1]["dealt"]["weights"])


@pytest.mark.parametrize("observer", problems.OBSERVERS)
def test_ranges_of_two_processes_are_those_of_one(observer: str, together: Found) -> None:
    alone = problems.calibrated()[observer]
    assert len(alone) > 8
    assert_equal(together[0]["calibrated"][observer], together[1]["calibrated"][observer])
    for name, tensor in together[0]["calibrated"][observer].items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("method", problems.TRAINED)
def test_processes_that_train_quantized_have_the_same_ranges_and_weights(method: str, together: Found) -> None:
    one, other = (found["trained_quantized"][method] for found in together)
    assert_equal(one["ranges"], other["ranges"])
    assert_equal(one["weights"], other["weights"])
    start = problems.tensors(problems.network())
    assert not torch.equal(one["weights"]["head.weight"], start["head.weight"])


def test_a_sharded_model_is_refused(together: Found) -> None:
    for process in together:
        assert process["sharded"]["message"] == (
            "parameter '0.weight' is sharded (DTensor): compress the model before it is sharded"
        )


# ------------------------------------------------------------------------------------------------ cutting a batch


@pytest.mark.parametrize(("size", "count"), [(8, 2), (7, 3), (1, 2), (2, 4), (64, 8)])
def test_parts_cover_a_batch_without_overlap(size: int, count: int) -> None:
    parts = [part(size, number, count) for number in range(count)]
    assert [sample for one in parts for sample in one] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


Pair = namedtuple("Pair", ["inputs", "targets"])


def test_samples_are_cut_through_every_container() -> None:
    x, y = torch.arange(12).reshape(4, 3), torch.arange(4)
    cut = samples(
        {"pair": Pair(x, y), "texts": ["a", "b", "c", "d"], "scale": 2.0, "table": torch.ones(7)}, 4, range(1, 3)
    )
    assert torch.equal(cut["pair"].inputs, x[1:3]) and torch.equal(cut["pair"].targets, y[1:3])
    assert cut["texts"] == ["b", "c"] and cut["scale"] == 2.0 and len(cut["table"]) == 7


@pytest.mark.parametrize("batch", [3.0, [], {"text": ["a"]}, (torch.tensor(1.0),)])
def test_a_batch_without_samples_is_an_error(batch: Any) -> None:
    with pytest.raises(UserError, match="can't be shared out among processes.*DistributedSampler"):
        batch_size(batch)
