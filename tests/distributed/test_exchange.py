"""What two real processes have after each exchange, and that one process exchanges nothing."""

from __future__ import annotations

import pytest
import torch

from nnicompress import distributed, exchange
from tests.distributed.conftest import Found


def test_gradients_are_averaged_and_absent_ones_count_as_zero(together: Found) -> None:
    for process in together:
        first, alone, absent, strided = process["exchanges"]["gradients"]
        assert torch.equal(first, torch.full((2, 2), 0.5))
        assert torch.equal(alone, torch.full((2, 2), 3.0))
        assert absent is None
        assert torch.equal(strided, torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


def test_all_follow_the_main_process_whatever_the_type(together: Found) -> None:
    for process in together:
        whole, flag, strided = process["exchanges"]["followed"]
        assert whole.tolist() == [0, 7] and flag.item() is True
        assert torch.equal(strided, torch.zeros(2, 3))


def test_a_mean_leaves_what_it_is_made_of(together: Found) -> None:
    assert [process["exchanges"]["mean"].item() for process in together] == [0.5, 0.5]
    assert [process["exchanges"]["value"].item() for process in together] == [0.0, 1.0]


def test_numbers_are_averaged_over_the_processes_that_have_them(together: Found) -> None:
    assert [process["exchanges"]["means"] for process in together] == [{"both": 2.5}, {"both": 2.5, "second": 7.0}]


def test_the_main_process_alone_does_the_work(together: Found) -> None:
    assert [process["exchanges"]["from_main"] for process in together] == [{"rank": 0}] * 2
    assert [process["exchanges"]["who"] for process in together] == [(0, 2, True), (1, 2, False)]


def test_processes_may_meet_again(together: Found) -> None:
    assert [process["again"] for process in together] == [{"rank": 0, "size": 2}] * 2


def test_tensors_that_differ_are_named_in_every_process(together: Found) -> None:
    for process in together:
        assert process["exchanges"]["equal"] == "nothing was refused"
        assert process["exchanges"]["different"] == "the masks of b differ between process 0 and process 1: do it"


def test_one_process_is_alone_and_exchanges_nothing() -> None:
    value, gradient = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    parameter.grad = gradient
    exchange.average_gradients([parameter])
    exchange.follow_main([value])
    exchange.check_equal("the masks", {"a": value}, "do it")
    assert exchange.mean(value) is value and parameter.grad is gradient
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.from_main(lambda: 7) == 7
    with distributed.joined(), distributed.blaming(print):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("size", "buckets"), [(16, [[0, 1, 2]]), (4, [[0], [1], [2]])])
def test_large_tensors_are_exchanged_piece_by_piece(
    size: int, buckets: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUCKET", size)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    tensors = [torch.tensor([float(i)]) for i in range(3)]
    assert [[int(t) for t in bucket] for bucket in exchange._alike(tensors)] == buckets
