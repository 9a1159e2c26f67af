"""Runs side by side: their order, what is said of those without a result, and where their settings differ."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nnicompress.pipeline.run_dir import RunStatus, State, write_json
from nnicompress.report.comparison import (
    MISSING,
    Entry,
    best_line,
    change,
    compare_runs,
    differences,
    read_entry,
    remark,
)
from nnicompress.report.comparison_html import render_comparison
from nnicompress.report.comparison_table import render
from nnicompress.report.record import Report
from tests.report.sample import PHASES, SMALL, make_report, phase


def run_of(accuracy: float | None, label: str = "", **changes: Any) -> Entry:
    """A finished run whose baseline has 0.98; halved multiply-accumulates."""
    phases = (PHASES[0], phase("finetuned", "fine-tuned", **{**SMALL, "accuracy": accuracy}))
    report = make_report(**{"phases": phases, "artifacts": (), **changes})
    return Entry(label or str(accuracy), Path("runs") / label, "done", report=report)


def write_run(
    folder: Path, report: Report | None = None, *, state: State = "done", config: Any = None, **more: Any
) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "status.json", asdict(RunStatus(state, "2026-01-01T00:00:00+00:00", 1, **more)))
    if report is not None:
        report.save(folder / "report.json")
    if config is not None:
        write_json(folder / "manifest.json", {"config": config})
    return folder


def labels(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.label for entry in entries]


def test_the_best_comes_first_and_what_was_not_measured_last() -> None:
    failed = Entry("failed", Path("x"), "failed", "JobError: out of luck")
    entries = [failed, run_of(0.95), run_of(None), run_of(math.nan, "nan"), run_of(0.97), run_of(0.99)]
    compared = compare_runs(entries)
    assert labels(compared.entries) == ["0.99", "0.97", "0.95", "None", "nan", "failed"]
    assert best_line(compared) == "Best: 0.99, accuracy 99.0 % with 50 % of the multiply-accumulates."


def test_a_loss_is_best_when_small() -> None:
    runs = [run_of(value, metric="loss", mode="min") for value in (0.5, 0.25, 2.0)]
    assert labels(compare_runs(runs).entries) == ["0.25", "0.5", "2.0"]
    assert change(runs[2]) == "+1.02", "above the baseline's 0.98, by the sign of the number itself"


def test_runs_of_different_metrics_stay_as_given_and_it_is_said() -> None:
    compared = compare_runs([run_of(0.5), run_of(0.9, metric="f1")])
    assert labels(compared.entries) == ["0.5", "0.9"] and not compared.ordered
    assert best_line(compared) == "No order: the runs are measured by accuracy (test, max) and by f1 (test, max)."


def test_numbers_are_shares_of_the_run_s_own_baseline() -> None:
    entry = run_of(0.96)
    assert entry.numbers["params_ratio"] == 0.4 and entry.numbers["macs_ratio"] == 0.5
    assert entry.numbers["latency_ratio"] == pytest.approx(0.5)
    assert change(entry) == "−2.0 points"


def test_a_remark_names_masks_and_what_was_expected() -> None:
    masked = (PHASES[0], PHASES[1])
    entry = run_of(0.5, phases=masked, expected={"accuracy": {"min": 0.9}, "params_ratio": {"max": 1.0}})
    assert remark(entry) == "masks only, 60 % zeros; misses expected accuracy"
    assert remark(run_of(0.96)) == ""


def test_every_state_has_its_row(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", make_report(), config={"seed": 1})
    smoke = write_run(tmp_path / "smoke", make_report(smoke=True))
    failed = write_run(tmp_path / "failed", state="failed", stage="prune", error="JobError: out of luck")
    killed = write_run(tmp_path / "killed", state="running", stage="train")
    torn = write_run(tmp_path / "torn")
    (torn / "report.json").write_text("{")
    entries = [read_entry(folder) for folder in (done, smoke, failed, killed, torn, tmp_path)]
    assert [entry.state for entry in entries] == ["done", "smoke", "failed", "failed", "unreadable", "no report"]
    assert [entry.report is not None for entry in entries] == [True, *[False] * 5]
    assert remark(entries[2]) == "failed: in prune: JobError: out of luck"
    assert "its process (1) ended without finishing" in remark(entries[3])
    assert entries[0].config == {"seed": 1}
    shown = Console(width=160, record=True)
    shown.print(render(compare_runs(entries), 160))
    text = shown.export_text()
    for folder in (done, smoke, failed, killed, torn):
        assert str(folder) in text


def test_only_what_differs_is_listed_by_its_dotted_key() -> None:
    configs: list[dict[str, Any]] = [
        {"seed": 0, "run_dir": "a", "stages": {"shrink": {}, "train": {"max_epochs": 3}}, "logging": ["csv"]},
        {"seed": 0, "run_dir": "b", "stages": {"train": {"max_epochs": 4}}, "logging": ["csv"]},
    ]
    entries = [Entry(str(n), Path("x"), "done", config=config) for n, config in enumerate(configs)]
    entries.append(Entry("failed before it had a manifest", Path("y"), "failed"))
    found = {difference.key: difference.values for difference in differences(entries)}
    assert found == {"stages.shrink": ({}, MISSING, MISSING), "stages.train.max_epochs": (3, 4, MISSING)}


def printed(entries: list[Entry], width: int) -> str:
    console = Console(width=width, record=True)
    console.print(render(compare_runs(entries), width))
    return console.export_text()


def test_the_table_has_the_numbers_in_one_row_on_a_wide_terminal_and_a_legend_on_a_narrow_one() -> None:
    entries = [run_of(0.96, "runs/a-rather-long-name-of-a-run"), run_of(0.97, "runs/b")]
    cells = r"97\.0 %\s+−1\.0 points\s+0\.40×\s+0\.50×\s+0\.40×\s+0\.50×\s+1 min 15 s"
    assert re.search(rf"1\s+runs/b\s+{cells}", printed(entries, 160))
    narrow = printed(entries, 80)
    assert re.search(rf"1\s+{cells}", narrow) and re.search(r"\n1\s+runs/b\s*\n", narrow)
    assert max(map(len, narrow.splitlines())) <= 80


def test_settings_of_many_runs_are_grouped_by_value() -> None:
    configs = [{"seed": n, "data": {"fold": n % 2}} for n in range(10)]
    entries = [Entry(str(n), Path("x"), "failed", config=config) for n, config in enumerate(configs)]
    text = printed(entries, 100)
    assert "0: 1, 3, 5, 7, 9" in text and "1: 2, 4, 6, 8, 10" in text
    assert re.search(r"data\.fold\s+0\s+1", printed(entries[:2], 100))


def test_the_page_holds_everything_and_needs_nothing() -> None:
    entries = [run_of(0.96, "<one> & two"), run_of(0.97, "b"), Entry("c", Path("c"), "failed", "JobError: <no>")]
    page = render_comparison(compare_runs(entries), title="3 runs", lines=("a line",))
    assert "&lt;one&gt; &amp; two" in page and "<one>" not in page and "JobError: &lt;no&gt;" in page
    assert page.count("<svg") == 2, "over multiply-accumulates and over latency"
    assert not re.search(r"<(script|link|img)|https?://(?!www\.w3\.org)", page)
    assert "97.0 %" in page and "a line" in page


def test_a_manifest_that_is_none_leaves_the_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_report())
    for text in ("{", "[]", json.dumps({"config": []}), "{}"):
        (folder / "manifest.json").write_text(text)
        assert read_entry(folder).config == {}
