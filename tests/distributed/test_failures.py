"""What the main process makes of its own error, given how the others ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from torch.distributed import HashStore

from nnicompress import failures
from nnicompress.errors import JobError, UserError
from nnicompress.failures import Meeting


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "ECHO", 0.1)
    monkeypatch.setattr(failures, "GRACE", 0.1)
    monkeypatch.setattr(failures, "ignore_termination", lambda: None)


@pytest.fixture
def main() -> Iterator[Meeting]:
    """Process 0 of two; process 1 is this process, too, unless the test says otherwise."""
    store = HashStore()
    Meeting(store, 1, 2)
    yield Meeting(store, 0, 2)


def killed_pid() -> int:
    """The identifier of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_echo_names_the_process_that_failed(main: Meeting) -> None:
    main.store.set("ended/1", "ValueError: a bad batch")
    with pytest.raises(JobError, match="^process 1 failed: ValueError: a bad batch$"), main.blaming():
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), SystemExit(143)])
def test_a_process_without_a_word_was_killed(error: BaseException, main: Meeting) -> None:
    host = main.store.get("process/1").decode().split()[0]
    main.store.set("process/1", f"{host} {killed_pid()}")
    with pytest.raises(JobError, match="^process 1 was killed; look at the memory"), main.blaming():
        raise error


@pytest.mark.parametrize("said", [None, "ValueError: everywhere", ""])
def test_an_own_error_stays(said: str | None, main: Meeting) -> None:
    """Of this process alone; of all of them; and of one that is told to end beside others that were."""
    if said is not None:
        main.store.set("ended/1", said)
    error: BaseException = SystemExit(143) if said == "" else ValueError("everywhere")
    with pytest.raises(type(error)) as caught, main.blaming():
        raise error
    assert caught.value is error


def test_an_error_that_is_explained_already_stays(main: Meeting) -> None:
    main.store.set("ended/1", "ValueError: a bad batch")
    with pytest.raises(UserError, match="mine"), main.blaming():
        raise UserError("mine")


def test_a_process_that_ended_well_is_no_failure(main: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone, while the main one still writes the report."""
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the main process was ended"))
    host = main.store.get("process/1").decode().split()[0]
    main.store.set("process/1", f"{host} {killed_pid()}")
    main.store.set("ended/1", "")
    assert main._failure(1) is None
    assert main._reason(SystemExit(0)) is None


def test_a_main_process_that_is_not_woken_is_ended(
    main: Meeting, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended, words = threading.Event(), []

    def leave(code: int) -> None:
        words.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    main.store.set("ended/1", "ValueError: a bad batch")
    with main.blaming(words.append):
        assert ended.wait(10)
    assert words == ["process 1 failed: ValueError: a bad batch", 1]
    assert "error: process 1 failed: ValueError: a bad batch" in capfd.readouterr().err


def test_others_wait_for_the_main_process_and_hear_of_its_end(main: Meeting) -> None:
    other = Meeting(main.store, 1, 2)
    main.wait_for_main(0.01)
    other.wait_for_main(0.01)
    main.store.set("ended/0", "ValueError: a bad batch")
    with pytest.raises(JobError, match="process 0 failed"):
        other.wait_for_main(0.01)
