"""Ctrl-C and SIGTERM: at once where nothing is lost, after the step in progress where a training can go on from it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nnicompress import distributed


class Stop:
    """Whether somebody asked the run to stop.

    While `armed`, the first signal only sets `requested`, and whoever armed it saves and then calls `now`. A second
    signal, or one while nothing is armed, ends the run where it is.

    Of several processes, the main one decides and saves, and its leaving ends the others: they hear a second signal.
    """

    def __init__(self) -> None:
        self.armed = False
        self._deaf = not distributed.is_main()
        self.requested: int | None = None
        self._process = os.getpid()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if os.getpid() != self._process:
            # A data loading worker has inherited it. A terminal's Ctrl-C reaches the workers too, and the step in
            # progress needs them; the run itself ends them, by SIGTERM.
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self._deaf:
            self._deaf = False
            return
        first, self.requested = self.requested is None, signum
        if not (self.armed and first):
            self.now()

    def now(self) -> None:
        """Leave, as the signal asks."""
        if self.requested == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Signals go to the yielded Stop; only a process's main thread may ask for this, in others it hears nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # else somebody has chosen not to hear it any more
                signal.signal(number, handler)
