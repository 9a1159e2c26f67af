"""The shipped evaluator passes every check; for each check there is an evaluator that fails exactly that one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nnicompress.data.digits import Digits
from nnicompress.doctor.checks import Finding, perform
from nnicompress.doctor.evaluator import EVALUATOR_CHECKS
from nnicompress.doctor.sample import SampleNet, sample_evaluator
from nnicompress.doctor.trial import EvaluatorSubject
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.registry import Registration
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Listener
from nnicompress.trace import Traced
from tests.evaluators.cases import user_loop


def subject(cls: type, *, listens: bool = True) -> EvaluatorSubject:
    """The shipped sample evaluator as an instance of `cls`, which changes some of its methods."""

    def build(listener: Listener) -> tuple[Evaluator, nn.Module]:
        model = SampleNet()
        evaluator: Any = sample_evaluator(model, *([listener] if listens else []))
        evaluator.__class__ = cls
        return evaluator, model

    return EvaluatorSubject(build)


def failing(cls: type, **more: Any) -> dict[str, Finding]:
    findings = perform(EVALUATOR_CHECKS, subject(cls, **more))
    return {finding.name: finding for finding in findings if finding.status in ("missing", "wrong")}


def test_the_shipped_evaluator_passes_every_check() -> None:
    findings = perform(EVALUATOR_CHECKS, subject(TorchEvaluator))
    assert [finding.status for finding in findings] == ["ok"] * len(EVALUATOR_CHECKS) == ["ok"] * 15, findings


class UnknownCapability(TorchEvaluator):
    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"eval"}


class StaysBound(TorchEvaluator):
    """No `finally`."""

    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        manager = self.__dict__["manager"] = super().bound(model)
        manager.__enter__()
        yield model
        manager.__exit__(None, None, None)


class OneStepMore(TorchEvaluator):
    def train(self, *, max_steps: Any = None, max_epochs: Any = None) -> Any:
        return super().train(max_steps=max_steps + 1, max_epochs=max_epochs)


class CountsFromZero(TorchEvaluator):
    def after_step(self, hook: Any) -> Any:
        return super().after_step(lambda event: hook(replace(event, step=event.step - 1)))


class WithAutograd(TorchEvaluator):
    def after_step(self, hook: Any) -> Any:
        return super().after_step(torch.enable_grad()(hook))


class AfterIsBefore(TorchEvaluator):
    """Masks could not be enforced: the weights are written after the hook."""

    def after_step(self, hook: Any) -> Any:
        return super().before_step(hook)


class RemembersHooks(TorchEvaluator):
    def before_step(self, hook: Any) -> Any:
        self.__dict__.setdefault("remembered", []).append(hook)
        return super().before_step(hook)

    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(model):
            for hook in self.__dict__.get("remembered", []):
                super().before_step(hook)
            yield model


class WritesAtTheEnd(TorchEvaluator):
    """As weight averaging does: after the last hook."""

    def train(self, **length: Any) -> Any:
        result = super().train(**length)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(1e-3)
        return result


class PenaltyTwice(TorchEvaluator):
    def add_penalty(self, penalty: Any) -> Any:
        return super().add_penalty(lambda model: 2 * penalty(model))


class NoPenalty(TorchEvaluator):
    def add_penalty(self, penalty: Any) -> Any:
        return Registration({}, 0)


class NotImplementedPenalty(TorchEvaluator):
    def add_penalty(self, penalty: Any) -> Any:
        raise NotImplementedError


class DecaysOwnParameters(TorchEvaluator):
    def add_parameters(self, parameters: Any, **settings: Any) -> Any:
        return super().add_parameters(parameters, **{**settings, "weight_decay": 0.1})


class ForgetsOwnParameters(TorchEvaluator):
    def add_parameters(self, parameters: Any, **settings: Any) -> Any:
        return Registration({}, 0)


class IterateMovesStatistics(TorchEvaluator):
    """A forward in training mode: batch norm's running statistics move."""

    def iterate(self, num_batches: int) -> None:
        super().iterate(num_batches)
        args, kwargs = self.example_inputs(8)
        with torch.no_grad(), torch.random.fork_rng():
            self.model.train()
            self.model(*args, **kwargs)


class IterateDraws(TorchEvaluator):
    def iterate(self, num_batches: int) -> None:
        super().iterate(num_batches)
        torch.rand(1)


class IterateTrains(TorchEvaluator):
    def iterate(self, num_batches: int) -> None:
        self.train(max_steps=num_batches)


class IterateLeavesGradients(TorchEvaluator):
    def iterate(self, num_batches: int) -> None:
        super().iterate(num_batches)
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)


