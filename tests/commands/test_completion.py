"""Completion: what is offered for a line, and the script in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnicompress.cli import COMMANDS
from nnicompress.commands.candidates import candidates
from nnicompress.paths import find_groups, find_recipes


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nnicompress ", sorted(COMMANDS)),
        ("nnicompress re", ["reproduce"]),
        ("nnicompress run recipe=le", ["recipe=level_mlp"]),
        ("nnicompress run -m recipe=l1_mobilenet,le", ["recipe=l1_mobilenet,level_mlp"]),
        ("nnicompress run ", ["recipe=", *find_recipes()]),
        ("nnicompress check level_", ["level_mlp"]),
        ("nnicompress run --cf", ["--cfg"]),
        ("nnicompress run --cfg ", ["job", "hydra", "all"]),
        ("nnicompress export --format ", ["pt2", "onnx"]),
        ("nnicompress ls ", ["recipe", *find_groups(), "compressors"]),
        ("nnicompress run recipe=taylorfo_resnet see", ["seed="]),
        ("nnicompress run taylorfo_resnet --smoke optimizer=ada", ["optimizer=adam", "optimizer=adamw"]),
        ("nnicompress run recipe=taylorfo_resnet compressor.targets.co", ["compressor.targets.convs."]),
        (
            "nnicompress run recipe=taylorfo_resnet compressor=l1 compressor.importance.na",
            ["compressor.importance.name="],
        ),
        ("nnicompress run recipe=nothing see", []),
        ("nnicompress nothing ", []),
        ("", []),
    ],
)
def test_what_is_offered(line: str, offered: list[str]) -> None:
    assert candidates(line) == offered


def test_keys_of_a_user_s_own_files_are_offered(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("own_key: 1\n")
    line = f"nnicompress run --config-dir {tmp_path} recipe=taylorfo_resnet optimizer=mine optimizer.o"
    assert candidates(line) == ["optimizer.own_key="]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("word_breaks", ["with =", "without ="])
def test_the_script_completes_in_bash(tmp_path: Path, word_breaks: str) -> None:
    command = tmp_path / "nnicompress"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nnicompress "$@"\n')
    command.chmod(0o755)
    breaks = "COMP_WORDBREAKS=${COMP_WORDBREAKS//=}" if word_breaks == "without =" else ":"
    # What readline sets before it calls a completion function.
    script = f"""
        {breaks}
        eval "$(nnicompress completion bash)"
        COMP_LINE="nnicompress run recipe=level_" COMP_POINT=29
        COMP_WORDS=(nnicompress run recipe = level_) COMP_CWORD=4
        _nnicompress_completion
        echo "${{COMPREPLY[@]}}"
        complete -p nnicompress
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    reply, rule = done.stdout.splitlines()
    assert reply == ("level_mlp" if word_breaks == "with =" else "recipe=level_mlp")
    assert "-F _nnicompress_completion nnicompress" in rule
