"""The documents are true: settings and their defaults, options, links, recipes and programs that they show."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from safetensors.torch import save_model
from torch import Tensor, nn

from nnicompress.checks.recipe import check_recipe
from nnicompress.config.schema import COMPRESSORS, NODES, PARTS, HeadSettings
from nnicompress.evaluators.settings import ENGINES
from nnicompress.graph import capture, find_channel_groups, groups, rules
from nnicompress.graph.rules import RULES
from nnicompress.models.resnet import resnet20
from nnicompress.paths import find_groups
from nnicompress.pipeline.settings import STAGES, ExportSettings, RuntimeSettings
from nnicompress.pruning.importance import IMPORTANCES
from nnicompress.pruning.settings import ScheduleSettings, TargetSettings
from nnicompress.report.settings import ExpectedSettings
from nnicompress.settings import Settings
from nnicompress.trust import EXTRAS

REPOSITORY = Path(__file__).resolve().parents[2]
README, RECIPES = REPOSITORY / "README.md", REPOSITORY / "docs" / "recipes.md"
DOCUMENTS = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words behind it, its text."""

    document: Path
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the reader is told to write."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), None)


def blocks(document: Path) -> list[Block]:
    found = re.findall(r"^```(\w+)(.*)\n((?s:.*?))^```$", document.read_text(), re.MULTILINE)
    return [Block(document, language, tuple(words.split()), text) for language, words, text in found]


def tables(kind: str) -> dict[str, list[list[str]]]:
    """The cells of each table of the reference that is marked `<!-- kind: what -->`, by what it is of."""
    marked = re.findall(rf"^<!-- {kind}: (.+) -->\n\|.*\n\|.*\n((?:\|.*\n)+)", RECIPES.read_text(), re.MULTILINE)
    return {
        what: [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows.splitlines()]
        for what, rows in marked
    }


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def settings_classes() -> dict[str, type[Settings]]:
    """Every settings class that a recipe can reach."""
    found: dict[str, type[Settings]] = {}

    def visit(annotation: Any) -> None:
        is_settings = isinstance(annotation, type) and issubclass(annotation, Settings) and annotation is not Settings
        if is_settings and annotation.__name__ not in found:
            found[annotation.__name__] = annotation
            for inner in (*annotation.__mro__[1:], *(field.annotation for field in annotation.model_fields.values())):
                visit(inner)
        for argument in get_args(annotation):
            visit(argument)

    for root in (*STAGES.values(), *COMPRESSORS.values(), *ENGINES.values(), RuntimeSettings, ExpectedSettings):
        visit(root)
    visit(ExportSettings)
    return {name: cls for name, cls in found.items() if own_fields(cls)}


def own_fields(cls: type[Settings]) -> dict[str, Any]:
    """The fields that a class does not inherit."""
    inherited = {name for base in cls.__mro__[1:] if issubclass(base, BaseModel) for name in base.model_fields}
    return {name: field for name, field in cls.model_fields.items() if name not in inherited}


def written(field: Any) -> str:
    """A default as the reference writes it."""
    if field.is_required():
        return "required"
    return f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    if isinstance(value, Settings):
        return f"{{name: {value.name}}}" if hasattr(value, "name") else "{}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    assert value is not PydanticUndefined
    return str(value)


def test_every_settings_class_has_its_table() -> None:
    classes = settings_classes()
    assert len(classes) >= 15
    documented = {name for what in tables("settings") for name in what.split()}
    assert documented == set(classes)


@pytest.mark.parametrize("what", tables("settings"))
def test_a_table_has_each_setting_with_its_default(what: str) -> None:
    first, *others = (settings_classes()[name] for name in what.split())
    assert all(set(other.model_fields) == set(first.model_fields) for other in others)
    rows = tables("settings")[what]
    assert all(len(row) == 4 for row in rows)
    assert {names(row[0])[0]: row[2] for row in rows} == {
        name: written(field) for name, field in own_fields(first).items()
    }