class NoDefault(TorchEvaluator):
    def evaluate(self, split: str = "validation") -> dict[str, float]:
        return {"accuracy": super().evaluate(split)["default"]}


class EvaluatesIntoEval(TorchEvaluator):
    def evaluate(self, split: str = "validation") -> dict[str, float]:
        found = super().evaluate(split)
        self.model.eval()
        return found


class ForgetsBeforeEvaluate(TorchEvaluator):
    def before_evaluate(self, hook: Any) -> Any:
        return Registration({}, 0)


class OneBatchSize(TorchEvaluator):
    def example_inputs(self, batch_size: int | None = None) -> Any:
        return super().example_inputs(None)


class KeepsTheFirst(TorchEvaluator):
    """Its optimizer holds the first model's parameters for ever."""

    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(self.__dict__.setdefault("first", model)):
            yield model


class LosesMomentum(TorchEvaluator):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {**state, "optimizers": [{**own, "state": {}} for own in state["optimizers"]]}


class LosesRandomState(TorchEvaluator):
    """Dropout goes on with other numbers."""

    def load_state_dict(self, state: Any) -> None:
        from nnicompress.evaluators.preserve import random_states

        super().load_state_dict({**state, "random": random_states()})


class LosesThePlace(TorchEvaluator):
    """The data begin again."""

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**state, "loop": {**state["loop"], "batches": 0}})


class LeavesHook(TorchEvaluator):
    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(model):
            yield model
        model.get_submodule("up").register_forward_hook(lambda module, args, output: None)


class LeavesAttribute(TorchEvaluator):
    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(model):
            yield model
        model.mask = torch.ones(1)


class LeavesHookAfterFailure(TorchEvaluator):
    """Tidies up, but not in a `finally`."""

    def train(self, **length: Any) -> Any:
        handle = self.model.register_forward_pre_hook(lambda module, args: None)
        result = super().train(**length)
        handle.remove()
        return result


class LeavesGradientHook(TorchEvaluator):
    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(model):
            yield model
        next(model.parameters()).register_hook(lambda gradient: None)


class LeavesClass(TorchEvaluator):
    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(model):
            yield model
        model.get_submodule("up").__class__ = MaskedConv2d


class MaskedConv2d(nn.Conv2d):
    pass


class LeavesParameter(TorchEvaluator):
    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        with super().bound(model):
            yield model
        head = model.get_submodule("head")
        head.weight = nn.Parameter(head.weight.detach().clone())


