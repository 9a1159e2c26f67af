"""Dependencies: pinned where tested, within their ranges, and every package that is imported is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_installed_in_its_range() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonical(name): version for name, version in pins.items()}
    for text in [*PROJECT["dependencies"], *EXTRAS["export"], *EXTRAS["sweep"], *EXTRAS["dev"]]:
        requirement = Requirement(text)
        version = pinned[canonical(requirement.name)]
        assert requirement.specifier.contains(version), text
        assert metadata.version(requirement.name).split("+")[0] == version, f"{requirement.name}: tested with another"


def imported_packages(folder: Path) -> set[str]:
    """Top-level names of all that the Python files of `folder` import, the standard library left out."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).split(".")[0])
    return names - sys.stdlib_module_names - {"nnicompress", "tests"}


def test_every_package_that_is_imported_is_declared() -> None:
    distributions = metadata.packages_distributions()
    optional = [*EXTRAS["export"], *EXTRAS["vision"], *EXTRAS["sweep"]]
    for folder, texts in (
        ("nnicompress", [*PROJECT["dependencies"], *optional]),
        ("tests", [*PROJECT["dependencies"], *optional, *EXTRAS["dev"]]),
    ):
        declared = {canonical(Requirement(text).name) for text in texts}
        for name in imported_packages(REPOSITORY / folder):
            owners = {canonical(owner) for owner in distributions.get(name, [name])} - {"nnicompress"}
            assert owners & declared, f"{folder} imports {name}, which pyproject.toml does not declare"
