"""The wheel, installed outside the repository, lists and runs the shipped recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel installs it, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("nnicompress-*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def nnicompress(installed: Path, cwd: Path, *arguments: str) -> str:
    """Run the installed package's command line in `cwd`; its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "nnicompress", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_that_is_read_at_run_time_is_in_the_wheel(installed: Path) -> None:
    package = installed / "nnicompress"
    for folder in ("conf", "recipes"):
        shipped = {file.relative_to(REPOSITORY / folder) for file in (REPOSITORY / folder).rglob("*.yaml")}
        assert {file.relative_to(package / folder) for file in (package / folder).rglob("*.yaml")} == shipped
    sources = {
        file.relative_to(REPOSITORY)
        for file in (REPOSITORY / "nnicompress").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {Path("nnicompress/py.typed"), Path("nnicompress/data/digits.npz")} <= sources
    assert {file for file in sources if not (installed / file).is_file()} == set()
    assert not (installed / "conf").exists(), "nothing but the package is at the top level"


def test_it_lists_the_shipped_recipes(installed: Path, tmp_path: Path) -> None:
    listing = nnicompress(installed, tmp_path, "ls")
    for recipe in (REPOSITORY / "recipes").glob("*.yaml"):
        assert f"  {recipe.stem} " in listing


def test_it_composes_a_shipped_recipe(installed: Path, tmp_path: Path) -> None:
    where = nnicompress(installed, tmp_path, "run", "recipe=taylorfo_resnet", "--info", "searchpath")
    assert str(installed) in where and str(REPOSITORY) not in where
    printed = nnicompress(installed, tmp_path, "run", "recipe=taylorfo_resnet", "--cfg", "job", "--resolve")
    assert "_target_: nnicompress.models.resnet.resnet20" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_runs_a_shipped_recipe(installed: Path, tmp_path: Path) -> None:
    nnicompress(installed, tmp_path, "run", "recipe=taylorfo_resnet", "--smoke")
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "report.json").is_file()
    assert "taylorfo_resnet" in nnicompress(installed, tmp_path, "show", str(run))
