"""`load.py` of `model/`: every network, in a process in which nnicompress can't be imported."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnicompress.errors import JobError
from nnicompress.export import standalone
from nnicompress.export.build_node import without_us
from nnicompress.export.plain import save_plain
from nnicompress.models.mlp import mlp
from nnicompress.trace import Traced
from nnicompress.trust import allow
from tests.export.networks import NETWORKS, SHIPPED, save_compact, tried_alone, write_user_code
from tests.zoo import ZOO, random_inputs

TRANSFORMER = {
    "_target_": "nnicompress.models.libraries.transformers_model",
    "architecture": "ResNetForImageClassification",
    "config": {"num_labels": 10, "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "output": "logits",
}


def image_input(shape: tuple[int, ...]) -> Any:
    return ((torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),), {})


@pytest.fixture(scope="module")
def user_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the zoo as the user's own code, importable while the tests of this file run."""
    folder = tmp_path_factory.mktemp("user")
    write_user_code(folder)
    return folder


@pytest.fixture
def importable(user_code: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(user_code))
    return user_code


def zoo_node(name: str) -> dict[str, Any]:
    return {"_target_": "user_zoo.network", "name": name}


def save_zoo(name: str, folder: Path) -> int:
    _, example = ZOO[name]()
    with allow(["user_zoo"]):
        model = save_compact(zoo_node(name), random_inputs(example, 8 if name == "coincidence" else 2, 0), folder)
    return sum(parameter.numel() for parameter in model.parameters())


def assert_whole(found: dict[str, Any], parameters: int) -> None:
    assert found["parameters"] == parameters
    assert found["difference"] < 1e-6
    assert found["trainable"] and found["with_gradient"] and found["changed"] > 0


def test_a_shipped_and_a_users_model_load_without_this_library(importable: Path, tmp_path: Path) -> None:
    node, shape = NETWORKS["resnet20"]
    model = save_compact(node, image_input(shape), tmp_path / "shipped")
    parameters = save_zoo("tied_weights", tmp_path / "users")
    found = tried_alone(importable, tmp_path / "shipped", tmp_path / "users")
    assert_whole(found["shipped"], sum(p.numel() for p in model.parameters()))
    assert_whole(found["users"], parameters)
    assert sorted(file.name for file in (tmp_path / "shipped").iterdir()) == [
        "description.json",
        "example.safetensors",
        "load.py",
        "model.safetensors",
        "resnet.py",
    ]


@pytest.mark.slow
def test_every_network_loads_without_this_library(importable: Path, tmp_path: Path) -> None:
    parameters = {name: save_zoo(name, tmp_path / name) for name in ZOO}
    for name, (node, shape) in {**NETWORKS, "transformers_resnet": (TRANSFORMER, (1, 16, 16))}.items():
        model = save_compact(node, image_input(shape), tmp_path / f"shipped_{name}")
        parameters[f"shipped_{name}"] = sum(p.numel() for p in model.parameters())
    found = tried_alone(importable, *(tmp_path / name for name in parameters))
    assert len(found) == len(ZOO) + len(NETWORKS) + 1 >= 35
    for name, count in parameters.items():
        assert_whole(found[name], count)


def test_the_loader_and_the_shipped_models_need_torch_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "safetensors"}
    assert _imports(Path(standalone.__file__)) <= allowed
    files = sorted(SHIPPED.glob("*.py"))
    alone = [file for file in files if file.stem not in ("__init__", "libraries")]
    assert {file.stem for file in alone} == {"mlp", "mobilenet_v2", "outputs", "resnet", "vgg"}
    for file in alone:
        assert _imports(file) <= allowed - {"safetensors"}, file


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).partition(".")[0])
    return found


