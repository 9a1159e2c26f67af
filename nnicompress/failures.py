"""How processes that do one job hear of each other's end: a failure in one is the failure of all, told once.

    process 1 raises -> says so in the store -> ends
    process 0        -> is woken out of any exchange by that, and ended by the launcher
                     -> finds what process 1 said -> fails with it: status, message, exit code

Where all fail for one reason, process 0 alone tells it. A process that was killed says nothing; that its identifier is
gone tells on the same machine.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING

from nnicompress.errors import JobError, NNICompressError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

ECHO = 1.0
"""Seconds in which a process that fails for the same reason as another has said so, or is gone."""
GRACE = 5.0
"""Seconds in which a process comes out of an exchange with one that has ended."""

LastWord = Callable[[str], None]
"""Writes down why the job failed."""


class Meeting:
    """What the processes leave for each other in the launcher's store, which outlives each of them."""

    def __init__(self, store: Store, number: int, count: int) -> None:
        self.store, self.number, self.others = store, number, [n for n in range(count) if n != number]
        self._waits = 0
        store.set(f"process/{number}", f"{socket.gethostname()} {os.getpid()}")

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.number == 0

    def wait_for_main(self, poll: float) -> None:
        """Wait until the main process has called this as often as this one has.

        Raises:
            JobError: it failed instead.
        """
        self._waits += 1
        key = f"main/{self._waits}"
        if self.is_main:
            self.store.set(key, "done")
            return
        while not self.store.check([key]):
            if self._said(0) is not None or self._is_gone(0):
                raise JobError("process 0 failed")
            time.sleep(poll)

    @contextmanager
    def blaming(self, last_word: LastWord | None = None) -> Iterator[None]:
        """See `distributed.blaming`. `last_word` is for where this process can't be woken."""
        over = threading.Event()
        if self.is_main and last_word is not None:
            threading.Thread(target=self._watch, args=(over, last_word), daemon=True).start()
        try:
            yield
        except NNICompressError:
            raise
        except (Exception, SystemExit) as error:
            # The launcher is about to end this process, too, which has a status to write and a line to print.
            ignore_termination()
            if reason := self._reason(error):
                raise JobError(reason) from error
            raise
        finally:
            over.set()

    def _watch(self, over: threading.Event, last_word: LastWord) -> None:
        """End this process where its main thread hears of another one's end too late: a GPU waits for it for ever."""
        while not over.wait(1.0):
            reasons = [reason for number in self.others if (reason := self._failure(number))]
            if reasons and not over.wait(GRACE):
                last_word(reasons[0])
                sys.stderr.write(f"error: {reasons[0]}\n")
                sys.stderr.flush()
                os._exit(1)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Around all of a process's work: says how it ended, and sees to it that the main process is heard."""
        try:
            if self.is_main:
                with self.blaming():
                    yield
            else:
                with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                    yield
        except BaseException as error:
            self._say("" if isinstance(error, (KeyboardInterrupt, SystemExit)) else _text(error))
            if not self.is_main:
                self._follow(error)
            raise
        self._say("")

    def _say(self, text: str) -> None:
        with suppress(RuntimeError):  # the launcher has been killed, and its store with it
            self.store.set(f"ended/{self.number}", text)

    def _said(self, number: int) -> str | None:
        """How process `number` ended: its error, empty where it has none; None: it is at work, or was killed."""
        key = f"ended/{number}"
        with suppress(RuntimeError):
            return self.store.get(key).decode() if self.store.check([key]) else None
        return None

    def _failure(self, number: int) -> str | None:
        """The line about process `number`, where it has failed or was killed."""
        gone = self._is_gone(number)  # asked first: one that ends well says so before it is gone
        said = self._said(number)
        if said:
            return f"process {number} failed: {said}"
        return _killed(number) if gone and said is None else None

    def _reason(self, error: BaseException) -> str | None:
        """The line about the process at whose end `error` arose here, None where there is none."""
        end = time.monotonic() + ECHO
        while time.monotonic() < end:
            for number in self.others:
                if self._said(number) == _text(error):
                    return None
                if reason := self._failure(number):
                    return reason
                if self._said(number) == "" and isinstance(error, Exception):
                    return f"process {number} was stopped; run the same command again: it goes on from the last state"
            time.sleep(0.05)
        return None

    def _is_gone(self, number: int) -> bool:
        """Whether a process of this machine exists no more."""
        try:
            host, pid = self.store.get(f"process/{number}").decode().split()
            if host != socket.gethostname():
                return False
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"  # killed, and not yet waited for
        except FileNotFoundError:
            return os.path.isdir("/proc/self")
        except (OSError, RuntimeError):
            return False

    def _follow(self, error: BaseException) -> None:
        """End a process that is not the main one: what went wrong is the main one's to tell.

        Raises:
            SystemExit: always.
        """
        ignore_termination()
        end = time.monotonic() + ECHO
        while self._said(0) is None and not self._is_gone(0) and time.monotonic() < end:
            time.sleep(0.02)
        told = isinstance(error, (NNICompressError, KeyboardInterrupt, SystemExit))
        if self._said(0) is None and self._is_gone(0):
            sys.stderr.write(f"error: {_killed(0)}\n")
        elif self._said(0) is None and not told:
            lines = "".join(traceback.format_exception(error)).splitlines()
            sys.stderr.write("".join(f"[process {self.number}] {line}\n" for line in lines))
        sys.stderr.flush()
        raise SystemExit(error.exit_code if isinstance(error, NNICompressError) else 1) from error


def ignore_termination() -> None:
    """SIGTERM is not heard any more: this process is ending anyway, and has a last word."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _killed(number: int) -> str:
    return (
        f"process {number} was killed; look at the memory that all processes together need, then run the same command "
        "again: it goes on from the last saved state"
    )


def _text(error: BaseException) -> str:
    """One line."""
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    return first if isinstance(error, NNICompressError) else f"{type(error).__name__}: {first}"
