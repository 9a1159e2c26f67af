"""A PruningResult on disk: JSON for what has a name, safetensors for index arrays and masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nnicompress.graph.widths import AttributeTie, ChannelGroups, Indices, ModuleOutput, Norm, Slot, Unprunable, Width
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.norms import MaskedNorm
from nnicompress.pruning.result import PrunedRow, PruningResult, Total

DOCUMENT = "pruning.json"
ARRAYS = "pruning.safetensors"


def save_pruning(result: PruningResult, folder: Path) -> None:
    """Write `result` into `folder`."""
    arrays = _Arrays()
    document = {
        "removal": {name: arrays.put(indices) for name, indices in result.removal.items()},
        "masks": {name: arrays.put_tensor(keep) for name, keep in result.masks.keep.items()},
        "masked_norms": [[n.module, n.dim, arrays.put(n.kept), n.tensors, n.losses] for n in result.masks.norms],
        "rows": [asdict(row) for row in result.rows],
        "unprunable": list(result.unprunable),
        "totals": {unit: asdict(total) for unit, total in result.totals.items()},
        "groups": None if result.groups is None else _groups_out(result.groups, arrays),
    }
    save_file(arrays.tensors, str(folder / ARRAYS))
    (folder / DOCUMENT).write_text(json.dumps(document) + "\n", encoding="utf-8")


def load_pruning(folder: Path) -> PruningResult:
    """Read what `save_pruning` wrote."""
    document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    arrays = _Arrays(load_file(folder / ARRAYS))
    groups = document["groups"]
    return PruningResult(
        removal={name: arrays.get(key) for name, key in document["removal"].items()},
        masks=Masks(
            {name: arrays.tensors[key] for name, key in document["masks"].items()},
            [
                MaskedNorm(module, dim, arrays.get(key), tensors, losses)
                for module, dim, key, tensors, losses in document["masked_norms"]
            ],
        ),
        rows=tuple(PrunedRow(**{**row, "modules": tuple(row["modules"])}) for row in document["rows"]),
        unprunable=tuple(document["unprunable"]),
        totals={unit: Total(**total) for unit, total in document["totals"].items()},
        groups=None if groups is None else _groups_in(groups, arrays),
    )


class _Arrays:
    """Numbered arrays, kept beside a document that refers to them by number."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors: dict[str, Tensor] = {} if tensors is None else tensors

    def put(self, array: Indices) -> str:
        return self.put_tensor(torch.from_numpy(np.ascontiguousarray(array)))

    def put_tensor(self, tensor: Tensor) -> str:
        key = str(len(self.tensors))
        # safetensors refuses tensors that share memory, as two views of one array do.
        self.tensors[key] = tensor.clone()
        return key

    def get(self, key: str) -> Indices:
        array: Indices = self.tensors[key].numpy()
        return array


def _groups_out(groups: ChannelGroups, arrays: _Arrays) -> dict[str, Any]:
    return {
        "widths": [
            {
                "name": width.name,
                "size": width.size,
                "kind": width.kind,
                "slots": [[s.tensor, s.dim, arrays.put(s.indices), s.role] for s in width.slots],
            }
            for width in groups.widths
        ],
        "unprunable": [asdict(entry) for entry in groups.unprunable],
        "ties": [
            [tie.module, tie.attribute, {name: arrays.put(loss) for name, loss in tie.losses.items()}]
            for tie in groups.ties
        ],
        "outputs": [
            [output.module, output.call, [None if dim is None else arrays.put(dim) for dim in output.dims]]
            for output in groups.outputs
        ],
        "read": sorted(groups.read),
        "sizing": sorted(groups.sizing),
        "norms": [[norm.module, norm.dim, arrays.put(norm.channels), norm.tensors] for norm in groups.norms],
        "returned": list(groups.returned),
    }


def _groups_in(document: Mapping[str, Any], arrays: _Arrays) -> ChannelGroups:
    return ChannelGroups(
        widths=tuple(
            Width(
                width["name"],
                width["size"],
                tuple(Slot(tensor, dim, arrays.get(key), role) for tensor, dim, key, role in width["slots"]),
                width["kind"],
            )
            for width in document["widths"]
        ),
        unprunable=tuple(Unprunable(**entry) for entry in document["unprunable"]),
        ties=tuple(
            AttributeTie(module, attribute, {name: arrays.get(key) for name, key in losses.items()})
            for module, attribute, losses in document["ties"]
        ),
        outputs=tuple(
            ModuleOutput(module, call, tuple(None if key is None else arrays.get(key) for key in dims))
            for module, call, dims in document["outputs"]
        ),
        read=frozenset((module, attribute) for module, attribute in document["read"]),
        sizing=frozenset((module, attribute) for module, attribute in document["sizing"]),
        norms=tuple(Norm(module, dim, arrays.get(key), tensors) for module, dim, key, tensors in document["norms"]),
        returned=tuple(document["returned"]),
    )
