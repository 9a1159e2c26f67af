"""Run by torchrun: does what several processes do together, and writes what each of them found to OUT/RANK.pt."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from nnicompress import distributed, exchange
from nnicompress.errors import NNICompressError
from tests.distributed import problems


def refused(work: Callable[[], object]) -> str:
    """The message of the error that `work` raises."""
    try:
        work()
    except NNICompressError as error:
        return str(error)
    return "nothing was refused"


def exchanges() -> dict[str, Any]:
    """Each process has tensors of its own; afterwards they are in common."""
    number = distributed.rank()
    parameters = [nn.Parameter(torch.full((2, 2), float(number + i))) for i in range(4)]
    parameters[0].grad = torch.full((2, 2), float(number))  # 0 and 1
    if number == 1:
        parameters[1].grad = torch.full((2, 2), 6.0)  # one process alone
    parameters[3].grad = torch.arange(4.0).reshape(2, 2).t()  # not contiguous
    exchange.average_gradients(parameters)
    followed = [torch.tensor([number, 7]), torch.tensor(number == 0), torch.full((3, 2), float(number)).t()]
    exchange.follow_main(followed)
    value = torch.tensor(float(number))
    return {
        "gradients": [p.grad for p in parameters],
        "followed": followed,
        "mean": exchange.mean(value),
        "means": exchange.means({"both": 2.0 + number, **({"second": 7.0} if number else {})}),
        "value": value,
        "from_main": distributed.from_main(lambda: {"rank": distributed.rank()}),
        "who": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "equal": refused(lambda: exchange.check_equal("the masks", {"a": torch.ones(2)}, "do it")),
        "different": refused(
            lambda: exchange.check_equal("the masks", {"a": torch.ones(2), "b": torch.tensor(number)}, "do it")
        ),
    }


def sharded() -> dict[str, Any]:
    """A model of FSDP2 is refused."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (distributed.world_size(),)))
    using = problems.evaluator(model)
    return {"message": refused(lambda: using.bound(model).__enter__())}


def main(out: str) -> None:
    """Everything, one after the other."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with distributed.joined():
        cases = {**problems.ALIKE, **problems.TOGETHER, "exchanges": exchanges, "sharded": sharded}
        for name, case in cases.items():
            torch.manual_seed(0)
            found[name] = case()
    with distributed.joined():  # a program that runs one job after the other
        found["again"] = distributed.from_main(lambda: {"rank": distributed.rank(), "size": distributed.world_size()})
    torch.save(found, f"{out}/{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
