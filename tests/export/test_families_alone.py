"""Compact transformers of uneven widths load in a process without nnicompress."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnicompress.export import standalone
from nnicompress.shrink import shrink
from nnicompress.shrink.description import save
from tests.graph.families import FAMILIES
from tests.graph.trial import groups_of
from tests.shrink.removals import masked_copy


def written(name: str, folder: Path) -> int:
    """A compact model in which every second width lost 30 %; its number of parameters."""
    model, groups, batches = groups_of(name, inside_heads=False, hidden=True)
    removal = {width.name: np.arange(max(1, int(width.size * 0.3))) for width in groups.widths[::2]}
    compact = shrink(masked_copy(model, groups, removal), groups, removal).eval()
    config = {"_target_": f"transformers.{type(model.config).__name__}.from_dict", "_args_": [model.config.to_dict()]}
    build = {"_target_": f"transformers.{type(model).__name__}", "_args_": [config]}
    folder.mkdir()
    save(compact, FAMILIES[name]()[0], build, batches[0], folder)
    shutil.copy(standalone.__file__, folder / "load.py")
    return sum(parameter.numel() for parameter in compact.parameters())


def check(names: list[str], folder: Path) -> None:
    counts = {str(folder / name): written(name, folder / name) for name in names}
    script = Path(__file__).with_name("alone.py")
    done = subprocess.run(
        [sys.executable, "-IB", script, folder, *counts], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert {path: entry["parameters"] for path, entry in found.items()} == counts
    assert all(entry["difference"] <= 1e-5 and entry["changed"] for entry in found.values())


def test_bert_and_llama(tmp_path: Path) -> None:
    check(["bert", "llama"], tmp_path)


@pytest.mark.slow
def test_every_family(tmp_path: Path) -> None:
    check(list(FAMILIES), tmp_path)
