"""The Makefile documents itself, and its stamps keep a second `make` from installing again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", "-C", str(REPOSITORY), *arguments]
    # The tests themselves run under `make test SLOW=1`, whose variables reach every make below it.
    outer = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "SLOW"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@needs_make
def test_help_lists_every_target() -> None:
    listed = {line.split()[1] for line in make("help").splitlines()}
    assert listed == {"help", "demo", "test", "lint", "type", "recipes", "bench", "clean"}


@needs_make
def test_nothing_is_installed_twice(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    fresh = make("--dry-run", "demo", f"VENV={venv}")
    assert "-m venv" in fresh and "--editable" in fresh
    (venv / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed"):
        (venv / name).touch()
    assert "--editable" not in make("--dry-run", "demo", f"VENV={venv}")
    assert "--editable '.[dev,export]'" in make("--dry-run", "lint", f"VENV={venv}")


@needs_make
def test_slow_tests_are_left_out_unless_asked_for() -> None:
    assert '-m "not slow"' in make("--dry-run", "test")
    assert "not slow" not in make("--dry-run", "test", "SLOW=1")
