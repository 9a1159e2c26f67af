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
    **{
        f"compressor/{name}": ["~stages.shrink"]
        for name in ("level", "lamp", "wanda", "movement", "soft_movement", "lottery_ticket", "two_of_four")
    },
    "model/vit": ["compressor.targets.convs.op_types=[Linear]"],
    "evaluator/transformers": ["model=transformers"],
    "model/bert": [
        "data=text_classification",
        "data.source.train=reviews.csv",
        "data.text=sentence",
        "data.tokenizer=bytes",
        "data.vocab_size=260",
        "data.num_classes=2",
        "compressor.targets.convs.op_types=[Linear]",
    ],
    "model/gpt2": ["data=pydoc_topics", "evaluator=transformers", "compressor.targets.convs.op_types=[Conv1D]"],
    "model/llama": ["data=pydoc_topics", "evaluator=transformers", "compressor.targets.convs.op_types=[Linear]"],
    "data/pydoc_topics": ["model=gpt2", "evaluator=transformers", "compressor.targets.convs.op_types=[Conv1D]"],
}
# Local files that a test of the data itself writes: tests/data. The first key that the option asks for.
NEEDS_FILES = {
    "data/cifar10": r"data\.root",
    "data/imagefolder": r"data\.root",
    "data/image_table": r"data\.source\.train",
    "data/text_classification": r"data\.source\.train",
    "data/token_classification": r"data\.source\.train",
    "data/causal_lm": r"data\.source\.train",
    "data/masked_lm": r"data\.source\.train",
}
# What a recipe for anybody's file is given in a test.
GIVEN = {
    "taylorfo_bert_glue": {
        "data.source.train": "reviews.csv",
        "data.num_classes": 2,
        "data.tokenizer": "bytes",
        "model.pretrained": "null",
        "+model.config.model_type": "bert",
        "+model.config.vocab_size": 260,
        "+model.config.num_hidden_layers": 1,
    }
}
QUANTIZERS = {"qat", "ptq", "lsq", "lsq_plus", "dorefa", "bnn"}
NEEDS_PACKAGE = {"model/timm": "timm", "model/torchvision": "torchvision"}


def test_the_number_of_recipes_and_options() -> None:
    assert len(RECIPES) == 23
    counts = {
        group: sum(option.startswith(f"{group}/") for option in OPTIONS) for group in {o.split("/")[0] for o in OPTIONS}
    }
    assert counts == {
        "model": 13,
        "data": 9,
        "optimizer": 4,
        "scheduler": 6,
        "evaluator": 3,
        "compressor": 23,
        "export": 3,
        "runtime": 3,
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_begins_with_a_summary_and_its_command_and_is_right(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, *_ = recipe.read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{20,110}", first)
    assert second == f"# nnicompress run recipe={recipe.stem}"
    write_reviews(Path("reviews.csv"))
    given = [f"{key}={value}" for key, value in GIVEN.get(recipe.stem, {}).items()]
    composed = compose_with_origin([f"recipe={recipe.stem}", *given])
    report = check(composed.config, composed.origin)
    assert report.targets
    assert report.stages[-1].name == "evaluate"


def write_reviews(file: Path) -> None:
    """Forty sentences, as GLUE's SST-2 has them."""
    rows = "".join(f"a {'fine' if number % 2 else 'dull'} film number {number},{number % 2}\n" for number in range(40))
    file.write_text(f"sentence,label\n{rows}")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_begins_with_a_summary(option: str) -> None:
    assert 4 <= len(summary(shipped("conf") / f"{option}.yaml")) <= 110


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in NEEDS_FILES])
def test_an_option_is_right(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_reviews(Path("reviews.csv"))
    group, name = option.split("/")
    composed = compose_with_origin(["recipe=taylorfo_resnet", f"{group}={name}", *SETTINGS.get(option, [])])
    package = NEEDS_PACKAGE.get(option)
    if package is not None and importlib.util.find_spec(package) is None:
        with pytest.raises(InputErrors, match=f"this model needs {package}, which is not installed: pip install"):
            check(composed.config, composed.origin)
    elif option == "runtime/cuda" and not torch.cuda.is_available():
        with pytest.raises(InputErrors, match="runtime.device: device 'cuda' is not available here; use auto or cpu"):
            check(composed.config, composed.origin)
    elif group == "compressor" and name in QUANTIZERS:
        with pytest.raises(InputErrors, match="compressor.kind: prune takes a pruner, and this is a quantizer"):
            check(composed.config, composed.origin)
    else:
        report = check(composed.config, composed.origin)
        assert report.num_parameters > 1000


@pytest.mark.parametrize("option", sorted(NEEDS_FILES))
def test_data_of_local_files_says_what_it_needs(option: str) -> None:
    composed = compose_with_origin(["recipe=taylorfo_resnet", option.replace("/", "=")])
    with pytest.raises(
        InputErrors, match=f"{NEEDS_FILES[option]}: a value is required; pass {NEEDS_FILES[option]}=VALUE"
    ):
        check(composed.config, composed.origin)


@pytest.mark.parametrize("preset", ["taylorfo", "l1", "random"])
def test_presets_differ_only_in_what_they_say(preset: str) -> None:
    composed = compose_with_origin(["recipe=taylorfo_resnet", f"compressor={preset}"])
    names = {"taylorfo": "taylor", "l1": "l1", "random": "random"}
    assert composed.config.compressor.importance.name == names[preset]
    assert composed.config.compressor.targets.convs.sparse_ratio == 0.4
