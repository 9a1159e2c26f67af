"""docs/python.md is the public interface: the names of `__all__`, their signatures, and examples that run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import nnicompress

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def sections() -> dict[str, str]:
    """The text of each section, by the name in its title."""
    parts = re.split(r"^## `(\w+)`$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def block(text: str, kind: str) -> str | None:
    found = re.findall(rf"^```python {kind}\n((?s:.*?))^```$", text, re.MULTILINE)
    assert len(found) <= 1
    return found[0].strip() if found else None


class Bare:
    """A default that is a function, shown by its name."""

    def __init__(self, value: Any) -> None:
        self.name = value.__name__

    def __repr__(self) -> str:
        return str(self.name)


def signature(name: str) -> str:
    """The signature without types."""
    own = inspect.signature(getattr(nnicompress, name))
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=Bare(parameter.default) if inspect.isfunction(parameter.default) else parameter.default,
        )
        for parameter in own.parameters.values()
    ]
    return f"{name}{own.replace(parameters=parameters, return_annotation=inspect.Signature.empty)}"


def test_each_public_name_has_one_section_and_there_are_no_others() -> None:
    text = DOCUMENT.read_text()
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sorted(titles) == sorted(f"`{name}`" for name in nnicompress.__all__)


@pytest.mark.parametrize("name", sorted(set(nnicompress.__all__) - {"__version__"}))
def test_a_section_shows_the_signature_what_it_does_and_an_example(name: str) -> None:
    text = sections()[name]
    assert block(text, "signature") == signature(name)
    assert name in (block(text, "example") or "")
    prose = re.sub(r"^```(?s:.*?)^```$", "", text, flags=re.MULTILINE).strip()
    assert len(prose) > 80 and prose.endswith(".")


def test_the_names_are_those_that_the_package_has() -> None:
    assert len(nnicompress.__all__) == len(set(nnicompress.__all__)) <= 15, "the public interface is a short list"
    assert set(nnicompress.__all__) <= set(dir(nnicompress))
    assert all(getattr(nnicompress, name).__doc__ for name in nnicompress.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'shrunk'"):
        nnicompress.shrunk  # noqa: B018


@pytest.mark.slow
def test_the_examples_are_one_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n\n".join(block(text, "example") or "" for text in sections().values())
    found: dict[str, Any] = {}
    exec(compile(program, str(DOCUMENT), "exec"), found)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == nnicompress.__version__
    assert printed.splitlines()[1].startswith("level_mlp ")
    assert "of the selected channels (asked: 50.0%)" in printed
    assert found["proof"].max_relative_difference < 1e-9
    before, after = (sum(p.numel() for p in found[name].parameters()) for name in ("model", "compact"))
    assert after < before / 2
