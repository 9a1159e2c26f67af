"""Every shipped recipe and every option of every group is composed and checked."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from nnicompress.checks.recipe import check
from nnicompress.config.compose import compose_with_origin
from nnicompress.errors import InputErrors
from nnicompress.paths import shipped, summary

RECIPES = sorted(shipped("recipes").rglob("*.yaml"))
OPTIONS = sorted(
    file.relative_to(shipped("conf")).with_suffix("").as_posix() for file in shipped("conf").glob("*/*.yaml")
)

# Overrides that make an option fit the demonstration recipe, or small, so that the large models are quick to build.
SETTINGS = {
    "model/resnet18": ["model.width=8", "model.small_images=true"],
    "model/resnet50": ["model.width=8", "model.small_images=true"],
    "model/mobilenet_v2": ["model.width_mult=0.25"],
    "model/vgg16": ["model.width=4", "model.hidden=16"],
    "model/mlp": ["compressor=level", "compressor.targets.weights.op_types=[Linear]", "~stages.shrink"],
    "compressor/level": ["~stages.shrink"],
}
# Local files that a test of the data itself writes: tests/data.
NEEDS_FILES = {"data/cifar10", "data/imagefolder"}
NEEDS_PACKAGE = {"model/timm": "timm", "model/torchvision": "torchvision"}


def test_the_number_of_recipes_and_options() -> None:
    assert len(RECIPES) == 4
    counts = {
        group: sum(option.startswith(f"{group}/") for option in OPTIONS) for group in {o.split("/")[0] for o in OPTIONS}
    }
    assert counts == {
        "model": 9,
        "data": 3,
        "optimizer": 4,
        "scheduler": 6,
        "evaluator": 1,
        "compressor": 6,
        "export": 3,
        "runtime": 3,
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_begins_with_a_summary_and_its_command_and_is_right(recipe: Path) -> None:
    first, second, *_ = recipe.read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{20,110}", first)
    assert second == f"# nnicompress run recipe={recipe.stem}"
    composed = compose_with_origin([f"recipe={recipe.stem}"])
    report = check(composed.config, composed.origin)
    assert report.targets
    assert report.stages[-1].name == "evaluate"


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_begins_with_a_summary(option: str) -> None:
    assert 4 <= len(summary(shipped("conf") / f"{option}.yaml")) <= 110


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in NEEDS_FILES])
def test_an_option_is_right(option: str) -> None:
    group, name = option.split("/")
    composed = compose_with_origin(["recipe=taylorfo_resnet", f"{group}={name}", *SETTINGS.get(option, [])])
    package = NEEDS_PACKAGE.get(option)
    if package is not None and importlib.util.find_spec(package) is None:
        with pytest.raises(InputErrors, match=f"this model needs {package}, which is not installed: pip install"):
            check(composed.config, composed.origin)
    elif option == "runtime/cuda" and not torch.cuda.is_available():
        with pytest.raises(InputErrors, match="runtime.device: device 'cuda' is not available here; use auto or cpu"):
            check(composed.config, composed.origin)
    else:
        report = check(composed.config, composed.origin)
        assert report.num_parameters > 1000


@pytest.mark.parametrize("option", sorted(NEEDS_FILES))
def test_data_of_local_files_says_what_it_needs(option: str) -> None:
    composed = compose_with_origin(["recipe=taylorfo_resnet", option.replace("/", "=")])
    with pytest.raises(
        InputErrors, match=r"data\.root: a value is required; pass data\.root=VALUE \(conf/data/.*yaml:3\)"
    ):
        check(composed.config, composed.origin)


@pytest.mark.parametrize("preset", ["taylorfo", "l1", "random"])
def test_presets_differ_only_in_what_they_say(preset: str) -> None:
    composed = compose_with_origin(["recipe=taylorfo_resnet", f"compressor={preset}"])
    names = {"taylorfo": "taylor", "l1": "l1", "random": "random"}
    assert composed.config.compressor.importance.name == names[preset]
    assert composed.config.compressor.targets.convs.sparse_ratio == 0.4
