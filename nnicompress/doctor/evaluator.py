"""The contract of an evaluator (`evaluators/contract.py`), line by line, on real trainings of a few steps."""

from __future__ import annotations

from typing import Any

import torch

from nnicompress.doctor.checks import Check, Missing, Wrong
from nnicompress.doctor.evaluator_training import (
    forgets_hooks,
    hooks_fire,
    masks_hold,
    own_parameters_train,
    penalizes,
    resumes,
    trains,
    trains_another,
)
from nnicompress.doctor.snapshot import differences, parts_of
from nnicompress.doctor.trial import CAPABILITIES, Cut, EvaluatorSubject, cut, listed, needs, stopped_by, unchanged
from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Evaluator, ModelInput, StepEvent
from nnicompress.evaluators.inputs import tensors_in


def has_members(subject: EvaluatorSubject) -> str:
    """Each member of the protocol is there."""
    evaluator = subject.trial().evaluator
    names = [name for name in vars(Evaluator) if not name.startswith("_")]
    # Looked up in the class: `model` raises where none is bound.
    lacking = [name for name in names if not hasattr(type(evaluator), name) and name not in vars(evaluator)]
    if lacking:
        raise Missing(f"{type(evaluator).__name__} has no {', '.join(lacking)}")
    return f"all {len(names)} members"


def serves(subject: EvaluatorSubject) -> str:
    """`capabilities` are known names, and `require` agrees with them."""
    evaluator = subject.trial().evaluator
    own = frozenset(evaluator.capabilities)
    if unknown := own - CAPABILITIES.keys():
        raise Wrong(f"unknown capabilities: {', '.join(sorted(unknown))} (known: {', '.join(CAPABILITIES)})")
    for name in sorted(CAPABILITIES.keys() - {"resume"}):
        try:
            evaluator.require(name, by="the doctor", why="it tries everything")
        except UserError as error:
            if name in own:
                raise Wrong(f"capabilities lists {name}, and require({name!r}) refuses it: {error}") from error
        else:
            if name not in own:
                raise Wrong(f"capabilities lacks {name}, and require({name!r}) raises no UserError")
    if lacking := [name for name in CAPABILITIES if name not in own]:
        raise Missing("; ".join(f"without {name} {CAPABILITIES[name]}" for name in lacking))
    return ", ".join(CAPABILITIES)


def binds(subject: EvaluatorSubject) -> str:
    """`model` is the bound one, inside the block only, also where the block raises."""
    trial = subject.trial()
    with trial.evaluator.bound(trial.model):
        if trial.evaluator.model is not trial.model:
            raise Wrong("inside `bound(model)` the evaluator's model is another object")
    _require_unbound(trial.evaluator, "the block")
    with stopped_by(Cut), trial.evaluator.bound(trial.model):
        cut()
    _require_unbound(trial.evaluator, "a block that raised")
    return "the model is bound inside the block only"


def _require_unbound(evaluator: Evaluator, after: str) -> None:
    try:
        found = evaluator.model
    except Exception:  # what is raised is the evaluator's own choice
        return
    raise Wrong(f"after {after} the evaluator still has a model ({type(found).__name__})")


def iterates(subject: EvaluatorSubject) -> str:
    """Gradients and hooks for as many batches as asked; nothing is changed."""
    needs(subject, "iterate")
    steps: list[int] = []
    gradients: list[bool] = []
    with subject.bound() as trial:
        _, weight = trial.weight

        def look(event: StepEvent) -> None:
            steps.append(event.step)
            gradients.append(weight.grad is not None and bool(weight.grad.any()))

        trial.evaluator.before_step(look)
        unchanged(trial.model, "iterate(3)", lambda: trial.evaluator.iterate(3))
        left = [name for name, parameter in trial.model.named_parameters() if parameter.grad is not None]
    if steps != [1, 2, 3] or not all(gradients):
        raise Wrong(f"iterate(3) should fire before_step for steps 1, 2, 3 with gradients there; fired: {steps}")
    if left:
        raise Wrong(f"iterate leaves gradients: {listed(left)}")
    return "3 batches with gradients, nothing changed"


def evaluates(subject: EvaluatorSubject) -> str:
    """`default` on both splits, after before_evaluate; nothing is changed."""
    needs(subject, "evaluate")
    fired: list[bool] = []
    with subject.bound() as trial:
        trial.evaluator.before_evaluate(lambda model: fired.append(torch.is_grad_enabled()))
        found: dict[str, Any] = {}
        for split in ("validation", "test"):
            num_fired = len(fired)

            def measure(split: str = split) -> None:
                found[split] = trial.evaluator.evaluate(split)

            unchanged(trial.model, f"evaluate({split!r})", measure)
            if len(fired) == num_fired:
                raise Wrong("before_evaluate hooks are not called before an evaluation")
            if not isinstance(found[split], dict) or not isinstance(found[split].get("default"), float):
                raise Wrong(f"evaluate({split!r}) returns {_short(found[split])}, not a dict with a float 'default'")
    if any(fired):
        raise Wrong("before_evaluate hooks run with autograd on")
    return ", ".join(f"{split} {values['default']:.4g}" for split, values in found.items())


