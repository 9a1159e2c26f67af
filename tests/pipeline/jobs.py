"""Small real jobs for the tests of the pipeline: digits, a narrow residual network or a perceptron."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import SGD
from torchmetrics.classification import MulticlassAccuracy

from nnicompress.data.digits import Digits
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.optimizers import OptimizerSpec
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Listener
from nnicompress.models.resnet import resnet20
from nnicompress.pipeline.job import Job, StagePlan
from nnicompress.pipeline.settings import STAGES, RuntimeSettings
from nnicompress.pipeline.smoke import FewBatches
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.report.settings import ExpectedSettings
from nnicompress.trace import Traced

TAYLOR = {
    "importance": {"name": "taylor", "training_steps": 4},
    "allocation": {"name": "global"},
    "targets": {"convs": {"op_types": ["Conv2d"], "sparse_ratio": 0.4}},
}
LEVEL = {
    "importance": {"name": "level"},
    "granularity": "element",
    "targets": {"convs": {"op_types": ["Conv2d"], "sparse_ratio": 0.5}},
}
QAT = {"calibration_steps": 4, "targets": {"all": {}}}
WHOLE_WAY = {
    "train": {"max_steps": 30},
    "prune": {},
    "shrink": {},
    "finetune": {"max_steps": 10},
    "export": {},
    "evaluate": {"repeats": 5, "seconds": 0.2},
}


def make_job(
    run_dir: Path,
    stages: dict[str, dict[str, Any]],
    *,
    pruner: dict[str, Any] | None = None,
    quantizer: dict[str, Any] | None = None,
    expected: dict[str, Any] | None = None,
    seed: int = 0,
    smoke: bool = False,
    loss: Callable[[Any, Any], Any] | None = None,
    save_every: int = 100,
) -> Job:
    """A job on digits with a ResNet-20 of width 8, as the factory would build it from a recipe."""
    compressors = {
        "prune": PrunerSettings.model_validate(pruner or TAYLOR),
        "quantize": QuantizerSettings.model_validate(quantizer or QAT),
    }
    digits = Digits(batch_size=64)
    data: Any = FewBatches(digits) if smoke else digits

    def build_evaluator(listener: Listener) -> TorchEvaluator:
        return TorchEvaluator(
            TrainingLoop(data.train_loader, seed=seed),
            OptimizerSpec(Traced(SGD, (), {"lr": 0.05, "momentum": 0.9})),
            SupervisedStep(loss or nn.CrossEntropyLoss()),
            evaluating_func=Evaluation(
                {"validation": data.validation_loader, "test": data.test_loader},
                Traced(MulticlassAccuracy, (), {"num_classes": 10, "average": "micro"}),
            ),
            listener=listener,
        )

    model = {"num_classes": 10, "in_channels": 1, "width": 8}
    return Job(
        name="small",
        summary="A small job",
        build_model=Traced(resnet20, (), model),
        data=data,
        stages=tuple(
            StagePlan(
                name=name,
                settings=STAGES[name].model_validate(values),
                build_evaluator=build_evaluator,
                compressor=compressors.get(name),
            )
            for name, values in stages.items()
        ),
        run_dir=run_dir,
        resolved_config={"model": {"_target_": "nnicompress.models.resnet.resnet20", **model}},
        seed=seed,
        batch_size=64,
        runtime=RuntimeSettings(device="cpu", threads=1),
        expected=ExpectedSettings.model_validate(expected or {}),
        smoke=smoke,
        save_every=save_every,
    )
