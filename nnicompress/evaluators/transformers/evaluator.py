"""The evaluator for a Trainer of transformers: builds a fresh one for each training and each evaluation."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from nnicompress.data.roles import Data
from nnicompress.errors import UserError
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.contract import ModelInput, TrainResult
from nnicompress.evaluators.inputs import FirstForward
from nnicompress.evaluators.preserve import no_gradients, same_random_states, same_tensors, same_training_mode
from nnicompress.evaluators.training_step import device_of
from nnicompress.evaluators.transformers.example import without_labels
from nnicompress.evaluators.transformers.fetching import Fetched
from nnicompress.evaluators.transformers.metrics import averaged, measured_in_training, plain_metrics, with_default
from nnicompress.evaluators.transformers.optimizer import TrainerOptimizer
from nnicompress.evaluators.transformers.put_back import own_engine_state, same_storage, untouched
from nnicompress.evaluators.transformers.record import NOTHING_BUT_STEPS
from nnicompress.evaluators.transformers.setup import TrainerSetup, steps_per_epoch
from nnicompress.evaluators.transformers.stand_in import Original, stand_in, takes_labels
from nnicompress.evaluators.transformers.training import Training, Watching
from nnicompress.events import Listener, silent
from nnicompress.models.outputs import OneOutput


class TransformersEvaluator(EvaluatorBase):
    """Trains and measures with the user's Trainer; the contract is `nnicompress.evaluators.contract.Evaluator`.

    The seeds of the n-th training (from 0) are `args.seed + n` and `args.data_seed + n`, so that a second one sees
    another order; the first is exactly the one of `Trainer.train()`. What a Trainer writes goes to `args.output_dir`,
    where one was given, and is thrown away otherwise; it shows progress bars only where `disable_tqdm=False` was
    traced. `evaluate` and `iterate` call no callbacks of the user's and report nowhere.
    """

    ENGINE = "transformers"
    NEEDS: ClassVar = {
        "train": ("train_dataset",),
        "iterate": ("train_dataset",),
        "evaluate": ("eval_dataset",),
        "example_inputs": ("dummy_input",),
    }

    def __init__(
        self,
        trainer: object,
        *,
        data: Data | None = None,
        optimizers: Any = None,
        lr_schedulers: Any = None,
        metric: str | None = None,
        test_dataset: Any = None,
        dummy_input: Any = None,
        listener: Listener = silent,
    ) -> None:
        """Package a Trainer.

        Args:
            trainer: how it is built: `trace(Trainer)(args=TrainingArguments(...), train_dataset=...)`, of Trainer or
                a subclass; the bound model is its model. `args` may be traced, too.
            data: datasets and collator, where the Trainer is given none; then batch sizes are those of its loaders
                unless `args` were traced with others.
            optimizers: how to build one, `trace(SGD)(model.parameters(), lr=0.1)`; None: as the Trainer chooses.
            lr_schedulers: how to build one; None: `args.lr_scheduler_type`.
            metric: the name of the metric that decides; None: the first that compute_metrics returns, else `loss`.
            test_dataset: the split `test`; None: that of `data`, else eval_dataset serves for both.
            dummy_input: a tensor, a tuple or a dict for the model's forward; without it the first batch serves.
            listener: told of progress.

        Raises:
            UserError: an argument that can't work, by name.
        """
        super().__init__(dummy_input, listener)
        self._setup = TrainerSetup(trainer, data, test_dataset)
        optimizer, scheduler = self._setup.record.optimizers
        if optimizers is not None and optimizer is not None:
            raise UserError("optimizers are given to the evaluator and to its Trainer; give them once")
        if optimizers is not None and self._setup.record.kwargs.get("optimizer_cls_and_kwargs") is not None:
            raise UserError("optimizers are given, and the Trainer's optimizer_cls_and_kwargs, too; give one")
        self._optimizer = TrainerOptimizer(
            optimizer if optimizers is None else optimizers, scheduler if lr_schedulers is None else lr_schedulers
        )
        self._metric = metric
        self._original: Original | None = None
        self._num_trainings = 0

    @property
    def capabilities(self) -> frozenset[str]:
        """Also `resume`, where data of known length are loaded in this process."""
        return super().capabilities | ({"resume"} if self._setup.can_resume else set())

    def require(self, capability: str, *, by: str, why: str) -> None:
        """Raise a UserError that says what to give the Trainer, unless `capability` can be served."""
        missing = self._missing(capability)
        if missing and missing[0] != "dummy_input":
            raise UserError(
                f"{by} needs {missing[0]}: {why}; give it to the Trainer: nnicompress.trace({self._setup.record.name})"
                f"(args=..., {missing[0]}=...)"
            )
        super().require(capability, by=by, why=why)

    # ------------------------------------------------------------------------------------------------ what base asks

    def _given(self) -> Mapping[str, object]:
        return {
            "train_dataset": True if self._setup.can_train else None,
            "eval_dataset": self._setup.dataset("validation"),
            "dummy_input": self._dummy_input,
        }

    def _check(self, model: nn.Module) -> None:
        """Every trainable parameter is in one group of a described optimizer; remember how the model's loss is made."""
        super()._check(model)
        if self._optimizer.is_given:
            self._optimizer.check(model, tuple(self._parameters))
        inner = _trained(model)
        self._original = Original.of(inner) or self._original

    def _train(
        self, max_steps: int | None, max_epochs: int | None, resume: Mapping[str, Any] | None
    ) -> tuple[TrainResult, str | None]:
        self._setup.refuse_idle(_trained(self.model))
        number = self._num_trainings if resume is None else resume["number"]
        evaluated = self._setup.dataset("validation")
        training = Training(
            self._watching(self._fire_before_evaluate),
            self._hooks,
            self._listener,
            functools.partial(
                measured_in_training,
                datasets=tuple(evaluated) if isinstance(evaluated, dict) else (),
                metric=self._metric,
            ),
            number=number,
            resume=resume,
        )
        self._num_trainings = number + 1
        if resume is not None and resume["finished"] and not _goes_on(resume, max_steps, max_epochs):
            return training.done_before(resume["per_epoch"]), None
        settings = {**self._setup.length(max_steps, max_epochs), **self._setup.seeds(number)}
        if resume is not None:
            settings |= {"restore_callback_states_from_checkpoint": True, "ignore_data_skip": False}
        data = {"train_dataset": Fetched(self._setup.train_dataset, training.fetching)}
        with self._engine() as folder:
            trainer = self._setup.build(
                _trained(self.model), folder, settings, [training.progress], **(data if self._setup.can_resume else {})
            )
            if max_steps is not None and max_epochs is not None:
                trainer.args.max_steps = min(max_steps, max_epochs * steps_per_epoch(trainer))
            self._training = training
            return training.run(trainer, folder)

    def _iterate(self, num_batches: int) -> str | None:
        steps = self._dry_run(num_batches)
        if not steps:
            raise UserError("the Trainer made no optimizer step; look whether train_dataset has samples")
        return None if steps == num_batches else f"the Trainer made {steps} steps; {num_batches} were asked for"

    def _measure(self, split: str) -> dict[str, float]:
        settings: dict[str, Any] = {**NOTHING_BUT_STEPS, "max_steps": 1}
        inner, loss_known = _trained(self.model), True
        if not isinstance(inner, PreTrainedModel) and not takes_labels(inner):
            if self._original is not None:
                loss_known = self._original.loss is not None
                # What is served has a device and a precision of its own.
                settings |= {"use_cpu": device_of(inner).type == "cpu", "bf16": False, "fp16": False}
                settings |= {"bf16_full_eval": False, "fp16_full_eval": False}
                inner = stand_in(inner, self._original)
            else:
                self._setup.refuse_without_loss(inner)
        dataset = self._setup.dataset(split)
        with self._engine() as folder, same_storage(self.model):
            trainer = self._setup.build(inner, folder, settings)
            trainer.watcher = self._watching(lambda: None)
            datasets = dataset if isinstance(dataset, dict) else {"": dataset}
            each = {name: plain_metrics(trainer.evaluate(eval_dataset=one)) for name, one in datasets.items()}
        if not loss_known:
            for metrics in each.values():
                metrics.pop("loss", None)
        return with_default(averaged(each) if isinstance(dataset, dict) else each[""], self._metric)

    def _first_inputs(self) -> ModelInput:
        inner = _trained(self.model)

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise FirstForward((args, kwargs))

        handle = inner.register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
        try:
            self._dry_run(1)
        except FirstForward as found:
            return without_labels(inner, found.inputs, self._setup.record.setting("label_names"))
        finally:
            handle.remove()
        raise UserError("the Trainer never calls the model, so it shows no inputs; give dummy_input")

    # ----------------------------------------------------------------------------------------------------- how it runs

    def _dry_run(self, num_steps: int) -> int:
        """Run a Trainer on an optimizer that moves nothing; returns the number of steps it made."""
        self._setup.refuse_idle(_trained(self.model))
        settings = {**NOTHING_BUT_STEPS, **self._setup.seeds(self._num_trainings), "max_steps": num_steps}
        model, watching = self.model, self._watching(lambda: None, dry=True)
        with self._engine() as folder, ExitStack() as stack:
            for context in (
                same_random_states(),
                same_tensors(model),
                no_gradients(model, *self._own()),
                same_training_mode(model),
            ):
                stack.enter_context(context)
            trainer = self._setup.build(_trained(model), folder, settings)
            session = watching.attach(trainer, self._hooks, lambda step: None, steps=0, stop_at=num_steps)
            session.run(trainer.train)
            return session.steps

    def _watching(self, before_evaluation: Any, *, dry: bool = False) -> Watching:
        return Watching(self.model, self._optimizer, tuple(self._parameters), before_evaluation, dry=dry)

    @contextmanager
    def _engine(self) -> Iterator[str]:
        """A block in which a Trainer may run; gives a temporary folder."""
        with (
            tempfile.TemporaryDirectory(prefix="nnicompress-") as folder,
            own_engine_state(),
            untouched(self.model),
        ):
            yield folder


def _trained(model: nn.Module) -> nn.Module:
    """What a Trainer is given: the model inside a OneOutput, whose own forward computes a loss."""
    return model.model if isinstance(model, OneOutput) else model


def _goes_on(state: Mapping[str, Any], max_steps: int | None, max_epochs: int | None) -> bool:
    """Whether a training that was complete is asked for more."""
    more_steps = max_steps is not None and max_steps > state["steps"]
    per_epoch = state["per_epoch"]
    return more_steps or (max_epochs is not None and per_epoch is not None and max_epochs * per_epoch > state["steps"])
