"""Pruned, shrunk and saved networks, and the user code that those of the zoo are made of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nnicompress.models
from nnicompress.config.bind import bind
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.plain import save_plain
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.shrink.surgery import shrink
from tests.shrink.removals import masked_copy, remove_share
from tests.zoo import perturb_norms

TESTS = Path(__file__).resolve().parents[1]
SHIPPED = Path(str(nnicompress.models.__file__)).parent
M = "nnicompress.models"

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "resnet20": ({"_target_": f"{M}.resnet.resnet20", "in_channels": 1, "width": 8}, (1, 8, 8)),
    "resnet18": ({"_target_": f"{M}.resnet.resnet18", "width": 8, "small_images": True}, (3, 16, 16)),
    "resnet50": ({"_target_": f"{M}.resnet.resnet50", "width": 8}, (3, 64, 64)),
    "mobilenet_v2": ({"_target_": f"{M}.mobilenet_v2.mobilenet_v2", "small_images": True}, (3, 32, 32)),
    "vgg16": ({"_target_": f"{M}.vgg.vgg16", "_args_": [10], "width": 8, "image_size": 32, "hidden": 64}, (3, 32, 32)),
    "mlp": ({"_target_": f"{M}.mlp.mlp", "hidden": [24, 16], "batch_norm": True, "dropout": 0.1}, (1, 28, 28)),
}
"""Every shipped model: its node and the shape of one input."""


def save_compact(node: Mapping[str, Any], example: ModelInput, folder: Path) -> nn.Module:
    """Build, prune half of everything, shrink, save; the compact model."""
    build = bind(node, key="model")
    torch.manual_seed(0)
    model = build.build().eval()
    perturb_norms(model, 1)
    groups = find_channel_groups(capture(model, *example))
    removal = remove_share(groups, 0.5)
    assert removal
    compact = shrink(masked_copy(model, groups, removal), groups, removal).eval()
    save_plain(compact, build, node, example, folder)
    return compact


def write_user_code(folder: Path) -> None:
    """The networks of the tests as a user's own modules: without nnicompress, whose model files are copied along."""
    for name in ("resnet", "vgg", "mobilenet_v2", "mlp"):
        _copy(SHIPPED / f"{name}.py", folder / "user_shipped" / f"{name}.py")
    for name in ("architectures", "traits"):
        _copy(TESTS / "models" / f"{name}.py", folder / "user_networks" / f"{name}.py")
    _copy(TESTS / "zoo.py", folder / "user_zoo.py", more="\n\ndef network(name):\n    return ZOO[name]()[0]\n")


def _copy(source: Path, target: Path, more: str = "") -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text().replace("nnicompress.models", "user_shipped").replace("tests.models", "user_networks")
    assert "import nnicompress" not in text and "from nnicompress" not in text
    target.write_text(text + more)


def tried_alone(user_code: Path, *folders: Path) -> dict[str, dict[str, Any]]:
    """What `alone.py` finds of each folder, by the folder's name."""
    command = [sys.executable, "-IB", str(Path(__file__).with_name("alone.py")), str(user_code), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=user_code, timeout=600)
    assert done.returncode == 0, done.stderr
    return {Path(folder).name: found for folder, found in json.loads(done.stdout).items()}
