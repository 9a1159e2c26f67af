"""The dispatcher: commands, help, exit codes, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nnicompress import cli
from nnicompress.commands import ls
from nnicompress.errors import ConfigError, ExpectationError, InputErrors, JobError

HEAVY = ("torch", "hydra", "omegaconf", "pydantic", "numpy", "rich", "yaml")


def imported_by(*arguments: str) -> set[str]:
    """The packages of HEAVY that a command has imported when it ends."""
    script = (
        "import sys; from nnicompress.cli import main; main(sys.argv[1:]); "
        f"print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ls"],
        ["ls", "compressor"],
        ["run", "--help"],
        ["check", "-h"],
        ["export", "-h"],
        ["compare", "-h"],
        ["completion", "bash"],
    ],
)
def test_help_and_ls_import_nothing_heavy(arguments: list[str]) -> None:
    assert imported_by(*arguments) == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, nnicompress; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split() == []
    )


def test_completing_commands_and_recipes_imports_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "nnicompress run recipe=t")
    assert imported_by("completion", "query") == set()


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ConfigError("no", key="a.b", source="x.yaml:3"), 2, "error: a.b: no (x.yaml:3)\n"),
        (InputErrors([ConfigError("one"), ConfigError("two")]), 2, "error: one\nerror: two\n"),
        (JobError("failed"), 1, "error: failed\n"),
        (ExpectationError("missed"), 3, "error: missed\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_each_error_has_its_exit_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, printed: str
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(ls, "main", fail)
    assert cli.main(["ls"]) == code
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_traceback_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv("NNICOMPRESS_TRACEBACK", "1")
    assert cli.main(["ls", "nothing", *(["--traceback"] if by == "option" else [])]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.splitlines()[-1].startswith("error: no group named 'nothing'")


def test_a_bug_shows_its_traceback_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ls, "main", fail)
    assert cli.main(["ls"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "RuntimeError: a bug" in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lss"], f"no command named 'lss'; did you mean 'ls'? (known: {', '.join(cli.COMMANDS)})"),
        (["taylorfo_resnet"], "'taylorfo_resnet' is not a command; did you mean 'nnicompress run taylorfo_resnet'?"),
        (["recipe=x"], "'recipe=x' is not a command; did you mean 'nnicompress run recipe=x'?"),
        (["--smoke"], "unknown option '--smoke'; options come after the command: nnicompress COMMAND --smoke"),
    ],
)
def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"\n  {command} " in overview
        assert cli.main([command, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: nnicompress {command} ")
    assert cli.main([]) == 2, "a call without a command is an error, with the same text"
    assert capsys.readouterr().out == overview


def test_python_m_nnicompress_and_its_version() -> None:
    from nnicompress import __version__

    done = subprocess.run(
        [sys.executable, "-m", "nnicompress", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"nnicompress {__version__}\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "nnicompress", "ls"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr
