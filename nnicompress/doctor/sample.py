"""What compressors, and evaluators without a model, are tried on: a small residual network and the digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnicompress.data.digits import Digits
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Listener, silent
from nnicompress.trace import Traced
from nnicompress.trust import resolve


class SampleNet(nn.Module):
    """For the digits: inputs `[N, 1, 8, 8]`, outputs `[N, 10]`; two widths, one of them shared by two layers."""

    input_shape = (1, 8, 8)

    def __init__(self, width: int = 8, inner: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, inner, 1)
        self.down = nn.Conv2d(inner, width, 1, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.down(torch.relu(self.up(x)))
        features: Tensor = self.dropout(torch.max_pool2d(x, 2).flatten(1))
        logits: Tensor = self.head(features)
        return logits


def sample_evaluator(model: nn.Module, listener: Listener = silent) -> Evaluator:
    """Cross-entropy and SGD with momentum, weight decay and OneCycleLR on the digits, in batches of 32."""
    data = Digits(batch_size=32)
    return TorchEvaluator(
        TrainingLoop(data.train_loader, seed=0),
        Traced(torch.optim.SGD, (list(model.parameters()),), {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}),
        SupervisedStep(nn.CrossEntropyLoss()),
        Traced(torch.optim.lr_scheduler.OneCycleLR, (), {"max_lr": 0.1}),
        evaluating_func=Evaluation(
            {"validation": data.validation_loader, "test": data.test_loader},
            Traced(
                resolve("torchmetrics.classification.MulticlassAccuracy"), (), {"num_classes": 10, "average": "micro"}
            ),
        ),
        listener=listener,
    )
