"""`nnicompress compare` over folders: what it prints and writes, and wrong words."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnicompress.cli import main
from nnicompress.sweep.ledger import Ledger, Point
from tests.report.sample import make_report
from tests.report.test_comparison import write_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two finished runs and a failed one below the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_run(Path("runs/one"), make_report(seed=0), config={"seed": 0, "model": {"width": 8}})
    write_run(Path("runs/two"), make_report(seed=1), config={"seed": 1, "model": {"width": 8}})
    write_run(Path("runs/lost"), state="failed", error="JobError: out of luck")
    return tmp_path


def test_it_prints_all_runs_and_what_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/one", "runs/two/report.json", "runs/lost"]) == 0
    printed = capsys.readouterr().out
    assert "runs/one" in printed and "runs/two" in printed and "failed: JobError: out of luck" in printed
    assert "seed" in printed and "model.width" not in printed
    assert sorted(path.name for path in runs.iterdir()) == ["runs"], "nothing is written unless asked for"


def test_html_writes_one_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/one", "runs/two", "--html=page.html"]) == 0
    assert capsys.readouterr().out.endswith("page.html: this comparison, plotted with its Pareto front\n")
    page = Path("page.html").read_text()
    assert page.count("<svg") == 2 and "2 runs compared" in page


def test_a_sweep_s_folder_stands_for_its_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(Path("runs/sweep-0"))
    for number, name in enumerate(("one", "two")):
        ledger.write(Point(number, ("recipe=small", f"seed={number}"), str(runs / "runs" / name), ended=True))
    assert main(["compare", "runs/sweep-0"]) == 0
    printed = capsys.readouterr().out
    assert "  seed=0 " in printed and "recipe=small" not in printed, "what all points share is left out"
    assert main(["compare", *map(str, Path("runs").iterdir())]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    names = [name for name in ("runs/one", "runs/two", "runs/lost") for line in table if f" {name} " in f"{line} "]
    assert names == ["runs/one", "runs/two", "runs/lost"], "each once, though it is named twice"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "compare takes two runs or more, as in 'nnicompress compare runs/"),
        (["runs/one"], "compare takes two runs or more; 'nnicompress show RUN' prints a single one"),
        (["runs/one", "runs/one/"], "compare takes two runs or more; "),
        (["runs/one", "runs/tow"], "no run 'runs/tow'; did you mean 'runs/two'"),
        (["runs/one", "runs"], "'runs' is no run; give the folder of a run or of a sweep"),
        (["runs/one", "runs/two", "--html"], "--html needs a value"),
        (["runs/one", "runs/two", "--html", "--x"], "--html needs a value"),
        (["runs/one", "runs/two", "--html", "runs/one/report.json"], "--html: 'runs/one/report.json' has to end with"),
        (["runs/one", "runs/two", "--html", "no/x.html"], "--html: no folder 'no'; create it first"),
        (["runs/one", "runs/two", "--htm=x.html"], "nnicompress compare has no option '--htm'; did you mean '--html'?"),
        (["runs/one", "runs/two", "seed=1"], "no run 'seed=1'"),
    ],
)
def test_wrong_words_are_one_line(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(["compare", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {line}") and printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path.name for path in runs.iterdir()) == ["runs"]
