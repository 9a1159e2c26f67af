"""The model card: what it says of the report and of the files beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from nnicompress.data.digits import Digits
from nnicompress.export.card import render_card, write_model_card
from nnicompress.export.inference import write_inference_files
from nnicompress.export.plain import save_plain
from nnicompress.models.mlp import mlp
from nnicompress.trace import Traced
from tests.report.sample import PHASES, make_report


def model_folder(folder: Path, **description: Any) -> Path:
    build = Traced(mlp, (), {"image_size": 8, "hidden": [4]})
    node = {"_target_": "nnicompress.models.mlp.mlp", "image_size": 8, "hidden": [4]}
    save_plain(build.build().eval(), build, node, ((torch.randn(2, 1, 8, 8),), {}), folder)
    write_inference_files(Digits(), folder)
    path = folder / "description.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **description}))
    return folder


def table_of(card: str, first: str) -> list[list[str]]:
    """The cells of the table whose header begins with `first`."""
    lines = card.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len({len(row) for row in rows}) == 1, rows
    return rows


def test_the_numbers_are_the_reports(tmp_path: Path) -> None:
    path = write_model_card(make_report(), model_folder(tmp_path))
    card = path.read_text()
    assert path == tmp_path / "README.md" and not (tmp_path / ".README.md.partial").exists()
    phases = {row[0]: row[1:] for row in table_of(card, "| | baseline")}
    assert phases[""] == ["baseline", "pruned (masked)", "shrunk", "fine-tuned", "final / baseline"]
    assert phases["accuracy (test)"] == ["98.0 %", "50.0 %", "50.0 %", "96.0 %", "−2.0 points"]
    assert phases["parameters"] == ["1 M", "1 M", "400,000", "400,000", "0.40×"]
    assert phases["latency, batch 32"] == ["20.0 ms", "20.0 ms", "10.0 ms", "10.0 ms", "0.50×"]
    files = table_of(card, "| file | runtime | accuracy")
    assert files[2] == ["model.pt2", "torch.export", "96.0 %", "1.7 MB", "1.50 ms", "8.00 ms"]
    assert files[3][:3] == ["baseline", "", "98.0 %"] and files[4][-1] == "2.50×"
    assert "pruned from 1,000,000" in card


def test_what_is_needed_to_use_it_is_said(tmp_path: Path) -> None:
    card = render_card(make_report(), model_folder(tmp_path))
    assert "`MLP` of `mlp.py` with 400,000 parameters" in card
    assert "`load.py` needs torch and safetensors. " in card
    assert ["mean", "[0.3]"] in table_of(card, "| step | value |")
    assert "`(value / divide_by - mean) / std`" in card
    assert "Classes, in the order of the outputs (`labels.json`): 0, 1, 2," in card
    assert "- torch 2.13.0" in card
    assert "Not prunable: fc: the model's output." in card
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        "What it is", "How to load it", "What was measured", "Data and preprocessing", "Versions", "Limits"
    ]  # fmt: skip
    assert "\n\n\n" not in card


def test_a_frozen_model_is_not_said_to_be_trainable(tmp_path: Path) -> None:
    card = render_card(make_report(), model_folder(tmp_path))
    assert "model = load()  # a MLP in evaluation mode, on the CPU; model.train() trains it on\n```" in card
    card = render_card(
        make_report(), model_folder(tmp_path, **{"class": "nnicompress.quantization.frozen.FrozenModel"})
    )
    assert "a FrozenModel in evaluation mode, on the CPU; it holds integers, and can't be trained\n```" in card


def test_other_code_and_libraries_are_named(tmp_path: Path) -> None:
    node = {"_target_": "my_model.Net", "inner": {"_target_": "timm.create_model"}}
    card = render_card(make_report(), model_folder(tmp_path, build=node, **{"class": "my_model.Net"}))
    assert "`my_model.Net` with" in card
    assert "needs torch and safetensors, timm." in card
    assert "`my_model` is your own code" in card


def test_masks_alone_and_missing_measurements_are_limits(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    card = render_card(make_report(phases=PHASES[:2], artifacts=(), proof=None), folder)
    assert "**No speed-up: masks only." in card
    assert "- Weights are masked, not removed" in card
    (folder / "labels.json").unlink()
    (folder / "preprocessing.json").unlink()
    bare = tuple(phase.model_copy(update={"accuracy": None, "latency": ()}) for phase in PHASES)
    card = render_card(make_report(phases=bare, artifacts=(), unprunable=()), folder)
    assert "- Nothing was measured on test data" in card
    assert "give it a member `preprocessing`" in card


def test_a_missed_expectation_is_a_limit(tmp_path: Path) -> None:
    card = render_card(make_report({"accuracy": {"min": 0.97}}), model_folder(tmp_path))
    assert "The recipe expects accuracy at least 0.97; it is 0.96." in card
