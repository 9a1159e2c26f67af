"""Models of other libraries: transformers for real, and what a user reads where a library or a name is wrong."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from nnicompress.errors import ConfigError, UserError
from nnicompress.models.libraries import library, timm_model, torchvision_model, transformers_model

SMALL_RESNET = {
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "num_labels": 10,
}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small_resnet_parameters() -> int:
    embedder = 1 * 8 * 49 + 2 * 8
    first = 2 * (8 * 8 * 9 + 2 * 8)
    second = 8 * 16 * 9 + 2 * 16 + 16 * 16 * 9 + 2 * 16 + 8 * 16 + 2 * 16
    return embedder + first + second + 16 * 10 + 10


def test_an_architecture_from_a_config():
    model = transformers_model("ResNetForImageClassification", SMALL_RESNET)
    assert count(model) == small_resnet_parameters()
    assert model(torch.randn(2, 1, 32, 32)).logits.shape == (2, 10)


def test_an_auto_class_builds_the_same():
    model = transformers_model("AutoModelForImageClassification", {"model_type": "resnet", **SMALL_RESNET})
    assert type(model).__name__ == "ResNetForImageClassification"
    assert count(model) == small_resnet_parameters()


def test_one_output_is_the_field():
    model = transformers_model("ResNetForImageClassification", SMALL_RESNET, output="logits").eval()
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(model(images), model.model(images).logits)


def test_a_text_model():
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers_model("BertForSequenceClassification", {**config, "vocab_size": 30, "num_labels": 3})
    assert model(input_ids=torch.randint(30, (2, 5))).logits.shape == (2, 3)


def test_a_local_folder_restores_the_weights(tmp_path):
    saved = transformers_model("ResNetForImageClassification", SMALL_RESNET).eval()
    saved.save_pretrained(tmp_path)
    loaded = transformers_model("ResNetForImageClassification", pretrained=str(tmp_path), output="logits").eval()
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded(images), saved(images).logits)

    with pytest.raises(ConfigError, match="ignore_mismatched_sizes"):
        transformers_model("ResNetForImageClassification", {"num_labels": 4}, pretrained=str(tmp_path))
    other_head = transformers_model(
        "ResNetForImageClassification", {"num_labels": 4}, pretrained=str(tmp_path), ignore_mismatched_sizes=True
    )
    assert other_head(images).logits.shape == (2, 4)
    assert torch.equal(
        other_head.resnet.embedder.embedder.convolution.weight, saved.resnet.embedder.embedder.convolution.weight
    )

    with pytest.raises(ConfigError, match="holds a 'resnet', and ViTForImageClassification is 'vit'"):
        transformers_model("ViTForImageClassification", pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (("ResNetForImageClasification",), "model.architecture", "did you mean 'ResNetForImageClassification'"),
        (("ResNetConfig",), "model.architecture", "no model class"),
        (("AutoModelForImageClassification", {}), "model.config.model_type", "serves many models"),
        (("AutoModelForImageClassification", {"model_type": "resnett"}), "model.config.model_type", "'resnet'"),
        (("ResNetForImageClassification", {"model_type": "vit"}), "model.config.model_type", "contradicts"),
        (("ResNetForImageClassification", {"hiden_sizes": [8]}), "model.config.hiden_sizes", "'hidden_sizes'"),
        (("ResNetForImageClassification", {"hidden_sizes": "big"}), "model.config", "hidden_sizes"),
        (("ResNetForImageClassification", {"layer_type": "big"}), "model.config", "basic,bottleneck"),
        (("ResNetForImageClassification", None, "./nowhere"), "model.pretrained", "no folder './nowhere'"),
    ],
)
def test_wrong_settings_are_one_line(arguments, key, message):
    with pytest.raises(ConfigError) as caught:
        transformers_model(*arguments)
    assert caught.value.key == key
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "build"), [("torchvision", torchvision_model), ("timm", timm_model)])
def test_a_missing_library_is_named_with_its_extra(name, build):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=rf"needs {name}, which is not installed: pip install 'nnicompress\[vision\]'"):
        build("resnet18")


@pytest.mark.parametrize(("name", "build"), [("torchvision", torchvision_model), ("timm", timm_model)])
def test_a_library_that_is_there_builds_and_checks_names(name, build):
    pytest.importorskip(name, exc_type=Exception)
    assert count(build("resnet18", num_classes=1000)) == 11_689_512
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build("resnet188")
    with pytest.raises(ConfigError, match="num_clases"):
        build("resnet18", num_clases=3)


def test_a_library_that_does_not_fit_torch(tmp_path, monkeypatch):
    """What PyPI's torchvision does beside a torch for CPUs."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "timm.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torchvision", "timm"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    with pytest.raises(UserError, match="cannot be imported .*nms does not exist.*does it fit this torch"):
        library("torchvision")
    with pytest.raises(UserError, match="timm is installed, but it needs a_module_that_nobody_has"):
        library("timm")
