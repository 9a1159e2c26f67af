"""Who is who, and on which device, as the launcher's variables say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nnicompress import distributed
from nnicompress.errors import ConfigError
from nnicompress.pipeline.seeding import resolve_device
from nnicompress.pipeline.settings import RuntimeSettings


def launched_as(monkeypatch: pytest.MonkeyPatch, rank: int, count: int, local: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", count), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({"WORLD_SIZE": "2"}, False), ({"RANK": "0", "WORLD_SIZE": "1"}, False)]
    + [({"RANK": "1", "WORLD_SIZE": "2"}, True)],
)
def test_one_of_several_has_a_number(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() is expected


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(RuntimeSettings(device=device)) == torch.device("cuda", 0)
    launched_as(monkeypatch, rank=3, count=4, local=1)
    assert resolve_device(RuntimeSettings(device=device)) == torch.device("cuda", 1)
    launched_as(monkeypatch, rank=2, count=4, local=2)
    with pytest.raises(ConfigError, match="process 2 needs a cuda device of its own, and there are 2; start fewer"):
        resolve_device(RuntimeSettings(device=device))


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_one_device_is_not_for_several_processes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched_as(monkeypatch, rank=0, count=2, local=0)
    with pytest.raises(ConfigError, match=f"'{device}' is one device, and each of 2 processes needs its own"):
        resolve_device(RuntimeSettings(device=device))
    assert resolve_device(RuntimeSettings(device="cpu")) == torch.device("cpu")


def test_the_command_line_knows_of_processes_without_torch() -> None:
    code = "import sys, nnicompress.commands.run as run; print(run.launched(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
