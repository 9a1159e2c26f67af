"""The guides of the engines: their code, their recipe and their program work as a reader would use them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = ["lightning", "transformers"]


def files_of(guide: str) -> dict[str, str]:
    text = (REPOSITORY / "docs" / f"{guide}.md").read_text()
    return dict(re.findall(r"^```\w+ (?:complete )?file=(\S+)\n((?s:.*?))^```$", text, re.MULTILINE))


def program_of(guide: str) -> str:
    text = (REPOSITORY / "docs" / f"{guide}.md").read_text()
    (program,) = re.findall(r"^```python runnable\n((?s:.*?))^```$", text, re.MULTILINE)
    return str(program)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("guide", GUIDES)
def test_the_program_of_a_guide_trains_prunes_and_measures(guide: str, tmp_path: Path) -> None:
    for name, text in files_of(guide).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "program.py").write_text(program_of(guide))
    done = run(tmp_path, "program.py")
    assert done.returncode == 0, done.stderr
    measured = re.search(r"'default': ([\d.]+)", done.stdout)
    assert measured is not None and float(measured[1]) > 0.6, done.stdout


@pytest.mark.parametrize("guide", GUIDES)
def test_the_recipe_of_a_guide_runs(guide: str, tmp_path: Path) -> None:
    files = files_of(guide)
    assert set(files) == {f"my_{'trainer' if guide == 'transformers' else guide}.py", "mine.yaml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = run(tmp_path, "-m", "nnicompress", "run", "mine.yaml", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.pt2").is_file()
    assert "times as fast" in done.stdout or "multiply-accumulates" in done.stdout
