"""`reproduce RUN`: what a manifest says is run again and held against the earlier numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nnicompress
from nnicompress.cli import main
from nnicompress.report.record import Report
from nnicompress.report.reproduction import compare_with, origin_differences


def test_a_run_is_reproduced_from_its_manifest_alone(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Latencies are compared, too: enough passes that a busy machine changes no median by a quarter.
    enough = ["stages.evaluate.repeats=300", "stages.evaluate.seconds=1"]
    first = nnicompress.run(tiny, ["seed=3", "model.hidden=[24]", *enough])
    Path("recipes/tiny.yaml").unlink()
    before = {file: file.read_bytes() for file in Path(first.run_dir).rglob("*") if file.is_file()}
    assert main(["reproduce", first.run_dir]) == 0
    assert {file: file.read_bytes() for file in Path(first.run_dir).rglob("*") if file.is_file()} == before
    again = Path(f"{first.run_dir}-reproduced")
    ours, theirs = (load_file(Path(run) / "stages/02_prune/model.safetensors") for run in (first.run_dir, again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Report.load(again).seed == 3
    assert "±" in capsys.readouterr().out


def test_other_numbers_end_with_exit_code_3_and_a_table(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(nnicompress.run(tiny).run_dir)
    report = json.loads((run / "report.json").read_text())
    report["phases"][-1]["accuracy"] += 0.2
    (run / "report.json").write_text(json.dumps(report))
    assert main(["reproduce", str(run)]) == 3
    printed = capsys.readouterr()
    assert "accuracy" in printed.err.splitlines()[-1] and "misses its expected numbers" in printed.err
    assert "✗  accuracy" in printed.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["RUN", "seed=1"], "error: 'seed=1': a run is reproduced as it was; only run_dir=FOLDER can be given with it"),
        (["RUN", "run_dir=RUN"], "error: run_dir=RUN is the run that is to be reproduced; give another folder"),
        (["empty"], "error: empty is no run: it has no manifest.json"),
        (["RUN", "--smok"], "error: nnicompress reproduce has no option '--smok'"),
    ],
)
def test_wrong_input_is_one_line_and_runs_nothing(
    tiny: str, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    run = nnicompress.run(tiny).run_dir
    capsys.readouterr()
    assert main(["reproduce", *(word.replace("RUN", run) for word in words)]) == 2
    printed = capsys.readouterr().err
    assert printed == f"{line.replace('RUN', run)}\n" or printed.startswith(line)
    assert [path.as_posix() for path in Path("runs").iterdir()] == [run]


def test_tolerances_are_those_of_the_documentation(tiny: str) -> None:
    report = nnicompress.run(tiny)
    final = report.phases[-1]

    def with_accuracy(change: float) -> Report:
        changed = final.model_copy(update={"accuracy": (final.accuracy or 0) + change})
        return report.model_copy(update={"phases": (*report.phases[:-1], changed)})

    def missed(now: Report) -> set[str]:
        return {row.name for row in compare_with(report, now) if not row.ok}

    assert missed(with_accuracy(0.009)) == set()
    assert missed(with_accuracy(-0.011)) == {"accuracy", "accuracy_drop"}
    assert missed(
        report.model_copy(update={"phases": (*report.phases[:-1], final.model_copy(update={"macs": 1}))})
    ) == {"macs_ratio"}


def test_another_origin_is_named() -> None:
    old = {"versions": {"torch": "2.12"}, "data": {"fingerprint": "a"}, "code": {"commit": "1"}}
    new = {"versions": {"torch": "2.13"}, "data": {"fingerprint": "b"}, "code": {"commit": "1"}}
    assert origin_differences(old, new) == ["torch was 2.12, is 2.13", "data was a, is b"]
    assert origin_differences(old, old) == []
