"""Sweeps of real runs: the table at the end, other processes through Hydra's launchers, searches with Optuna."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from omegaconf import DictConfig

from nnicompress.cli import main
from nnicompress.commands import display
from nnicompress.config.compose import compose
from nnicompress.report.record import Report

REPOSITORY = Path(__file__).resolve().parents[2]
SEARCH = "hydra/sweeper=nnicompress_optuna"
OWN_MODEL = """\
from torch import nn

def net(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def rows(printed: str) -> dict[str, str]:
    """The rows of the table at the end, by the run's label."""
    end = printed[printed.rindex("of the sweep\n") :] if "of the sweep\n" in printed else ""
    return dict(re.findall(r"^ *\d+ {2}(\S+=.*?)(?: {2,}(.*?))? *$", end, re.MULTILINE))


def sweep_of() -> Path:
    (folder,) = Path("runs").glob("sweep-*")
    return folder


def run_alone(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`nnicompress` as its users start it: launchers pickle what the main module holds."""
    return subprocess.run(
        [sys.executable, "-m", "nnicompress", *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_sweep_ends_with_its_runs_best_first_and_a_page(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", tiny, "seed=0,1,2"]) == 0
    printed = capsys.readouterr().out
    reports = {f"seed={n}": Report.load(compose([f"recipe={tiny}", f"seed={n}"]).run_dir) for n in range(3)}
    accuracies = {label: report.final.accuracy or 0 for label, report in reports.items()}
    assert list(rows(printed)) == sorted(accuracies, key=accuracies.__getitem__, reverse=True)
    best = max(accuracies.values())
    assert f"Best: {next(iter(rows(printed)))}, accuracy {100 * best:.1f} %" in printed
    assert printed.rstrip().endswith(f"{sweep_of()}/compare.html: these runs, plotted with their Pareto front")
    page = (sweep_of() / "compare.html").read_text()
    assert page.count("<svg") == 2 and all(label in page for label in reports)
    assert {path.name for path in Path("runs").iterdir()} == {
        sweep_of().name,
        *(Path(report.run_dir).name for report in reports.values()),
    }


def test_a_failed_run_has_its_row_and_several_recipes_are_compared(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("recipes/tiny.yaml").read_text()
    Path("recipes/other.yaml").write_text(text.replace("prune: {}", "prune: {}\n  finetune: {max_steps: 1}"))
    locked = Path(compose(["recipe=other", "seed=1"]).run_dir)
    locked.mkdir(parents=True)
    (locked / "notes.txt").write_text("this is no run")
    assert main(["run", "-m", "recipe=tiny,other", "seed=0,1"]) == 2, "a foreign folder is found before any run"
    (locked / "notes.txt").unlink()
    (locked / "status.json").mkdir()  # what can't be foreseen: the status can't be written
    assert main(["run", "-m", "recipe=tiny,other", "seed=0,1"]) == 1
    printed = capsys.readouterr()
    table = rows(printed.out)
    assert set(table) == {f"recipe={recipe} seed={seed}" for recipe in ("tiny", "other") for seed in (0, 1)}
    assert list(table)[-1] == "recipe=other seed=1" and "failed: IsADirectoryError" in table["recipe=other seed=1"]
    assert "error: 1 of 4 runs of the sweep failed:\nerror:   recipe=other seed=1: IsADirectoryError" in printed.err
    assert "recipe=other seed=1" in (sweep_of() / "compare.html").read_text()


def test_points_that_would_share_a_folder_are_refused(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", tiny, "seed=0,1", "run_dir=mine"]) == 2
    assert capsys.readouterr().err == (
        "error: run_dir: seed=0 and seed=1 would share the folder mine; give each point its own: "
        "'run_dir=runs/mine-${seed}'\n"
    )
    assert main(["run", "-m", tiny, "seed=0,1", "run_dir=runs/mine-${seed}", "--smoke"]) == 0
    assert {path.name for path in Path("runs").glob("mine*")} == {"mine-0-smoke", "mine-1-smoke"}
    assert "smoke: two batches a stage" in rows(capsys.readouterr().out)["seed=0"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra/launcher=jobli"], "no hydra"),
        (["hydra/launcher=joblib", "hydra.launcher.njobs=2"], "hydra.launcher: unknown key 'njobs'"),
        (["hydra/launcher=joblib", "optimizer.lrr=2"], "optimizer: torch.optim.SGD takes no 'lrr'"),
        (["hydra/launcher=submitit_local", "seed=one,two"], "seed: 'one' is not a whole number"),
        ([SEARCH, "hydra.sweeper.n_trails=2"], "hydra.sweeper: unknown key 'n_trails'; did you mean 'n_trials'?"),
        ([SEARCH, "hydra.sweeper.sampler=grid", "optimizer.lr=interval(0.1,0.2)"], "'optimizer.lr=interval(0.1,0.2)'"),
        ([SEARCH, "optimizer.lr=interval(0.2,0.1)"], "optimizer.lr: can't be searched over: interval(0.2, 0.1) is"),
        ([SEARCH, "optimizer.lrr=interval(0.1,0.2)"], "optimizer: torch.optim.SGD takes no 'lrr'"),
        ([SEARCH, "compressor.targets.weights.sparse_ratio=interval(0.5,1.5)"], "compressor.targets.weights.sparse_"),
        ([SEARCH, "model=mlp,mpl"], "no model named 'mpl'; did you mean 'mlp'"),
        ([SEARCH, "hydra.sweeper.storage=no/where.db"], "hydra.sweeper.storage: no/where.db can't be opened"),
        ([SEARCH, "~stages.evaluate"], "hydra.sweeper.objective: validation is measured by the stage evaluate"),
        (["hydra/sweeper=optuna"], "no hydra"),
    ],
)
def test_wrong_input_comes_before_anything_is_started(
    tiny: str, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    given = ["seed=0,1"] if not any(word.startswith("seed=") for word in words) else []
    assert main(["run", "-m", tiny, *given, *words]) == 2
    printed = capsys.readouterr()
    assert all(text.startswith("error: ") for text in printed.err.splitlines())
    assert any(text.startswith(f"error: {line}") for text in printed.err.splitlines()), printed.err
    assert printed.out == "" and [path.name for path in Path().iterdir()] == ["recipes"]


def test_a_sweeper_without_m_is_refused(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", tiny, SEARCH]) == 2
    assert capsys.readouterr().err == "error: hydra/sweeper goes with -m: nnicompress run -m ...\n"


@pytest.mark.parametrize(
    ("word", "package"),
    [(SEARCH, "optuna"), ("hydra/launcher=submitit_slurm", "hydra_submitit_launcher")],
)
def test_a_part_that_is_not_installed_is_named(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, word: str, package: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["run", "-m", tiny, "seed=0,1", word]) == 2
    assert capsys.readouterr().err == f"error: {word} needs {package}: pip install 'nnicompress[sweep]'\n"


def test_an_interrupt_shows_what_there_is(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = display.run_and_print

    def second_is_stopped(config: DictConfig, **options: bool) -> Report:
        if config.seed == 1:
            raise KeyboardInterrupt
        return whole(config, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(display, "run_and_print", second_is_stopped)
    assert main(["run", "-m", tiny, "seed=0,1,2"]) == 130
    assert list(rows(capsys.readouterr().out)) == ["seed=0", "seed=1"]


@pytest.mark.slow
def test_a_search_tells_optuna_what_the_reports_say_and_goes_on(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "-m", tiny, SEARCH, "hydra.sweeper.storage=search.db", "optimizer.lr=interval(0.001,0.3)"]
    words += ["seed=range(0,5)", "hydra.sweeper.objective=accuracy"]
    assert main([*words, "hydra.sweeper.n_trials=3"]) == 0
    assert len(rows(capsys.readouterr().out)) == 3
    assert main([*words, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2"]) == 0
    printed = capsys.readouterr().out
    study = optuna.load_study(study_name=sweep_of().name, storage="sqlite:///search.db")
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE and len(study.trials) == 5
    for trial in study.trials:
        report = Report.load(trial.user_attrs["run_dir"])
        assert trial.value == report.final.accuracy and trial.params["seed"] == report.seed
        manifest = json.loads(Path(trial.user_attrs["run_dir"], "manifest.json").read_text())
        assert manifest["config"]["optimizer"]["lr"] == trial.params["optimizer.lr"]
    assert "goes on: 3 of 5 trials are finished" in printed
    assert f"Best of the search: accuracy {study.best_value:.4g}: " in printed
    table = rows(printed)
    assert len(table) == 5, "earlier trials have their rows, too"
    best = [
        f"optimizer.lr={t.params['optimizer.lr']!r} seed={t.params['seed']}"
        for t in study.trials
        if t.value == study.best_value
    ]
    assert next(iter(table)) in best


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_other_processes_know_the_search_path_trust_and_folders_and_their_failures_are_heard(
    tiny: str, tmp_path: Path, launcher: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "their_models.py").write_text(OWN_MODEL)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "theirs.yaml").write_text("_target_: their_models.net\nwidth: 8\n")
    # The folder of the last point can't be taken: only the process that runs it finds out.
    words = ["-m", tiny, "model=theirs", "model.width=8,9,10", "seed=0", "--config-dir", "own", "--trust=their_models"]
    words += [f"hydra/launcher={launcher}", "run_dir=out/${model.width}"]
    blocked = tmp_path / "out" / "10"
    blocked.mkdir(parents=True)
    (blocked / "status.json").mkdir()
    done = run_alone("run", *words, cwd=tmp_path, PYTHONPATH=f"{site}:{REPOSITORY}")
    assert done.returncode == 1, done.stderr
    table = rows(done.stdout)
    assert set(table) == {"model.width=8", "model.width=9", "model.width=10"}
    assert "failed: IsADirectoryError" in table["model.width=10"]
    assert done.stderr.rstrip().splitlines()[-2] == "error: 1 of 3 runs of the sweep failed:"
    for width in (8, 9):
        report = Report.load(tmp_path / "out" / str(width))
        assert report.baseline.parameters == 64 * width + width + 10 * width + 10
    pids = {json.loads((tmp_path / "out" / width / "status.json").read_text())["pid"] for width in ("8", "9")}
    assert os.getpid() not in pids


@pytest.mark.slow
def test_a_worker_that_dies_has_its_row(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "fatal.py").write_text(
        "import os\nfrom torch import nn\n\ndef net(width):\n"
        "    if width == 9 and os.environ['MAIN'] != str(os.getpid()):\n        os._exit(9)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "fatal.yaml").write_text("_target_: fatal.net\nwidth: 8\n")
    words = ["run", "-m", tiny, "model=fatal", "model.width=8,9", "--trust=fatal", "--config-dir=own"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    start = "import os, sys; os.environ['MAIN'] = str(os.getpid()); from nnicompress.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", start, *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 1 and "TerminatedWorkerError" in done.stderr
    assert re.search(r"failed: .*its process (\(\d+\) )?ended without", rows(done.stdout)["model.width=9"])


@pytest.mark.slow
def test_a_search_runs_its_batches_in_other_processes(tiny: str, tmp_path: Path) -> None:
    words = ["-m", tiny, SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "hydra.sweeper.storage=s.db"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=range(0,9)"]
    words += ["hydra.sweeper.sampler=grid", "hydra.sweeper.objective=[validation,params_ratio]"]
    done = run_alone("run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("sweep-*")
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{tmp_path}/s.db")
    assert [trial.params["seed"] for trial in study.trials] == [0, 1, 2, 3]
    for trial in study.trials:
        report = Report.load(trial.user_attrs["run_dir"])
        assert trial.values == [report.final.validation, 1.0]
    assert set(rows(done.stdout)) == {f"seed={n}" for n in range(4)}


def test_recipes_are_swept_with_keys_that_only_they_write(tiny: str) -> None:
    text = Path("recipes/tiny.yaml").read_text()
    Path("recipes/other.yaml").write_text(text.replace("repeats: 3", "repeats: 4"))
    words = ["recipe=tiny,other", "compressor.targets.weights.sparse_ratio=0.2,0.4", "stages.train.max_steps=1"]
    assert main(["run", "-m", *words]) == 0
    (folder,) = Path("runs").glob("sweep-*")
    points = [json.loads(file.read_text())["overrides"] for file in sorted(folder.glob("points/*.json"))]
    assert len(points) == 4 and all("stages.train.max_steps=1" in point for point in points)
    ratios = {point[0]: set() for point in points}
    for point in points:
        ratios[point[0]].add(point[1].rpartition("=")[2])
    assert ratios == {"recipe=tiny": {"0.2", "0.4"}, "recipe=other": {"0.2", "0.4"}}
