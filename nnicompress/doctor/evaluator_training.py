"""What an evaluator's `train` owes a compressor: steps, hooks, masks, penalties, parameters, resuming."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.doctor.checks import Missing, Wrong
from nnicompress.doctor.snapshot import changed, copied, restore
from nnicompress.doctor.trial import Cut, EvaluatorSubject, listed, needs, stopped_by
from nnicompress.evaluators.contract import StepEvent
from nnicompress.events import Event, StepDone
from nnicompress.pipeline.seeding import seed_everything
from nnicompress.pruning.masks import Masks

STEPS = 4
CUT_AFTER = 2


def trains(subject: EvaluatorSubject) -> str:
    """As many steps as asked, one finite loss each, and the weights change."""
    needs(subject, "train")
    with subject.bound() as trial:
        before = copied(trial.model)
        result = trial.evaluator.train(max_steps=STEPS)
        if result.steps != STEPS:
            raise Wrong(f"train(max_steps={STEPS}) made {result.steps} steps")
        if len(result.losses) != STEPS or not all(map(math.isfinite, result.losses)):
            raise Wrong(f"{STEPS} steps should give {STEPS} finite losses, not {list(result.losses)}")
        if not changed(before, copied(trial.model)):
            raise Wrong("the training changed no weight")
    return f"{STEPS} steps, losses {result.losses[0]:.3g} to {result.losses[-1]:.3g}"


def hooks_fire(subject: EvaluatorSubject) -> str:
    """Before and after each step, in this order, with the step's number, without autograd; `remove` ends it."""
    needs(subject, "train")
    calls: list[tuple[str, int]] = []
    faults: list[str] = []
    with subject.bound() as trial:
        name, weight = trial.weight
        seen = weight.detach().clone()

        def before(event: StepEvent) -> None:
            calls.append(("before", event.step))
            if weight.grad is None or not bool(weight.grad.any()):
                faults.append(f"before step {event.step} {name} has no gradient")
            if not torch.equal(weight, seen):
                faults.append(f"{name} changes between after_step {event.step - 1} and before_step {event.step}")
            note(event)

        def after(event: StepEvent) -> None:
            calls.append(("after", event.step))
            seen.copy_(weight.detach())  # a warm-up's first rate may be zero: that it moved is no sign of the step
            note(event)

        def note(event: StepEvent) -> None:
            if torch.is_grad_enabled():
                faults.append("step hooks run with autograd on")
            if event.model is not trial.model:
                faults.append("the event's model is not the bound one")

        handles = [trial.evaluator.before_step(before), trial.evaluator.after_step(after)]
        trial.evaluator.train(max_steps=3)
        for handle in (*handles, *handles):
            handle.remove()
        num_calls = len(calls)
        trial.evaluator.train(max_steps=1)
        if len(calls) > num_calls:
            faults.append("hooks still fire after remove()")
    order = [(when, step) for step in (1, 2, 3) for when in ("before", "after")]
    if calls[:num_calls] != order:
        shown = ", ".join(f"{when} {step}" for when, step in calls[:num_calls]) or "nothing"
        faults.insert(0, f"three steps should fire before 1, after 1, ... after 3; fired: {shown}")
    if faults:
        raise Wrong("; ".join(dict.fromkeys(faults)))
    return "before and after each of 3 steps"


def forgets_hooks(subject: EvaluatorSubject) -> str:
    """What was registered while a model was bound is forgotten when it is unbound."""
    needs(subject, "train")
    trial = subject.trial()
    calls: list[int] = []
    with trial.evaluator.bound(trial.model):
        trial.evaluator.before_step(lambda event: calls.append(event.step))
        trial.evaluator.after_step(lambda event: calls.append(event.step))
    with trial.evaluator.bound(trial.model):
        trial.evaluator.train(max_steps=1)
    if calls:
        raise Wrong("a hook of an earlier binding fires in a later one")
    return "hooks end with the binding"


def masks_hold(subject: EvaluatorSubject) -> str:
    """Masks enforced by after_step: removed elements are zero after a training, the others are trained."""
    needs(subject, "train")
    with subject.bound() as trial:
        name, weight = trial.weight
        keep = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0
        handle = Masks({name: keep}).attach(trial.evaluator)
        before = weight.detach().clone()
        trial.evaluator.train(max_steps=3)
        handle.remove()
        if int(weight.detach()[~keep].count_nonzero()):
            raise Wrong(f"{int(weight.detach()[~keep].count_nonzero())} masked elements of {name} are not zero")
        if torch.equal(weight.detach()[keep], before[keep]):
            raise Wrong(f"the kept elements of {name} are not trained")
    return f"half of {name} stays zero over 3 steps"