def run_script(folder: Path, *code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *code] if code else [sys.executable, "load.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def save_mlp(folder: Path) -> None:
    arguments = {"num_classes": 3, "image_size": 4, "hidden": [6]}
    build = Traced(mlp, (), arguments)
    save_plain(build.build().eval(), build, {"_target_": "nnicompress.models.mlp.mlp", **arguments},
               image_input((1, 4, 4)), folder)  # fmt: skip


def test_as_a_script_it_says_what_it_loaded(tmp_path: Path) -> None:
    save_mlp(tmp_path)
    done = run_script(tmp_path)
    # 16 x 6 + 6 and 6 x 3 + 3
    assert done.stdout.splitlines()[0] == "MLP: 123 parameters, 4 of 4 tensors trainable"
    assert done.stdout.splitlines()[1].startswith("largest difference to the stored output, relative: 0.0e+00")
    imported = run_script(tmp_path, "-c", "from load import load; print(load().training)")
    assert imported.stdout == "False\n", imported.stderr


def test_code_of_the_users_own_is_named_with_what_to_do(importable: Path, tmp_path: Path) -> None:
    save_zoo("layer_scale", tmp_path / "model")
    done = run_script(tmp_path / "model")
    assert done.returncode == 1
    assert done.stderr == (
        "error: the model is built by user_zoo.network, your own code, and there is no module 'user_zoo': put the "
        "folder that holds user_zoo.py (or the package user_zoo) on PYTHONPATH, as in PYTHONPATH=FOLDER python "
        "load.py\n"
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("timm.create_model", "the model is built by timm.create_model: pip install timm"),
        ("json.nothing", "the model is built by json.nothing, and json has no 'nothing'"),
        ("torch.nn.nothing.Net", "and there is no module 'torch.nn.nothing' in torch"),
        ("torch.nn.Linear", r"torch.nn.Linear can't be built as it was: TypeError"),
        ("gone.py:Net", "gone.py is missing"),
    ],
)
def test_a_class_that_can_t_be_had_is_named(target: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(standalone.LoadError, match=message):
        standalone.build({"_target_": target}, tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name, content in (("description.json", "{"), ("model.safetensors", "no"), ("example.safetensors", "")):
        folder = tmp_path / name
        save_mlp(folder)
        (folder / name).write_text(content)
        with pytest.raises(standalone.LoadError, match=f"{name} is damaged"):
            standalone.load(folder)
        (folder / name).unlink()
        with pytest.raises(standalone.LoadError, match=f"holds no model: {name} is missing"):
            standalone.load(folder)


def test_an_output_that_is_not_the_stored_one_is_noticed(tmp_path: Path) -> None:
    save_mlp(tmp_path / "a")
    save_mlp(tmp_path / "b")
    (tmp_path / "b/model.safetensors").rename(tmp_path / "a/model.safetensors")
    with pytest.raises(standalone.LoadError, match="does not give the stored output"):
        standalone.load(tmp_path / "a")


def test_a_model_that_its_own_class_doesn_t_rebuild_is_never_handed_over(tmp_path: Path) -> None:
    build = Traced(mlp, (), {"num_classes": 3, "image_size": 4, "hidden": [6]})
    wrong = {"_target_": "nnicompress.models.mlp.mlp", "num_classes": 3, "image_size": 4, "hidden": [6, 6]}
    with pytest.raises(JobError, match="has other tensors than the stored ones"):
        save_plain(build.build().eval(), build, wrong, image_input((1, 4, 4)), tmp_path)


def test_two_folders_load_in_one_process_and_can_be_pickled(tmp_path: Path) -> None:
    for name in "ab":
        save_mlp(tmp_path / name)
    a, b = (standalone.load(tmp_path / name) for name in "ab")
    assert type(a) is not type(b) and type(a).__name__ == type(b).__name__ == "MLP"
    assert type(pickle.loads(pickle.dumps(a))) is type(a)


def test_doors_to_other_libraries_become_calls_of_those() -> None:
    model = torch.nn.Identity()
    door = "nnicompress.models.libraries"
    node, files = without_us(
        {"_target_": f"{door}.torchvision_model", "name": "resnet34", "num_classes": 5, "weights": "DEFAULT"}, model
    )
    assert node == {
        "_target_": "torchvision.models.get_model", "_args_": ["resnet34"], "weights": None, "num_classes": 5
    }  # fmt: skip
    node, files = without_us(
        {"_target_": f"{door}.timm_model", "_args_": ["resnet18"], "pretrained": True, "in_chans": 1}, model
    )
    assert node == {"_target_": "timm.create_model", "_args_": ["resnet18"], "pretrained": False, "in_chans": 1}
    assert files == ()


def test_nested_models_of_ours_are_copied_too() -> None:
    backbone = {"_target_": "nnicompress.models.resnet.resnet18", "num_classes": 7}
    node, files = without_us({"_target_": "my_model.Wrapper", "parts": [backbone], "width": 2}, torch.nn.Identity())
    assert node == {
        "_target_": "my_model.Wrapper",
        "parts": [{"_target_": "resnet.py:resnet18", "num_classes": 7}],
        "width": 2,
    }
    assert files == (SHIPPED / "resnet.py",)


def test_a_transformers_model_is_rebuilt_from_its_own_configuration(tmp_path: Path) -> None:
    save_compact(TRANSFORMER, image_input((1, 16, 16)), tmp_path)
    build = json.loads((tmp_path / "description.json").read_text())["build"]
    assert build["_target_"] == "outputs.py:OneOutput" and build["field"] == "logits"
    assert build["model"]["_target_"] == "transformers.ResNetForImageClassification"
    assert build["model"]["_args_"][0]["_target_"] == "transformers.ResNetConfig.from_dict"
    model = standalone.load(tmp_path)
    assert model(torch.randn(3, 1, 16, 16)).shape == (3, 10)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([2.0, -4.0], [2.0, -3.0], 0.25),
        ([1.0, -INF], [1.0, -INF], 0.0),
        ([1.0, -INF], [1.0, 5.0], INF),
        ([1.0, 2.0], [1.0, NAN], NAN),
        ([1.0, 2.0], [1.0], INF),
        ([True, False], [True, True], 1.0),
        ([], [], 0.0),
    ],
)
def test_the_difference_of_outputs(expected: list[Any], actual: list[Any], difference: float) -> None:
    found = standalone._relative(torch.tensor(expected), torch.tensor(actual))
    assert found == pytest.approx(difference, nan_ok=True)
