"""`nnicompress run` through hydra.main: folders, sweeps, exit codes, and what Hydra's users expect."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nnicompress.cli import main
from nnicompress.commands import display
from nnicompress.config.compose import compose
from nnicompress.errors import JobError
from tests.report.sample import make_report

TAYLOR = "recipe=taylorfo_resnet"
Run = Callable[..., None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Recorder:
    """Stands in for the run itself: the configs that it was given, and `sys.argv` and the folders at that time."""

    def __init__(self) -> None:
        self.configs: list[DictConfig] = []
        self.argv: list[list[str]] = []
        self.smoke: list[bool] = []
        self.fail: Callable[[DictConfig], None] = lambda config: None

    def __call__(self, config: DictConfig, *, smoke: bool, fresh: bool, explain: bool) -> Any:
        self.configs.append(config)
        self.argv.append(sys.argv)
        self.smoke.append(smoke)
        self.fail(config)
        return make_report()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(display, "run_and_print", recorder)
    return recorder


def test_a_run_gets_the_composed_config_and_its_own_folder(here: Path, recorder: Recorder) -> None:
    argv = list(sys.argv)
    assert main(["run", "seed=4", TAYLOR]) == 0
    (config,) = recorder.configs
    assert OmegaConf.to_container(config) == OmegaConf.to_container(compose([TAYLOR, "seed=4"]))
    assert [path.as_posix() for path in Path("runs").iterdir()] == [config.run_dir]
    assert list(Path(config.run_dir).iterdir()) == [], "Hydra leaves no file of its own"
    assert recorder.argv[0][1:] == ["run", "seed=4", TAYLOR], "as the user wrote it, for processes started from it"
    assert sys.argv == argv
    assert not GlobalHydra.instance().is_initialized()


def test_a_bare_name_and_a_path_are_recipes(here: Path, recorder: Recorder) -> None:
    (here / "my own.yaml").write_text("defaults:\n  - taylorfo_resnet\nseed: 9\n")
    assert main(["run", "taylorfo_resnet"]) == 0
    assert main(["run", "my own.yaml"]) == 0
    assert [config.name for config in recorder.configs] == ["taylorfo_resnet", "my own"]
    assert [config.seed for config in recorder.configs] == [0, 9]


def test_a_sweep_runs_every_point_in_the_folder_it_would_have_alone(here: Path, recorder: Recorder) -> None:
    assert main(["run", "-m", "recipe=taylorfo_resnet,random_resnet", "seed=0,1"]) == 0
    assert [(config.name, config.seed) for config in recorder.configs] == [
        (name, seed) for name in ("taylorfo_resnet", "random_resnet") for seed in (0, 1)
    ]
    for config in recorder.configs:
        assert config.run_dir == compose([f"recipe={config.name}", f"seed={config.seed}"]).run_dir
        assert Path(config.run_dir).is_dir()
    assert len({config.run_dir for config in recorder.configs}) == 4


def test_options_may_stand_after_overrides(here: Path, recorder: Recorder) -> None:
    assert main(["run", TAYLOR, "model.width=8", "-m", "seed=1,2"]) == 0
    assert [config.seed for config in recorder.configs] == [1, 2]


def test_recipes_can_be_swept_by_a_glob(here: Path, recorder: Recorder) -> None:
    assert main(["run", "-m", "recipe=glob(*a*o*_resnet)"]) == 0
    assert [config.name for config in recorder.configs] == ["random_resnet", "taylorfo_resnet"]


def test_one_failed_point_neither_stops_nor_hides_the_others(
    here: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: DictConfig) -> None:
        if config.seed == 1:
            raise JobError("out of luck")

    recorder.fail = fail
    assert main(["run", "-m", TAYLOR, "seed=0,1,2"]) == 1
    assert [config.seed for config in recorder.configs] == [0, 1, 2]
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "error: out of luck\n" in printed
    assert printed.endswith(
        "error: 1 of 3 runs of the sweep failed:\nerror:   recipe=taylorfo_resnet seed=1: out of luck\n"
    )


def test_a_failed_run_is_one_line(here: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: DictConfig) -> None:
        raise JobError("out of luck")

    recorder.fail = fail
    assert main(["run", TAYLOR]) == 1
    assert capsys.readouterr().err == "error: out of luck\n"


def test_a_bug_in_the_user_s_code_shows_its_traceback(
    here: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    def their_loop(config: DictConfig) -> None:
        raise ZeroDivisionError("theirs")

    recorder.fail = their_loop
    assert main(["run", TAYLOR]) == 1
    printed = capsys.readouterr().err
    assert "in their_loop" in printed
    assert printed.endswith("ZeroDivisionError: theirs\n")


def test_smoke_is_no_override_and_has_a_folder_of_its_own(here: Path, recorder: Recorder) -> None:
    assert main(["run", TAYLOR, "--smoke"]) == 0
    assert recorder.smoke == [True]
    assert [path.name for path in Path("runs").iterdir()] == [f"{Path(compose([TAYLOR]).run_dir).name}-smoke"]


def test_the_folder_can_be_given(here: Path, recorder: Recorder) -> None:
    assert main(["run", TAYLOR, "run_dir=out/mine"]) == 0
    assert recorder.configs[0].run_dir == "out/mine"
    assert (here / "out" / "mine").is_dir()
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [TAYLOR, "sed=1"],
        ["taylorf_resnet"],
        [TAYLOR, "compressor=taylorf"],
        [TAYLOR, "compressor.targets.convs.sparse_ratio=7.5"],
        [TAYLOR, "seed=1,2"],
        ["-m", TAYLOR, "seed=1,one"],
        ["-m", "recipe=taylorfo_resnet,taylorf_resnet"],
        [TAYLOR, "--config-dir", "nowhere"],
        [],
    ],
)
def test_wrong_input_writes_nothing_and_exits_with_2(
    here: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["run", *arguments]) == 2
    assert recorder.configs == []
    assert list(here.iterdir()) == []
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert all(line.startswith("error: ") for line in printed.err.splitlines())


def test_all_errors_of_all_points_are_shown_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", TAYLOR, "seed=one,two", "optimizer.lrr=1"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert sum("takes no 'lrr'" in line for line in printed) == 1
    assert sum("'one'" in line for line in printed) == 1


def test_cfg_prints_the_config_and_runs_nothing(
    here: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", TAYLOR, "--cfg", "job", "--resolve"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert isinstance(printed, DictConfig)
    assert printed.model.num_classes == 10
    assert main(["run", TAYLOR, "--cfg=job", "--package=optimizer", "optimizer=adam"]) == 0
    assert "_target_: torch.optim.Adam" in capsys.readouterr().out
    assert main(["run", TAYLOR, "--info", "searchpath"]) == 0
    assert recorder.configs == []
    assert list(here.iterdir()) == []


def test_the_user_s_config_dir_wins(here: Path, recorder: Recorder) -> None:
    (here / "own" / "optimizer").mkdir(parents=True)
    (here / "own" / "optimizer" / "sgd.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.75\nparam_groups: []\n")
    assert main(["run", TAYLOR, "--config-dir", "own"]) == 0
    assert recorder.configs[0].optimizer.lr == 0.75


def test_options_that_can_run_code_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.pickle").write_bytes(b"cposix\nsystem\n(S'touch hacked'\ntR.")
    assert main(["run", "--experimental-rerun", "config.pickle"]) == 2
    assert not (here / "hacked").exists()
    assert capsys.readouterr().err.startswith("error: --experimental-rerun is refused")
