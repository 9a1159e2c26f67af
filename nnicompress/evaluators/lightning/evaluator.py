"""The evaluator for Lightning: the user's own Trainer, LightningModule and data, on whatever model is bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from nnicompress.errors import UserError
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.contract import ModelInput, TrainResult
from nnicompress.evaluators.inputs import FirstForward
from nnicompress.evaluators.lightning.data import Loaders
from nnicompress.evaluators.lightning.fit import Given, WatchedFit
from nnicompress.evaluators.lightning.measure import measure, served_by
from nnicompress.evaluators.lightning.package import Package, quiet
from nnicompress.evaluators.lightning.trainers import Limits, TrainerSource
from nnicompress.evaluators.lightning.training import LightningTraining
from nnicompress.evaluators.preserve import no_gradients, same_random_states, same_tensors, same_training_mode
from nnicompress.evaluators.rebuild import OptimizerGiven, Rebuilder
from nnicompress.events import Listener, silent
from nnicompress.trace import Traced

_ROLES = {"train": "train", "iterate": "train", "evaluate": "validation"}


class LightningEvaluator(EvaluatorBase):
    """Runs `Trainer.fit` and `Trainer.validate`; the contract is `nnicompress.evaluators.contract.Evaluator`.

    Steps are those of the (first) torch optimizer. `configure_optimizers` is asked inside each fit, so that optimizers
    belong to the model as it is then. Callbacks and loggers of the Trainer take part in `train`; `iterate` and
    `example_inputs` run without them, and `evaluate` without loggers. Afterwards model, module, data and a built
    Trainer are as before, but for the weights that a training trained.
    """

    ENGINE = "lightning"
    NEEDS: ClassVar = {
        "train": ("data",),
        "iterate": ("data",),
        "evaluate": ("data",),
        "example_inputs": ("dummy_input",),
    }

    def __init__(
        self,
        trainer: Any,
        data: Any = None,
        module: Callable[[nn.Module], Any] | Traced | None = None,
        *,
        optimizers: OptimizerGiven | Sequence[OptimizerGiven] | None = None,
        lr_schedulers: Traced | Sequence[Traced] | None = None,
        interval: Literal["step", "epoch"] = "step",
        metric: str = "default",
        seed: int = 0,
        dummy_input: Any = None,
        listener: Listener = silent,
    ) -> None:
        """Package a Lightning training.

        Args:
            trainer: how it is built, `nnicompress.trace(Trainer)(max_epochs=3)`, or a Trainer that is built; of
                `pytorch_lightning` or of `lightning.pytorch`.
            data: a LightningDataModule; loaders, or functions that return them, by role (`train`, `validation`,
                `test`); an object with `train_loader(seed)`, `validation_loader()` and `test_loader()`; or None: the
                LightningModule's own `train_dataloader` and so on.
            module: makes a LightningModule around the bound model, a plain module; None: the bound model is one.
            optimizers: instead of the LightningModule's `configure_optimizers`: `trace(SGD)(model.parameters(), lr=1)`.
            lr_schedulers: for `optimizers`.
            interval: what `lr_schedulers` are stepped after.
            metric: the name under which the LightningModule logs what counts.
            seed: passed to `train_loader`.
            dummy_input: a tensor, a tuple or a dict for the model's forward; without it the first batch serves.
            listener: told of progress.

        Raises:
            UserError: an argument that can't work, by name.
        """
        super().__init__(dummy_input, listener)
        if interval not in ("step", "epoch"):
            raise UserError(f"interval={interval!r} is neither 'step' nor 'epoch'")
        if module is not None and not (isinstance(module, Traced) or callable(module)):
            raise UserError(
                f"module is {type(module).__name__}; it must be a function or class that makes a LightningModule of a "
                "model, or None where the bound model is one"
            )
        if isinstance(module, nn.Module):
            raise UserError(
                f"module is a built {type(module).__name__}; bind it as the model (evaluator.bound(it)) and leave "
                "module out, or give its class"
            )
        source = TrainerSource(trainer)
        rebuilder = Rebuilder(optimizers, lr_schedulers)
        self._given_by_user = Given(source, Loaders(data, seed, source.package), rebuilder, interval, metric)
        self._lightning_module: type[nn.Module] = source.package.get("LightningModule")
        self._wrap = module
        self._last: nn.Module | None = None
        """The LightningModule that was bound last; a served program stands in for its forward."""
        self._first_epoch = 0

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `train`, `iterate`, `evaluate`, `example_inputs` can be served; `resume` always."""
        return super().capabilities | {"resume"}

    def _given(self) -> Mapping[str, object]:
        return {"data": self, "dummy_input": self._dummy_input}

    def _missing(self, capability: str) -> tuple[str, ...]:
        if capability in _ROLES and self._given_by_user.loaders.missing(_ROLES[capability]):
            return ("data",)
        return super()._missing(capability)

    def _check(self, model: nn.Module) -> None:
        """The model is what the evaluator was made for: a LightningModule, or a plain one for `module` to wrap."""
        super()._check(model)
        if self._wrap is not None:
            if self._given_by_user.rebuilder.optimizers:
                self._given_by_user.rebuilder.check(model, tuple(self._parameters))
        elif isinstance(model, self._lightning_module):
            self._last = model
        elif self._last is None:
            other = Package.of(model)
            is_what = f"a LightningModule of {other.name}" if other else "no LightningModule"
            raise UserError(
                f"the bound model is a {type(model).__name__}, {is_what}, and the Trainer is of "
                f"{self._given_by_user.package.name}; give LightningEvaluator(module=...), a function that makes a "
                "LightningModule of it"
            )

    def _train(
        self, max_steps: int | None, max_epochs: int | None, resume: Mapping[str, Any] | None
    ) -> tuple[TrainResult, str | None]:
        self._training = training = LightningTraining(
            self._given_by_user,
            self._trainable(),
            self.model,
            self._hooks,
            tuple(self._parameters),
            self._first_epoch,
            limits=Limits(max_steps, max_epochs),
            before_evaluate=self._before_evaluate,
            listener=self._listener,
            resume=resume,
        )
        _in_training_mode(self.model)
        try:
            return training.run()
        finally:
            self._first_epoch = training.first_epoch_of_next

    def _iterate(self, num_batches: int) -> str | None:
        steps = self._dry_run(num_batches)
        if steps == num_batches:
            return None
        return f"Trainer.fit ran {steps} optimizer steps; iterate({num_batches}) asked for {num_batches}"

    def _measure(self, split: str) -> Mapping[str, float]:
        given = self._given_by_user
        if self._wrap is None and not isinstance(self.model, self._lightning_module):
            assert self._last is not None
            stand_in, calls = served_by(self.model, self._last)
            values = measure(given, stand_in, split)
            if not calls[0]:
                raise UserError(
                    f"{type(self._last).__name__} never calls forward in {split}, so that a served program can't stand "
                    f"in for it; call self(inputs) in {split}_step"
                )
            return values
        return measure(given, self._as_lightning(), split)

    def _first_inputs(self) -> ModelInput:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise FirstForward((args, kwargs))

        handle = self.model.register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
        try:
            self._dry_run(1)
        except FirstForward as found:
            return found.inputs
        finally:
            handle.remove()
        raise UserError("training_step never calls the bound model, so it shows no inputs; give dummy_input")

    def _dry_run(self, num_steps: int) -> int:
        module = self._trainable()
        fit = WatchedFit(
            self._given_by_user, module, self.model, self._hooks, tuple(self._parameters), self._first_epoch
        )
        with (
            same_tensors(module),
            no_gradients(module, *self._own()),
            same_training_mode(module),
            same_random_states(),
        ):
            _in_training_mode(self.model)
            return fit.run_dry(num_steps)

    def _trainable(self) -> Any:
        if self._wrap is None and not isinstance(self.model, self._lightning_module):
            raise UserError(
                f"the bound model is a {type(self.model).__name__} and no LightningModule: it can be evaluated, not "
                "trained"
            )
        return self._as_lightning()

    def _as_lightning(self) -> Any:
        """The LightningModule around the bound model, made afresh, or the bound model itself."""
        if self._wrap is None:
            return self.model
        with quiet():
            module = self._wrap.build(self.model) if isinstance(self._wrap, Traced) else self._wrap(self.model)
        name = self._wrap.name if isinstance(self._wrap, Traced) else getattr(self._wrap, "__name__", "module")
        if not isinstance(module, self._lightning_module):
            raise UserError(
                f"module: {name} returned {type(module).__name__}, and no LightningModule of "
                f"{self._given_by_user.package.name}"
            )
        if not any(part is self.model for part in module.modules()):
            raise UserError(
                f"module: {name} returned a {type(module).__name__} that does not hold the model it was given; keep it "
                "as an attribute, self.model = model"
            )
        return module


def _in_training_mode(model: nn.Module) -> None:
    """Lightning trains a model in the mode it comes in; parts of one in training mode may be frozen on purpose."""
    if not model.training:
        model.train()
