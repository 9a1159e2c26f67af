"""Masks: exactly zero through real training, NaN cleared, no word in the clip norm, no trace afterwards."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nnicompress.errors import JobError, UserError
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.pruning.masks import Masks
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits


def structured(model):
    groups = find_channel_groups(capture(model, (digits(1, 2)[0][0],)))
    removal = {"stem": np.array([1, 4]), "up": np.array([0, 2, 3, 15])}
    return Masks.from_removal(model, groups.widths, removal), groups, removal


def masked_values(model, masks):
    return torch.cat([dict(model.named_parameters())[name].detach()[~keep] for name, keep in masks.keep.items()])


def test_a_removed_group_is_zero_in_producers_consumers_and_between():
    model = ConvNet()
    masks, _, _ = structured(model)
    masks.apply(model)
    for channel in (1, 4):
        assert model.stem.weight[channel].count_nonzero() == 0 == model.stem.bias[channel].count_nonzero()
        assert model.bn.weight[channel] == 0 == model.bn.bias[channel]
        assert model.up.weight[:, channel].count_nonzero() == 0
        assert model.down.weight[channel].count_nonzero() == 0
        assert model.head.weight[:, 16 * channel : 16 * (channel + 1)].count_nonzero() == 0
    assert model.up.weight[[0, 2, 3, 15]].count_nonzero() == 0
    # By hand: stem 2*9, its bias and bn 3*2, up 4*8 + 16*2 - 8, its bias 4, down 2*16 + 8*4 - 8, head 10*32.
    assert masks.removed == 18 + 6 + 56 + 4 + 56 + 320
    kept = torch.tensor([c for c in range(8) if c not in (1, 4)])
    assert model.stem.weight[kept].count_nonzero() == model.stem.weight[kept].numel()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-3, nesterov=True),
    "SGD, maximized": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_masked_slots_stay_exactly_zero_in_training(optimizer):
    model, evaluator = ConvNet(), SimpleEvaluator(optimizer=optimizer)
    with evaluator.bound(model):
        evaluator.train(max_steps=3)
        masks, _, _ = structured(model)
        handle = masks.attach(evaluator)
        assert masked_values(model, masks).count_nonzero() == 0
        before = copy.deepcopy(model.state_dict())
        evaluator.train(max_steps=10)
        handle.remove()
    assert masked_values(model, masks).count_nonzero() == 0
    assert not torch.equal(model.up.weight, before["up.weight"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_loss_of_nan_does_not_reach_masked_weights(optimizer, clip_norm):
    batches = digits()
    batches[2] = (batches[2][0] * float("nan"), batches[2][1])
    model, evaluator = ConvNet(), SimpleEvaluator(batches, optimizer, clip_norm)
    masks, _, _ = structured(model)
    seen = []
    with evaluator.bound(model):
        handle = masks.attach(evaluator)
        watch = evaluator.after_step(lambda event: seen.append(masked_values(model, masks)))
        evaluator.train(max_steps=5)
        watch.remove()
        handle.remove()
    assert model.bn.running_mean.isnan().any()
    assert len(seen) == 5 and all(values.count_nonzero() == 0 for values in seen)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_noise_that_a_loop_adds_behind_autograd_is_cleared(optimizer):
    """`grad.data` has no version counter: nothing short of filling the weights notices."""
    model, evaluator = ConvNet(), SimpleEvaluator(optimizer=optimizer)
    masks, _, _ = structured(model)

    def add_noise(event):
        for parameter in model.parameters():
            parameter.grad.data.add_(torch.randn_like(parameter))

    with evaluator.bound(model):
        handle = masks.attach(evaluator)
        noise = evaluator.before_step(add_noise)
        evaluator.train(max_steps=3)
        noise.remove()
        handle.remove()
    assert masked_values(model, masks).count_nonzero() == 0


def test_element_masks_hold_too_and_without_them_training_moves_the_slots():
    model, evaluator = ConvNet(), SimpleEvaluator()
    masks = Masks({"up.weight": torch.rand(16, 8, 1, 1) > 0.5, "head.bias": torch.arange(10) % 2 == 0})
    with evaluator.bound(model):
        handle = masks.attach(evaluator)
        evaluator.train(max_steps=5)
        assert masked_values(model, masks).count_nonzero() == 0
        handle.remove()
        handle.remove()
        evaluator.train(max_steps=1)
    assert masked_values(model, masks).count_nonzero() > 0


def test_nan_in_a_masked_slot_is_cleared():
    model = ConvNet()
    masks, _, _ = structured(model)
    with torch.no_grad():
        model.stem.weight[1, 0, 0, 0] = float("nan")
        model.head.weight[0, 16] = float("inf")
    masks.apply(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_masked_gradients_do_not_count_in_the_clip_norm():
    model, evaluator = ConvNet(), SimpleEvaluator(clip_norm=1e9)
    masks = Masks({"stem.weight": torch.rand(8, 1, 3, 3) > 0.9, "head.weight": torch.rand(10, 128) > 0.9})
    with evaluator.bound(model):
        masks.apply(model)
        evaluator.loss(evaluator.batches[0]).backward()
        full = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        expected = torch.stack(
            [
                (p.grad * masks.keep[name] if name in masks.keep else p.grad).norm()
                for name, p in model.named_parameters()
            ]
        ).norm()
        model.zero_grad()
        handle = masks.attach(evaluator)
        evaluator.train(max_steps=1)
        handle.remove()
    assert evaluator.clip_norms[0] == pytest.approx(float(expected), rel=1e-5)
    assert evaluator.clip_norms[0] < 0.99 * float(full)


def test_before_an_evaluation_masks_hold_whatever_happened():
    model, evaluator = ConvNet(), SimpleEvaluator()
    masks, _, _ = structured(model)
    with evaluator.bound(model):
        handle = masks.attach(evaluator)
        with torch.no_grad():
            model.stem.weight.fill_(1.0)
        evaluator.evaluate()
        handle.remove()
    assert model.stem.weight[[1, 4]].count_nonzero() == 0


def test_nothing_is_left_on_the_model():
    model, evaluator = ConvNet(), SimpleEvaluator()
    before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    masks, _, _ = structured(model)
    with evaluator.bound(model):
        handle = masks.attach(evaluator)
        evaluator.train(max_steps=1)
        handle.remove()
    assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == before
    assert list(model.state_dict()) == keys
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert not any((evaluator._before, evaluator._after, evaluator._evaluate))


def test_what_is_masked_equals_what_is_removed():
    """An independent truth: build the narrow network by hand and compare the outputs."""
    torch.manual_seed(0)
    model, inputs = ConvNet(), digits(1, 16)[0][0]
    with torch.no_grad():
        nn.init.normal_(model.bn.weight), nn.init.normal_(model.bn.bias)
        nn.init.normal_(model.bn.running_mean)
    masks, _, removal = structured(model)
    masks.apply(model)
    a = torch.tensor([c for c in range(8) if c not in removal["stem"]])
    b = torch.tensor([c for c in range(16) if c not in removal["up"]])
    narrow = ConvNet(len(a), len(b))
    state = model.state_dict()
    columns = (a[:, None] * 16 + torch.arange(16)).flatten()
    narrow.load_state_dict(
        {
            **{name: value[a] if value.dim() else value for name, value in state.items() if name[:3] in ("ste", "bn.")},
            "up.weight": state["up.weight"][b][:, a],
            "up.bias": state["up.bias"][b],
            "down.weight": state["down.weight"][a][:, b],
            "head.weight": state["head.weight"][:, columns],
            "head.bias": state["head.bias"],
        }
    )
    torch.testing.assert_close(narrow.eval()(inputs), model.eval()(inputs), rtol=1e-5, atol=1e-6)


def test_masks_combine_and_rebuild_from_what_they_keep():
    a = Masks({"w": torch.tensor([[True, False], [True, True]])})
    b = Masks({"w": torch.tensor([[True, True], [False, True]]), "v": torch.tensor([False])})
    both = a & b
    assert both.keep["w"].tolist() == [[True, False], [False, True]]
    assert both.keep["v"].tolist() == [False]
    assert Masks(both.keep).removed == 3


def test_masks_of_another_model_are_refused():
    masks = Masks({"stem.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)})
    with pytest.raises(JobError, match=r"stem.weight has shape \(8, 1, 3, 3\), its mask \(4, 1, 3, 3\)"):
        masks.apply(ConvNet())
    with pytest.raises(JobError, match="Linear has no parameter 'stem.weight'"):
        masks.apply(nn.Linear(2, 2))


def test_sparse_gradients_are_refused():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3, sparse=True)

        def forward(self, x):
            return self.table(x).sum(1)

    model = Bag()
    evaluator = SimpleEvaluator([(torch.tensor([[1, 2]]), torch.tensor([0]))])
    with evaluator.bound(model):
        Masks({"table.weight": torch.ones(5, 3, dtype=torch.bool)}).attach(evaluator)
        with pytest.raises(UserError, match="table.weight has sparse gradients"):
            evaluator.train(max_steps=1)
