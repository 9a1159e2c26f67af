"""Several processes that do one job together: who is who, and what they agree on. With one process, all of it is free.

`torchrun --nproc-per-node 2 -m nnicompress run ...` starts them; `joined` makes them a group. Who is who is read from
torch.distributed, so a group that a user's program or an engine has made serves as well. Process 0 is the main one: it
alone writes the run's folder and prints, and decides what the others follow. torch is imported where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from nnicompress.errors import ConfigError, UserError

if TYPE_CHECKING:
    from nnicompress.failures import Meeting

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one in one exchange; what takes longer is waited for by `from_main`."""
POLL = 0.02
"""Seconds between two looks at whether the main process is done."""

_meeting: Meeting | None = None
_num_meetings = 0
"""All processes meet equally often: each meeting leaves keys of its own in the launcher's store."""


def launched() -> bool:
    """Whether a launcher started this process as one of several: it has set RANK and WORLD_SIZE."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """How many processes there are."""
    return _group().get_world_size() if _grouped() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return _group().get_rank() if _grouped() else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_device(kind: str, count: int) -> int:
    """The index of this process's own device among the `count` of this machine; 0 for a process by itself.

    Raises:
        ConfigError: the machine has fewer of them than processes.
    """
    index = int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0
    if index >= count:
        raise ConfigError(
            f"process {os.environ['RANK']} needs a {kind} device of its own, and there are {count}; start fewer "
            "processes (--nproc-per-node), or use cpu",
            key="runtime.device",
        )
    return index


@contextmanager
def joined() -> Iterator[None]:
    """The processes that a launcher started are a group within the block; a process by itself stays so.

    Others than the main process print nothing to stdout. Where one fails, all leave the block: the main one with what
    went wrong where (`failures.Meeting`).

    Raises:
        UserError: a launcher started this process without saying which one it is.
        JobError: another process failed, or was killed.
    """
    global _meeting, _num_meetings
    if not launched() and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        raise UserError(
            "this is a process that a Trainer started, in the middle of a run; start all processes at once: torchrun "
            f"--nproc-per-node {os.environ.get('WORLD_SIZE', 'N')} -m nnicompress run ..."
        )
    if not launched() or _grouped():
        yield
        return
    from torch import cuda, distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from nnicompress.failures import Meeting

    try:
        store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
    except ValueError as error:
        raise UserError(
            f"RANK and WORLD_SIZE are set, and the other processes can't be found ({error}); start all of them by "
            "torchrun, or unset both variables"
        ) from error
    if cuda.is_available() and cuda.device_count() > int(os.environ.get("LOCAL_RANK", "0")):
        cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    _num_meetings += 1
    store = PrefixStore(f"nnicompress/{_num_meetings}", store)
    distributed.init_process_group(
        backend, store=PrefixStore("group", store), rank=number, world_size=count, timeout=TIMEOUT
    )
    _meeting = Meeting(PrefixStore("meeting", store), number, count)
    try:
        with _meeting.ending():
            yield
    finally:
        _meeting = None
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def blaming(last_word: Callable[[str], None]) -> Iterator[None]:
    """In the main process, an error that is only the echo of another process's names that process and its error.

    Where the main process is not woken by the other one's end, `last_word` is called with the line, and it is ended.

    Raises:
        JobError: in place of the echo.
    """
    if _meeting is None:
        yield
        return
    with _meeting.blaming(last_word):
        yield


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, which alone does it; the others wait for it, however long it takes.

    It must be picklable, and `work` must not exchange anything itself.
    """
    if world_size() == 1:
        return work()
    answer: list[Any] = [work() if is_main() else None]
    if _meeting is not None:
        _meeting.wait_for_main(POLL)
    _group().broadcast_object_list(answer, src=0)
    found: T = answer[0]
    return found


def _grouped() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _group() -> Any:
    from torch import distributed

    return distributed