def penalizes(subject: EvaluatorSubject) -> str:
    """A penalty's gradient arrives once a step, with weight one, and the loss keeps its value."""
    needs(subject, "train")

    def run(with_penalty: bool) -> tuple[float, dict[str, Tensor], list[float], str]:
        weights: list[float] = []
        arrived: list[float] = []
        gradients: dict[str, Tensor] = {}
        with subject.bound() as trial:
            name, weight = trial.weight

            def penalty(model: nn.Module) -> Tensor:
                value = weight.sum()
                value.register_hook(lambda gradient: weights.append(float(gradient)))  # type: ignore[no-untyped-call]
                return value

            def look(event: StepEvent) -> None:
                arrived.append(sum(weights))
                weights.clear()
                if not gradients:
                    own = trial.model.named_parameters()
                    gradients.update({n: p.grad.detach().clone() for n, p in own if p.grad is not None})

            if with_penalty:
                trial.evaluator.add_penalty(penalty)
            trial.evaluator.before_step(look)
            result = trial.evaluator.train(max_steps=3)
        return result.losses[0], gradients, arrived, name

    loss, without, _, name = run(False)
    loss_with, gradients, arrived, _ = run(True)
    times = ", ".join(f"{value:g}" for value in arrived)
    if any(abs(value - 1) > 1e-4 for value in arrived):
        raise Wrong(f"in three steps the penalty's gradient should arrive once each; it arrived {times} times")
    if loss_with != loss:
        raise Wrong(f"the reported loss changes from {loss:.6g} to {loss_with:.6g}: the penalty is no part of it")
    others = [other for other in without if other != name]
    clipped = any(not torch.equal(without[other], gradients[other]) for other in others)
    added = gradients[name] - without[name]
    if not clipped and not torch.allclose(added, torch.ones_like(added), atol=1e-3):
        raise Wrong(f"its gradient of {name} is 1 everywhere, and {float(added.mean()):.3g} was there at the step")
    if clipped and torch.equal(added, torch.zeros_like(added)):
        raise Wrong(f"its gradient of {name} was not there at the step")
    return "once a step; the loss keeps its value"


def own_parameters_train(subject: EvaluatorSubject) -> str:
    """A compressor's own parameters are trained, without weight decay."""
    needs(subject, "train")
    with subject.bound() as trial:
        moving, still = nn.Parameter(torch.ones(3)), nn.Parameter(torch.full((3,), 2.0))
        trial.evaluator.add_parameters([("doctor.moving", moving), ("doctor.still", still)])
        trial.evaluator.add_penalty(lambda model: (moving * 5).sum() + (still * 0).sum())
        trial.evaluator.train(max_steps=3)
    if torch.equal(moving, torch.ones(3)):
        raise Wrong("parameters that were added do not move, though they have a gradient")
    if not torch.equal(still, torch.full((3,), 2.0)):
        raise Wrong("added parameters with gradient zero move: weight decay acts on them")
    return "trained, without decay"


def trains_another(subject: EvaluatorSubject) -> str:
    """A copy of the model, bound later, is the one that is trained: optimizers are rebuilt by parameter names."""
    needs(subject, "train")
    trial = subject.trial()
    with trial.evaluator.bound(trial.model):
        pass
    other = copy.deepcopy(trial.model)
    first, second = copied(trial.model), copied(other)
    with trial.evaluator.bound(other):
        trial.evaluator.train(max_steps=2)
    if not changed(second, copied(other)):
        raise Wrong("a model that is bound second is not trained: its optimizer still has the first one's parameters")
    if moved := changed(first, copied(trial.model)):
        raise Wrong(f"training a second model changes the first: {listed(moved)}")
    return "optimizers are rebuilt for a new model"


def resumes(subject: EvaluatorSubject) -> str:
    """A training that is cut off and goes on ends with the same bits as one that was not."""
    needs(subject, "resume")
    with subject.bound() as trial:
        whole = trial.evaluator.train(max_steps=STEPS)
        expected = copied(trial.model)

    saved: dict[str, Any] = {}

    def save_and_cut(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == CUT_AFTER:
            saved.update(state=copy.deepcopy(trial.evaluator.state_dict()), tensors=copied(trial.model))
            raise Cut

    trial = subject.trial(save_and_cut)
    with stopped_by(Cut), trial.evaluator.bound(trial.model):
        trial.evaluator.train(max_steps=STEPS)
    if not saved:
        raise Missing("no StepDone reaches a listener, which is when a training is saved: take a parameter `listener`")
    trial = subject.trial()
    restore(trial.model, saved["tensors"])
    seed_everything(12345)  # whatever is drawn now, the state says what is drawn next
    with trial.evaluator.bound(trial.model):
        trial.evaluator.load_state_dict(saved["state"])
        result = trial.evaluator.train(max_steps=STEPS)
    if result.steps != STEPS:
        raise Wrong(f"max_steps={STEPS} includes the {CUT_AFTER} steps done before; the training says {result.steps}")
    if other := changed(expected, copied(trial.model)):
        raise Wrong(f"after going on from step {CUT_AFTER} of {STEPS} other bits: {listed(other)}")
    if result.losses != whole.losses:
        raise Wrong("the losses of the continued training are not those of an uninterrupted one")
    return f"cut after step {CUT_AFTER} of {STEPS}, the same bits"
