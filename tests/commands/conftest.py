"""A recipe that runs in about a second."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """\
# The smallest run there is: two steps of an MLP, single weights masked
defaults:
  - override /model: mlp
  - override /compressor: level
compressor: {targets: {weights: {op_types: [Linear]}}}
stages:
  train: {max_steps: 2}
  prune: {}
  evaluate: {repeats: 3, seconds: 0.01, memory: false, batch_sizes: [1]}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The recipe's name; the current directory is an empty one that holds it."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return "tiny"
