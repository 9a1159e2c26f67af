"""The lottery ticket against its procedure written out: train, prune the smallest, go back to the first weights."""

import copy

import torch

from nnicompress.pruning.masks import Masks
from nnicompress.pruning.pruner import Pruner
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits

HEAD = [{"op_names": ["head"], "sparse_ratio": 0.75}]
SCHEDULE = {"name": "lottery_ticket", "total_times": 2, "interval_steps": 6}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def procedure(model, batches):
    """Two rounds of 50 %: the masks, and the masked first weights."""
    first = copy.deepcopy(model.state_dict())
    keep = torch.ones(1280, dtype=torch.bool)
    for count in (640, 960):
        model.load_state_dict(first)
        evaluator = SimpleEvaluator(batches, sgd)
        with evaluator.bound(model):
            handle = Masks({"head.weight": keep.view(10, 128)}).attach(evaluator)
            evaluator.train(max_steps=6)
            handle.remove()
        sizes = model.head.weight.detach().flatten().abs().masked_fill(~keep, -1)
        keep[sizes.argsort(stable=True)[:count]] = False
    return keep.view(10, 128), first


def test_a_ticket_is_the_first_weights_under_the_masks_of_the_trained_ones():
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(6)
    keep, first = procedure(copy.deepcopy(model), batches)
    evaluator = SimpleEvaluator(batches, sgd)
    result = Pruner(HEAD, evaluator, importance="level", granularity="element", schedule=SCHEDULE).compress(model)
    assert evaluator.trainings == [6, 6]  # before each removal, and none after the last
    assert torch.equal(result.masks.keep["head.weight"], keep)
    for name, value in model.state_dict().items():
        expected = first[name] * keep if name == "head.weight" else first[name]
        assert torch.equal(value, expected), name


def test_the_masks_are_not_those_of_the_first_weights():
    torch.manual_seed(0)
    model = ConvNet()
    one_shot = Pruner(HEAD, SimpleEvaluator(digits(6), sgd), importance="level", granularity="element")
    lottery = Pruner(
        HEAD, SimpleEvaluator(digits(6), sgd), importance="level", granularity="element", schedule=SCHEDULE
    )
    masks = [each.compress(copy.deepcopy(model)).masks.keep["head.weight"] for each in (one_shot, lottery)]
    assert not torch.equal(*masks)


def test_channels_have_tickets_too():
    model = ConvNet()
    first = copy.deepcopy(model.state_dict())
    targets = [{"op_names": ["up"], "sparse_ratio": 0.75}]
    result = Pruner(targets, SimpleEvaluator(digits(6), sgd), importance="l1", schedule=SCHEDULE).compress(model)
    assert len(result.removal["up"]) == 12
    kept = [i for i in range(16) if i not in result.removal["up"]]
    assert torch.equal(model.up.weight[kept], first["up.weight"][kept])


def test_a_state_brings_the_first_weights_along():
    """Cut off in the second training, and gone on with by another pruner."""
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(6)
    keep, first = procedure(copy.deepcopy(model), batches)

    class CutOff(Exception):
        pass

    class Evaluator(SimpleEvaluator):
        def train(self, **lengths):
            if len(self.trainings) == 1:
                raise CutOff
            return super().train(**lengths)

    pruner = Pruner(HEAD, Evaluator(batches, sgd), importance="level", granularity="element", schedule=SCHEDULE)
    try:
        pruner.compress(model)
    except CutOff:
        state = copy.deepcopy(pruner.state_dict())
    assert state["number"] == 1
    second = Pruner(HEAD, SimpleEvaluator(batches, sgd), importance="level", granularity="element", schedule=SCHEDULE)
    second.load_state_dict(state)
    result = second.compress(model)
    assert torch.equal(result.masks.keep["head.weight"], keep)
    assert torch.equal(model.stem.weight, first["stem.weight"])
