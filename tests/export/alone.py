"""Runs in a process of its own, in which nnicompress can't be imported: loads models by their `load.py`, trains a step.

    python -IB alone.py FOLDER_OF_USER_CODE MODEL_FOLDER ...

Prints one JSON object: folder -> what was found.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves


class Blocker:
    """Makes `import nnicompress` fail as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnicompress":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def loader_of(folder: Path):
    spec = importlib.util.spec_from_file_location(f"load_{folder.name}", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tried(folder: Path) -> dict:
    """Load the model, compare it with the stored output without the loader's own comparison, and train one step."""
    loader = loader_of(folder)
    model = loader.load()
    args, kwargs = loader.example_inputs(loader.read(folder))
    stored = load_file(folder / "example.safetensors")
    with torch.no_grad():
        outputs = [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
    expected = [stored[f"output.{number}"] for number in range(len(outputs))]
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(outputs, expected, strict=True))
    parameters = list(model.parameters())
    if not parameters:  # a quantized model, which is not to be trained
        return {"class": type(model).__name__, "difference": difference}
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    model.train()
    output = model(*args, **kwargs)
    sum(leaf.square().mean() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)).backward()
    optimizer.step()
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "difference": difference,
        "trainable": all(parameter.requires_grad for parameter in parameters),
        "with_gradient": all(parameter.grad is not None for parameter in parameters),
        "changed": sum(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)),
    }


def main() -> None:
    sys.meta_path.insert(0, Blocker())
    try:
        import nnicompress  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("nnicompress can be imported: this proves nothing")
    sys.path.insert(0, sys.argv[1])
    found = {folder: tried(Path(folder)) for folder in sys.argv[2:]}
    assert not [name for name in sys.modules if name.partition(".")[0] == "nnicompress"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