@pytest.mark.parametrize(
    ("cls", "check", "told"),
    [
        (UnknownCapability, "capabilities", "unknown capabilities: eval"),
        (StaysBound, "binding", "after a block that raised the evaluator still has a model"),
        (OneStepMore, "training", "train(max_steps=4) made 5 steps"),
        (CountsFromZero, "step hooks", "fired: before 1, after 0, before 2, after 1"),
        (WithAutograd, "step hooks", "step hooks run with autograd on"),
        (AfterIsBefore, "step hooks", "head.weight changes between after_step 1 and before_step 2"),
        (RemembersHooks, "hooks end", "a hook of an earlier binding fires in a later one"),
        (WritesAtTheEnd, "masks", "masked elements of head.weight are not zero"),
        (PenaltyTwice, "penalty", "it arrived 2, 2, 2 times"),
        (NoPenalty, "penalty", "it arrived 0, 0, 0 times"),
        (NotImplementedPenalty, "penalty", "not implemented"),
        (DecaysOwnParameters, "own parameters", "weight decay acts on them"),
        (ForgetsOwnParameters, "own parameters", "do not move"),
        (IterateMovesStatistics, "iterate", "changes norm.running_mean, norm.running_var, norm.num_batches_tracked"),
        (IterateDraws, "iterate", "moves the random state of torch"),
        (IterateTrains, "iterate", "iterate(3) changes stem.weight"),
        (IterateLeavesGradients, "iterate", "iterate leaves gradients"),
        (NoDefault, "evaluate", "not a dict with a float 'default'"),
        (EvaluatesIntoEval, "evaluate", "leaves another training mode: the model"),
        (ForgetsBeforeEvaluate, "evaluate", "before_evaluate hooks are not called"),
        (OneBatchSize, "example inputs", "should have batch size 2; it gives [32, 1, 8, 8]"),
        (KeepsTheFirst, "another model", "still has the first one's parameters"),
        (LosesMomentum, "resume", "other bits: stem.weight"),
        (LosesRandomState, "resume", "other bits"),
        (LosesThePlace, "resume", "other bits"),
        (LeavesHook, "nothing left", "forward_hooks of up"),
        (LeavesAttribute, "nothing left", "the attributes of the model (mask)"),
        (LeavesHookAfterFailure, "nothing left", "by a training that raised: forward_pre_hooks of the model"),
        (LeavesGradientHook, "nothing left", "gradient hooks of stem.weight"),
        (LeavesClass, "nothing left", "the class of up"),
        (LeavesParameter, "nothing left", "the parameter head.weight"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_fault_fails_exactly_its_check(cls: type, check: str, told: str) -> None:
    found = failing(cls)
    assert list(found) == [check]
    assert told in found[check].found
    assert found[check].advice
    assert found[check].status == ("missing" if cls is NotImplementedPenalty else "wrong")


def test_warm_up_clipping_and_accumulation_are_no_faults() -> None:
    def build(listener: Listener) -> tuple[Evaluator, nn.Module]:
        from nnicompress.evaluators.schedulers import linear_warmup
        from tests.evaluators import cases

        model = SampleNet()
        digits = Digits(batch_size=32).train_loader
        optimizer = Traced(torch.optim.AdamW, (list(model.parameters()),), {"lr": 0.01})
        warmup = Traced(linear_warmup, (), {"warmup_fraction": 0.5})
        loop = TrainingLoop(digits, clip_norm=0.1, accumulate=2)
        step = cases.training_step
        return TorchEvaluator(loop, optimizer, step, warmup, None, lambda model: 0.5, listener=listener), model

    findings = perform(EVALUATOR_CHECKS, EvaluatorSubject(build))
    assert [finding for finding in findings if finding.status != "ok"] == []


def test_a_patched_class_is_found() -> None:
    class Net(SampleNet):
        pass

    class PatchesForward(TorchEvaluator):
        @contextmanager
        def bound(self, model: nn.Module) -> Iterator[nn.Module]:
            with super().bound(model):
                yield model
            forward: Callable[..., Any] = SampleNet.forward
            type(model).forward = lambda self, x: forward(self, x)

    def build(listener: Listener) -> tuple[Evaluator, nn.Module]:
        model = Net()
        evaluator: Any = sample_evaluator(model, listener)
        evaluator.__class__ = PatchesForward
        return evaluator, model

    (check,) = (check for check in EVALUATOR_CHECKS if check.name == "nothing left")
    (finding,) = perform([replace(check, after=())], EvaluatorSubject(build))
    assert finding.found == "left changed: the methods of class Net (forward)"


def test_a_member_that_is_not_there_is_missing() -> None:
    members = [name for name in vars(Evaluator) if name[0] != "_" and name != "require"]
    lacking = type(
        "Lacking", (), {name: property(lambda self, name=name: getattr(self.whole, name)) for name in members}
    )

    def build(listener: Listener) -> tuple[Any, nn.Module]:
        model, found = SampleNet(), lacking()
        found.whole = sample_evaluator(model, listener)
        return found, model

    checks = [check for check in EVALUATOR_CHECKS if check.name in ("members", "capabilities", "binding")]
    assert [(finding.status, finding.found) for finding in perform(checks, EvaluatorSubject(build))] == [
        ("missing", "Lacking has no require"),
        ("skipped", "waits for 'members'"),
        ("ok", "the model is bound inside the block only"),
    ]


def test_what_a_loop_of_one_s_own_can_t_serve_is_missing_and_all_else_is_ok() -> None:
    def build(listener: Listener) -> tuple[Evaluator, nn.Module]:
        from tests.evaluators import cases

        model = cases.make_model()
        optimizer = Traced(torch.optim.SGD, (list(model.parameters()),), {"lr": 0.1})
        step = SupervisedStep(nn.CrossEntropyLoss())
        return TorchEvaluator(user_loop, optimizer, step, evaluating_func=lambda model: 0.5), model

    findings = {finding.name: finding for finding in perform(EVALUATOR_CHECKS, EvaluatorSubject(build))}
    failed = {name: finding.status for name, finding in findings.items() if finding.status != "ok"}
    assert failed == {"capabilities": "missing", "resume": "missing"}
    assert findings["capabilities"].found == "without resume a killed training begins its stage again"


def test_an_evaluator_that_serves_nothing() -> None:
    def build(listener: Listener) -> tuple[Evaluator, nn.Module]:
        return TorchEvaluator(), nn.Linear(2, 2)

    statuses = {finding.name: finding.status for finding in perform(EVALUATOR_CHECKS, EvaluatorSubject(build))}
    assert statuses["members"] == statuses["binding"] == statuses["nothing left"] == "ok"
    assert statuses["capabilities"] == statuses["training"] == statuses["iterate"] == "missing"
    assert statuses["evaluate"] == statuses["example inputs"] == "missing"
    assert statuses["masks"] == statuses["resume"] == "skipped"
