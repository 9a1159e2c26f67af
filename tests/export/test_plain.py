"""`model/`: written, loaded, trained on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nnicompress.errors import TrustError, UserError
from nnicompress.export import standalone
from nnicompress.export.plain import load, save_plain
from nnicompress.models.mlp import mlp
from nnicompress.quantization.freeze import freeze
from nnicompress.trace import Traced
from nnicompress.trust import resolve
from tests.export.networks import tried_alone
from tests.quantization.by_hand import network, other_inputs, simulate

ARGUMENTS = {"num_classes": 3, "in_channels": 1, "image_size": 3, "hidden": [5, 4]}
RECIPE = {"_target_": "nnicompress.models.mlp.mlp", **ARGUMENTS}


def saved(folder: Path) -> nn.Module:
    build = Traced(mlp, (), ARGUMENTS)
    model = build.build().eval()
    save_plain(model, build, RECIPE, ((torch.randn(2, 1, 3, 3),), {}), folder / "model")
    return model


def test_the_loaded_model_is_the_saved_one_and_trains(tmp_path: Path) -> None:
    model = saved(tmp_path)
    for run in (tmp_path, str(tmp_path / "model")):
        loaded = load(run)
        x = torch.randn(4, 1, 3, 3)
        assert torch.equal(loaded(x), model(x))
    loaded(x).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_a_folder_without_a_model_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no model"):
        load(tmp_path)


def test_a_description_cannot_name_just_anything(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model/description.json"
    description = json.loads(path.read_text())
    description["model"] = {"_target_": "os.system", "command": "true"}
    path.write_text(json.dumps(description))
    with pytest.raises(TrustError):
        load(tmp_path)


def test_positional_arguments_of_the_recipe_are_passed(tmp_path: Path) -> None:
    recipe = {"_target_": "nnicompress.models.mlp.mlp", "_args_": [3, 1, 3], "hidden": [5, 4]}
    build = Traced(mlp, (3, 1, 3), {"hidden": [5, 4]})
    model = build.build().eval()
    save_plain(model, build, recipe, ((torch.randn(2, 1, 3, 3),), {}), tmp_path / "model")
    x = torch.randn(4, 1, 3, 3)
    assert torch.equal(load(tmp_path)(x), model(x))


def test_the_loader_is_the_one_that_was_tested(tmp_path: Path) -> None:
    saved(tmp_path)
    assert (tmp_path / "model/load.py").read_bytes() == Path(standalone.__file__).read_bytes()
    assert (tmp_path / "model/mlp.py").read_bytes() == Path(str(sys.modules[mlp.__module__].__file__)).read_bytes()


def test_a_model_of_the_users_in_one_file_is_loaded_from_a_copy_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from torch.nn import Linear\nclass Net(Linear):\n    def __init__(self, n):\n        super().__init__(n, 2)"
    (tmp_path / "net_of_mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    recipe = {"_target_": "net_of_mine.Net", "n": 3}
    build = Traced(resolve("net_of_mine.Net"), (), {"n": 3})
    model = build.build().eval()
    save_plain(model, build, recipe, ((torch.randn(2, 3),), {}), tmp_path / "model")
    (tmp_path / "net_of_mine.py").unlink()
    said = subprocess.run(
        [sys.executable, "load.py"], cwd=tmp_path / "model", capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("Net: 8 parameters")


def test_a_quantized_model_loads_without_this_library(tmp_path: Path) -> None:
    model, inputs = network("bert")
    frozen = freeze(simulate(model, inputs), inputs)
    save_plain(frozen, Traced(mlp, (), ARGUMENTS), RECIPE, inputs, tmp_path / "model")
    other = other_inputs(inputs, 3, 4)[1]
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(**other)["logits"], frozen(**other)["logits"])
    found = tried_alone(tmp_path, tmp_path / "model")
    assert found == {"model": {"class": "FrozenModel", "difference": 0.0}}
    shown = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "model/load.py")], capture_output=True, text=True, check=True
    )
    assert "FrozenModel: " in shown.stdout and "none trainable" in shown.stdout
    # Three bytes less a weight, and a scale more a channel.
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "model/model.safetensors").stat().st_size < 4 * parameters - 2.5 * linear + 10_000