@pytest.mark.parametrize("what", tables("settings"))
def test_a_table_has_the_choices_of_each_setting(what: str) -> None:
    cls = settings_classes()[what.split()[0]]
    for row in tables("settings")[what]:
        choices = set(_choices(cls.model_fields[names(row[0])[0]].annotation))
        assert choices <= set(names(row[1])), row


def _choices(annotation: Any) -> Iterator[str]:
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        yield from _choices(argument)


def test_the_top_level_keys() -> None:
    (rows,) = tables("keys").values()
    listed = [names(row[0])[0] for row in rows]
    assert sorted(listed) == sorted(["defaults", *HeadSettings.model_fields, *NODES, *PARTS])


def test_every_shipped_option_is_listed() -> None:
    listed = {
        group: sorted(name for row in rows for name in names(row[0])) for group, rows in tables("options").items()
    }
    assert listed == {group: sorted(options) for group, options in find_groups().items()}


@pytest.mark.parametrize("group", tables("options"))
def test_every_key_of_a_listed_option_is_one(group: str) -> None:
    """The keys named beside `model`, `data`, `optimizer` and `scheduler` stand in the options' files."""
    if group not in NODES:
        return
    for row in tables("options")[group]:
        for option in names(row[0]):
            text = find_groups()[group][option].read_text()
            for key in names(row[1]):
                assert re.search(rf"^{key}:", text, re.MULTILINE) or key in EXTRAS.values(), (option, key)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!\w+:)([^)#]+)[^)]*\)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_named_files_of_the_package_exist(document: Path) -> None:
    """What stands in backquotes and looks like a file of the repository is one."""
    mentioned = re.findall(
        r"`((?:nnicompress|conf|recipes|tests|benchmarks|docs)/[\w./]*\.(?:py|yaml|md|j2))`", document.read_text()
    )
    assert [name for name in mentioned if "NAME" not in name and not (REPOSITORY / name).exists()] == []


def test_what_the_architecture_page_names_is_in_the_code() -> None:
    text = re.sub(r"^```(?s:.*?)^```$", "", (REPOSITORY / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    sources = [*(REPOSITORY / "nnicompress").rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]
    code = "\n".join(file.read_text() for file in sources if file != Path(__file__))
    identifiers = {word for name in names(text) for word in re.findall(r"\b[A-Za-z_]{4,}\b", name) if "/" not in name}
    elsewhere = {"sparse_threshold", "internal_metric_block", "apply_method", "cummax", "instantiate"}
    assert {word for word in identifiers - elsewhere if not re.search(rf"\b{word}\b", code)} == set()
    for name in re.findall(r"(\w[\w/]*\.py)\b", text):
        assert "NAME" in name or any(str(file).endswith(f"/{name}") for file in sources), name


def test_the_rule_that_the_architecture_page_adds_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [block.text for block in blocks(REPOSITORY / "docs" / "architecture.md") if "@rule(" in block.text]
    monkeypatch.setattr(rules, "RULES", dict(RULES))
    monkeypatch.setattr(groups, "RULES", rules.RULES)
    (name,) = re.findall(r'@rule\("(\w+)"\)', text)
    assert name not in RULES, "the package has it by now: show another"
    exec(f"from __future__ import annotations\n{text}", {"rule": rules.rule, "argument": rules.argument})
    found = {}
    for dim in (1, 3):
        captured = capture(RunningMaximum(dim).eval(), (torch.randn(5, 3, 6, 7),))
        found[dim] = [width.name for width in find_channel_groups(captured).widths]
    assert found == {1: ["second"], 3: ["first", "second"]}


class RunningMaximum(nn.Module):
    """The running maximum over channels (`dim` 1) or along the image between two convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(torch.cummax(self.first(x), self.dim).values))


def complete(document: Path) -> list[Block]:
    return [block for block in blocks(document) if block.language == "yaml" and "complete" in block.words]


def write_files(folder: Path) -> None:
    """The modules that the documents tell their reader to write, and the recipe of the README."""
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.file is not None and (block.language == "python" or document == README):
                (folder / block.file).write_text(block.text)


OWN_MODULES = ("my_model", "my_lightning", "my_trainer")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in OWN_MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    write_files(tmp_path)
    return tmp_path


def test_there_are_recipes_and_programs_to_check() -> None:
    assert len(complete(README)) == 1 and len(complete(RECIPES)) == 3
    assert len([block for block in blocks(README) if "runnable" in block.words]) == 2
    assert [block.file for block in blocks(README) if block.file] == ["my_model.py", "mine.yaml"]


@pytest.mark.parametrize("number", range(sum(len(complete(document)) for document in DOCUMENTS)))
def test_complete_recipes_are_right(number: int, here: Path) -> None:
    block = [block for document in DOCUMENTS for block in complete(document)][number]
    save_model(resnet20(num_classes=10, in_channels=1), str(here / "my.safetensors"))
    (here / "shown.yaml").write_text(block.text)
    before = list(sys.path)
    try:
        _, report = check_recipe([f"recipe={here}/shown.yaml"])
    finally:
        sys.path[:] = before
        for name in OWN_MODULES:
            sys.modules.pop(name, None)
    assert report.targets and report.recipe == "shown"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_programs_run(number: int, tmp_path: Path) -> None:
    write_files(tmp_path)
    block = [block for block in blocks(README) if "runnable" in block.words][number]
    (tmp_path / "program.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


FROM_NNI = REPOSITORY / "docs" / "from-nni.md"


def first_cells(kind: str) -> list[list[str]]:
    """The names in code of the first two cells of each row of the marked table of the page on NNI."""
    (rows,) = re.findall(rf"^<!-- {kind}: nni -->\n\|.*\n\|.*\n((?:\|.*\n)+)", FROM_NNI.read_text(), re.MULTILINE)
    return [row.split("|")[1:3] for row in rows.splitlines()]


def test_what_the_page_on_nni_says_is_kept_is_kept() -> None:
    kept = [name for cells in first_cells("settings") for name in re.findall(r"`(\w+)`", cells[0])]
    assert len(kept) == 15 and set(kept) == set(TargetSettings.model_fields)


def test_where_the_page_on_nni_sends_its_readers_there_is_something() -> None:
    cells = " ".join(cells[1] for cells in first_cells("names"))
    presets = re.findall(r"`compressor=(\w+)`", cells)
    assert len(presets) == 13 and set(presets) <= set(find_groups()["compressor"])
    schedules = re.findall(r"\{name: (\w+)\}", cells)
    assert set(schedules) <= set(get_args(ScheduleSettings.model_fields["name"].annotation)) and len(schedules) == 2
    for dotted in re.findall(r"`(nnicompress(?:\.\w+)+)", cells):
        module, _, name = dotted.rpartition(".")
        assert hasattr(importlib.import_module(module), name), dotted


@pytest.mark.slow
def test_the_program_of_the_page_on_nni_makes_a_smaller_model_that_trains() -> None:
    (program,) = [block.text for block in blocks(FROM_NNI) if "runnable" in block.words]
    found: dict[str, Any] = {}
    exec(compile(program, str(FROM_NNI), "exec"), found)
    before, after = (sum(p.numel() for p in found[name].parameters()) for name in ("model", "compact"))
    assert after < 0.4 * before
    with torch.no_grad():
        outputs = [found[name].eval()(found["inputs"][0][0][0]) for name in ("model", "compact")]
    assert not torch.allclose(*outputs)  # it was the compact one that was fine-tuned


def test_the_page_on_pruning_has_every_importance() -> None:
    text = (REPOSITORY / "docs" / "pruning.md").read_text()
    (rows,) = re.findall(r"^<!-- table: importance -->\n\|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert sorted(name for row in rows.splitlines() for name in names(row.split("|")[1])) == sorted(IMPORTANCES)
