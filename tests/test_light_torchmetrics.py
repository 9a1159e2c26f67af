"""A run of a torch recipe imports neither Lightning nor Transformers; who asks for a text metric gets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def said_by(script: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_run_of_a_torch_recipe_imports_no_trainer(tmp_path: Path) -> None:
    script = """
import sys
from nnicompress.cli import main
sys.argv = ["nnicompress", "run", "recipe=level_mlp", "--smoke", "run_dir=here"]
code = main()
print(code, [name for name in ("transformers", "pytorch_lightning", "lightning", "accelerate") if name in sys.modules],
      "torchmetrics" in sys.modules)
"""
    assert said_by(script, tmp_path) == "0 [] True"


@pytest.mark.parametrize("first", ["", "import transformers; "])
def test_text_metrics_are_there_for_who_asks(first: str, tmp_path: Path) -> None:
    script = f"""
{first}from nnicompress.trust import resolve
print(resolve("torchmetrics.text.BERTScore").__name__)
"""
    assert said_by(script, tmp_path) == "BERTScore"
