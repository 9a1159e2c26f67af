"""nnicompress: from a trained PyTorch model to a smaller, faster one, measured and loadable without this library.

The public names are imported when they are first used, so that `import nnicompress` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnicompress.api import run as run
    from nnicompress.evaluators.lightning.evaluator import LightningEvaluator as LightningEvaluator
    from nnicompress.evaluators.torch_evaluator import TorchEvaluator as TorchEvaluator
    from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator as TransformersEvaluator
    from nnicompress.export.plain import load as load
    from nnicompress.graph import capture as capture
    from nnicompress.graph import find_channel_groups as find_channel_groups
    from nnicompress.pruning.pruner import Pruner as Pruner
    from nnicompress.quantization.quantizer import Quantizer as Quantizer
    from nnicompress.shrink import prove as prove

# Not lazy: a later import of the submodule of the same name would put the module in the function's place.
from nnicompress.trace import trace as trace

__version__ = "0.1.0"

_HOME = {
    "run": "nnicompress.api",
    "load": "nnicompress.export.plain",
    "TorchEvaluator": "nnicompress.evaluators.torch_evaluator",
    "LightningEvaluator": "nnicompress.evaluators.lightning.evaluator",
    "TransformersEvaluator": "nnicompress.evaluators.transformers.evaluator",
    "Pruner": "nnicompress.pruning.pruner",
    "Quantizer": "nnicompress.quantization.quantizer",
    "capture": "nnicompress.graph",
    "find_channel_groups": "nnicompress.graph",
    "prove": "nnicompress.shrink",
}

__all__ = ["__version__", "trace", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
