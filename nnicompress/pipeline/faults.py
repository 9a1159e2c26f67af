"""What goes wrong around a run (disk, memory, workers, signals) in one line that says what to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from nnicompress.errors import JobError, NNICompressError, RunInterrupted
from nnicompress.pipeline.run_dir import RunFolder

FULL = 256 * 1024
"""A disk with fewer bytes left than this is full: no weights fit on it."""
_GO_ON = "run the same command again: it goes on from the last saved state"


@contextmanager
def explained(run: RunFolder) -> Iterator[None]:
    """Turn faults of the machine into JobErrors, and a stop by the user into RunInterrupted; all else passes."""
    try:
        yield
    except NNICompressError as error:
        # Ours, but its cause may be the disk: an exporter that can't write says that it can't export.
        if not _is_full(run, error):
            raise
        raise JobError(_disk_full(run)) from error
    except KeyboardInterrupt as error:
        raise RunInterrupted(f"interrupted{_where(run)}; {_GO_ON}") from error
    except Exception as error:
        if (line := _line(run, error)) is None:
            raise
        raise JobError(line) from error


def _line(run: RunFolder, error: Exception) -> str | None:
    text = str(error)
    if _is_full(run, error):
        return _disk_full(run)
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.filename or run.path} can't be written to{_where(run)}; make it writable, then {_GO_ON}"
    if _is_out_of_memory(error):
        what = "the device" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        return (
            f"{what} has not enough memory{_where(run)}: {text.splitlines()[0] if text else type(error).__name__}; "
            "lower data.batch_size (evaluator.accumulate makes up for it), or free memory and "
            f"{_GO_ON}"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return (
            f"a data loading worker died{_where(run)}: {text.splitlines()[0]}; look at the memory it needs and at your "
            f"dataset (data.num_workers=0 shows its own error), then {_GO_ON}"
        )
    return None


def _is_full(run: RunFolder, error: BaseException) -> bool:
    """Whether a disk is at the root of `error`; libraries wrap what the system says, or replace it by their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(cause) or "Disk quota exceeded" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    with suppress(OSError):
        return isinstance(error, (OSError, RuntimeError)) and shutil.disk_usage(run.path).free < FULL
    return False


def _disk_full(run: RunFolder) -> str:
    return f"no space left on the disk of {run.path}{_where(run)}; free some, then {_GO_ON}"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("not enough memory" in str(error) or "can't allocate" in str(error))


def _where(run: RunFolder) -> str:
    return f" in stage {run.status.stage!r}" if run.status.stage else ""
