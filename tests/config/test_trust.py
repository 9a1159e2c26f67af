"""What a config may call, and what it may not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnicompress import trust
from nnicompress.errors import ConfigError, TrustError

Package = Callable[[str, str], None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(trust.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path.parent)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("torch.nn.CrossEntropyLoss", torch.nn.CrossEntropyLoss),
        ("torch.optim.SGD", torch.optim.SGD),
        ("torch.optim.lr_scheduler.OneCycleLR", torch.optim.lr_scheduler.OneCycleLR),
        ("torch.tensor", torch.tensor),
        ("torch.nn.functional.cross_entropy", torch.nn.functional.cross_entropy),
    ],
)
def test_the_parts_of_torch_that_build_things_are_allowed(target: str, found: Any) -> None:
    assert trust.resolve(target) is found


def test_metrics_and_transformers_models_are_allowed() -> None:
    import torchmetrics
    import transformers

    assert (
        trust.resolve("torchmetrics.classification.MulticlassAccuracy")
        is torchmetrics.classification.MulticlassAccuracy
    )
    assert trust.resolve("transformers.BertForSequenceClassification") is transformers.BertForSequenceClassification
    assert trust.resolve("transformers.AutoModel.from_config") == transformers.AutoModel.from_config


@pytest.mark.parametrize(
    "target",
    [
        "transformers.Trainer",
        "transformers.TrainingArguments",
        "transformers.EarlyStoppingCallback",
        "transformers.DataCollatorWithPadding",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.callbacks.EarlyStopping",
    ],
)
def test_trainers_and_their_parts_are_allowed(target: str) -> None:
    assert trust.resolve(target).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.nn.init.torch.hub.load",  # every module's own imports hang below its name
        "torch.nn.modules.module.torch.load",
        "torch.optim.optimizer.torch.save",
        "torch.optim.lr_scheduler.warnings.warn",
        "torch.optim.lr_scheduler.math.sqrt",
        "torch.nn.Module.load_state_dict",
        "torch.utils.cpp_extension.load",
        "torchmetrics.functional.accuracy",
        "transformers.pipeline",
        "transformers.AutoTokenizer.from_pretrained",
        "transformers.trainer.os.system",
        "transformers.integrations.integration_utils.importlib.import_module",
        "os.system",
        "subprocess.run",
        "shutil.copyfile",
        "builtins.exec",
        "builtins.open",
        "pathlib.Path.write_text",
        "numpy.load",
        "hydra.utils.get_method",
        "nnicompress.trust.allow",
        "nnicompress.errors.did_you_mean",
        "nnicompress.models.resnet.torch.load",
    ],
)
def test_what_runs_or_writes_anything_is_refused(target: str) -> None:
    with pytest.raises(TrustError):
        trust.resolve(target)


@pytest.mark.parametrize(
    "target", ["torch.nn.Linear.__init__.__globals__", "SGD", "torch..nn", "a b.c", "torch.nn.__dict__"]
)
def test_what_is_no_dotted_name_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="is not the dotted name"):
        trust.resolve(target)


def test_a_refused_package_is_not_even_imported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = here / "elsewhere" / "site-packages"
    elsewhere.mkdir(parents=True)
    (elsewhere / "sly_package.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    with pytest.raises(TrustError, match="if you trust the package, add --trust sly_package"):
        trust.resolve("sly_package.model")
    assert "sly_package" not in sys.modules


def test_code_in_the_current_directory_is_allowed_and_what_it_imports_is_not(here: Path) -> None:
    (here / "my_own_model.py").write_text("import os\nfrom torch.nn import Linear\ndef build(): return 5\n")
    assert trust.resolve("my_own_model.build")() == 5
    assert trust.resolve("my_own_model.Linear") is torch.nn.Linear
    with pytest.raises(TrustError, match=r"my_own_model\.os\.system \(it is posix\.system\) may not be called"):
        trust.resolve("my_own_model.os.system")


def test_a_package_in_the_current_directory_is_found_by_its_submodule(here: Path) -> None:
    (here / "my_own_package").mkdir()
    (here / "my_own_package" / "nets.py").write_text("class Net: ...\n")
    assert trust.resolve("my_own_package.nets.Net").__name__ == "Net"


def test_trust_is_given_by_a_block_and_by_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = here / "elsewhere" / "site-packages"
    elsewhere.mkdir(parents=True)
    (elsewhere / "their_nets.py").write_text("from shutil import copyfile\nclass Net: ...\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    with pytest.raises(TrustError):
        trust.resolve("their_nets.Net")
    with trust.allow(["their_nets"]):
        assert trust.resolve("their_nets.Net").__name__ == "Net"
        with pytest.raises(TrustError, match="shutil.copyfile"):
            trust.resolve("their_nets.copyfile")
    with pytest.raises(TrustError):
        trust.resolve("their_nets.Net")
    monkeypatch.setenv(trust.ENVIRONMENT_VARIABLE, "other, their_nets")
    assert trust.resolve("their_nets.Net").__name__ == "Net"


def test_trusting_all_of_torch_still_refuses_what_loads_files() -> None:
    with trust.allow(["torch"]):
        assert trust.resolve("torch.ao.quantization.QuantStub")
        for target in ("torch.load", "torch.hub.load", "torch.jit.load"):
            with pytest.raises(TrustError):
                trust.resolve(target)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("torch.optim.SDG", "optimizer._target_: torch.optim has no 'SDG'; did you mean 'SGD'? (mine.yaml:3)"),
        (
            "torhc.optim.SGD",
            "optimizer._target_: torhc.optim.SGD: there is no module 'torhc', neither installed nor in the current "
            "directory; did you mean 'torch'? (mine.yaml:3)",
        ),
        (
            "timm.create_model",
            "optimizer._target_: timm.create_model needs timm, which is not installed: "
            "pip install 'nnicompress[vision]' (mine.yaml:3)",
        ),
        (
            "torch.nn.init.math",
            "optimizer._target_: torch.nn.init.math is neither a class nor a function (mine.yaml:3)",
        ),
    ],
)
def test_the_lines_a_user_reads(target: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trust.resolve(target, key="optimizer._target_", source="mine.yaml:3")
    assert str(caught.value) == line


def test_a_module_of_the_user_that_fails_says_how(here: Path) -> None:
    (here / "my_broken_model.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="importing my_broken_model failed: ZeroDivisionError: division by zero"):
        trust.resolve("my_broken_model.Net")