def gives_inputs(subject: EvaluatorSubject) -> str:
    """Real inputs of any batch size, which the model's forward takes; nothing is changed."""
    needs(subject, "example_inputs")
    with subject.bound() as trial:
        found: dict[int, ModelInput] = {}
        for size in (2, 5):

            def ask(size: int = size) -> None:
                found[size] = trial.evaluator.example_inputs(size)

            unchanged(trial.model, f"example_inputs({size})", ask)
            if not (isinstance(found[size], tuple) and len(found[size]) == 2 and isinstance(found[size][1], dict)):
                raise Wrong(f"example_inputs({size}) returns {_short(found[size])}, not (args, kwargs)")
            tensors = [tensor for tensor in tensors_in(found[size]) if tensor.ndim]
            if not tensors or len(tensors[0]) != size:
                shown = list(tensors[0].shape) if tensors else "no tensor"
                raise Wrong(f"example_inputs({size}) should have batch size {size}; it gives {shown}")
        args, kwargs = found[2]
        trial.model.eval()
        with torch.no_grad():
            trial.model(*args, **kwargs)
    return f"batch sizes 2 and 5; first input {list(next(tensors_in(found[2])).shape)}"


def leaves_nothing(subject: EvaluatorSubject) -> str:
    """After all of it, and after a block that raised, classes, attributes, hooks and names are as before."""
    trial = subject.trial()
    served = frozenset(trial.evaluator.capabilities)
    before = parts_of(trial.model)

    def use() -> None:
        evaluator = trial.evaluator
        with evaluator.bound(trial.model):
            evaluator.before_step(lambda event: None)
            evaluator.after_step(lambda event: None)
            if "example_inputs" in served:
                evaluator.example_inputs(2)
            if "iterate" in served:
                evaluator.iterate(1)
            if "train" in served:
                evaluator.train(max_steps=2)
            if "evaluate" in served:
                evaluator.evaluate()

    use()
    if left := differences(before, parts_of(trial.model)):
        raise Wrong(f"left changed: {listed(left)}")
    if "train" in served:
        with stopped_by(Cut), trial.evaluator.bound(trial.model):
            trial.evaluator.before_step(cut)
            trial.evaluator.train(max_steps=2)
        if left := differences(before, parts_of(trial.model)):
            raise Wrong(f"left changed by a training that raised: {listed(left)}")
    return "classes, attributes, hooks and names as before"


def _short(value: Any) -> str:
    text = repr(value).partition("\n")[0]
    return text if len(text) <= 60 else f"{text[:57]}..."


EVALUATOR_CHECKS: tuple[Check[EvaluatorSubject], ...] = (
    Check("members", has_members, "add them; evaluators/contract.py says what each does"),
    Check(
        "capabilities",
        serves,
        "build it with what is missing, or serve it; require() and capabilities must agree",
        ("members",),
    ),
    Check("binding", binds, "make bound() a context manager that unbinds in a finally block"),
    Check("training", trains, "train() runs your loop for exactly max_steps optimizer steps", ("binding",)),
    Check(
        "step hooks",
        hooks_fire,
        "use Optimizer.register_step_pre_hook and register_step_post_hook; count steps from 1 in each training",
        ("training",),
    ),
    Check("hooks end", forgets_hooks, "forget all registrations when the model is unbound", ("step hooks",)),
    Check("masks", masks_hold, "call after_step hooks after every optimizer step, the last included", ("step hooks",)),
    Check(
        "penalty",
        penalizes,
        "add the penalty to the first loss that is backpropagated in each step, before clipping, with weight one",
        ("step hooks",),
    ),
    Check(
        "own parameters",
        own_parameters_train,
        "give them to the optimizer in a group of their own with weight_decay=0",
        ("penalty",),
    ),
    Check(
        "iterate",
        iterates,
        "put weights, buffers, gradients, modes and random states back (evaluators/preserve.py)",
        ("binding",),
    ),
    Check("evaluate", evaluates, "return {'default': float} and leave modes and random states alone", ("binding",)),
    Check("example inputs", gives_inputs, "cut or repeat a real batch: evaluators/inputs.py: resized", ("binding",)),
    Check("another model", trains_another, "rebuild optimizers for each bound model: nnicompress.trace", ("training",)),
    Check(
        "resume",
        resumes,
        "state_dict holds optimizers (momentum too), schedulers, counters, random states and the place in the data",
        ("training",),
    ),
    Check(
        "nothing left",
        leaves_nothing,
        "remove every hook, wrapper and attribute in a finally block when the model is unbound",
        ("binding",),
    ),
)
