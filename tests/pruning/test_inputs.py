"""Statistics of layers' inputs against the same numbers computed from the activations themselves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AlbertConfig, AlbertModel

from nnicompress.errors import JobError
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.models.outputs import OneOutput
from nnicompress.pruning.importance import IMPORTANCES, InputStatistic
from nnicompress.pruning.inputs import gather, spread
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.scores import measure
from nnicompress.trace import trace
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits

MEAN = InputStatistic(lambda values: values)


def hidden(model, batches):
    """What `down` reads of `up`: [samples * places, 16], of all batches."""
    model.eval()
    with torch.no_grad():
        maps = [model.up(torch.relu(model.bn(model.stem(inputs)))).relu() for inputs, _ in batches]
    return torch.cat([one.movedim(1, -1).reshape(-1, one.shape[1]) for one in maps]).double()


def scores_of_up(name):
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(3)
    widths = find_channel_groups(capture(model, (batches[0][0][:2],))).widths
    evaluator = SimpleEvaluator(batches)
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES[name], widths, {}, training_steps=3)
    return model, batches, scores


def test_apoz_is_the_share_of_zeros_behind_the_activation():
    model, batches, scores = scores_of_up("apoz")
    apoz = (hidden(model, batches) == 0).double().mean(0)
    assert 0.05 < float(apoz.mean()) < 0.95
    np.testing.assert_allclose(scores["up"], 1 - apoz.numpy(), atol=1e-12)


def test_mean_activation():
    model, batches, scores = scores_of_up("mean_activation")
    np.testing.assert_allclose(scores["up"], hidden(model, batches).mean(0).numpy(), rtol=1e-5)


def test_a_channel_with_two_readers_counts_each_element_it_meets():
    """The stem's channels are read by `up` (16 x 1 elements) and, behind the pool, by `head` (10 x 16 elements)."""
    model, batches, scores = scores_of_up("apoz")
    with torch.no_grad():
        stem = [torch.relu(model.bn(model.stem(inputs))) for inputs, _ in batches]
        pooled = [torch.max_pool2d(x + model.down(torch.relu(model.up(x))), 2) for x in stem]
    shares = [torch.cat(maps).ne(0).double().mean((0, 2, 3)) for maps in (stem, pooled)]
    expected = (16 * shares[0] + 160 * shares[1]) / 176
    np.testing.assert_allclose(scores["stem"], expected.numpy(), rtol=1e-7)  # float32 shares


def test_wanda_is_the_paper_s_metric_on_a_linear_layer():
    """|W[i, j]| * ||X[:, j]||, the norm over all rows; ours is divided by the root of their number."""
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(2)
    seen = []
    handle = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    evaluator = SimpleEvaluator(batches)
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES["wanda"], (), {"head.weight": (1, 1)}, training_steps=2)
    handle.remove()
    rows = torch.cat(seen).double()
    expected = model.head.weight.detach().abs().double() * rows.norm(dim=0) / len(rows) ** 0.5
    np.testing.assert_allclose(scores["head.weight"], expected.flatten().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(6, 4), torch.rand(5, 3, 6)),
        (nn.Conv2d(6, 4, 3, groups=2), torch.rand(2, 6, 5, 5)),
        (nn.Conv2d(6, 6, 3, groups=6), torch.rand(2, 6, 5, 5)),
        (nn.Conv1d(6, 4, 3), torch.rand(2, 6, 5)),
        (nn.Conv1d(6, 4, 3), torch.rand(6, 5)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), torch.rand(2, 6, 5, 5)),
    ],
)
def test_each_weight_gets_the_channel_that_it_is_multiplied_with(layer, inputs):
    """Only one input channel is not zero: the weights with a gradient are those that meet it."""
    dim = -1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1
    for channel in range(6):
        marked = torch.zeros_like(inputs)
        marked.select(dim, channel).copy_(inputs.select(dim, channel))
        layer.zero_grad()
        layer(marked).sum().backward()
        statistic = torch.zeros(6, dtype=torch.float64)
        statistic[channel] = 1
        assert torch.equal(spread(statistic, layer) != 0, layer.weight.grad != 0)


class Twice(nn.Module):
    """One linear layer, called twice, once by keyword, and once more in an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            self.layer(x * 1000)
        return self.layer(input=self.layer(x))


class TwiceEvaluator(SimpleEvaluator):
    def loss(self, batch):
        return self.model(batch[0]).sum()


def test_all_calls_with_gradients_count_and_no_hook_stays():
    model, inputs = Twice(), torch.rand(3, 4)
    evaluator = TwiceEvaluator([(inputs, inputs)])
    with evaluator.bound(model):
        found = gather(model, MEAN, ["layer.weight", "layer.bias"], lambda: evaluator.iterate(1))
    expected = torch.cat([inputs, model.layer(inputs).detach()]).double().mean(0)
    assert list(found) == ["layer.weight"]
    torch.testing.assert_close(found["layer.weight"], expected.expand(4, 4), rtol=1e-6, atol=1e-7)
    assert not model.layer._forward_pre_hooks


def test_a_tensor_that_is_multiplied_with_nothing_is_named():
    pruner = Pruner(
        [{"op_names": ["bn"], "sparse_ratio": 0.5}], SimpleEvaluator(), importance="wanda", granularity="element"
    )
    with pytest.raises(JobError, match=r"wanda looks at the inputs of convolutions and linear layers.*bn\.weight"):
        pruner.compress(ConvNet())


class Dropped(nn.Module):
    """Dropout between an activation and the layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.down(self.dropout(self.up(x).relu()))


@pytest.mark.parametrize("inside", [False, True])
def test_what_dropout_zeroes_is_no_zero_of_the_network(inside):
    """Also where the loop calls a part of the model alone, as a Trainer does."""
    torch.manual_seed(0)
    inner = Dropped()
    model = OneOutput(inner, "logits") if inside else inner
    rows = torch.randn(12, 6)
    evaluator = TorchEvaluator(
        TrainingLoop(lambda seed: DataLoader(list(rows), batch_size=4), validate_every=0),
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: (model.model if inside else model)(batch).square().mean(),
    )
    widths = find_channel_groups(capture(inner, (rows[:2],))).widths
    if inside:
        widths = [renamed(width, "model.") for width in widths]
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES["apoz"], tuple(widths), {}, training_steps=3)
    (found,) = scores.values()
    np.testing.assert_allclose(found, (inner.up(rows) > 0).double().mean(0).numpy(), atol=1e-12)
    assert all(module.training for module in model.modules())


def renamed(width, prefix):
    return dataclasses.replace(
        width, slots=tuple(dataclasses.replace(slot, tensor=prefix + slot.tensor) for slot in width.slots)
    )


@pytest.mark.parametrize("name", ["apoz", "mean_activation", "wanda"])
def test_shared_layers_are_scored_on_the_inputs_of_all_their_calls(name):
    """ALBERT runs one layer three times: what its feed-forward output reads, from the states between the calls."""
    torch.manual_seed(0)
    model = AlbertModel(
        AlbertConfig(
            vocab_size=20,
            embedding_size=8,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=6,
            hidden_act="relu",
            initializer_range=0.5,
        ),
        add_pooling_layer=False,
    ).eval()
    tokens = torch.randint(20, (8, 6))
    evaluator = TorchEvaluator(
        TrainingLoop(lambda seed: DataLoader(list(tokens), batch_size=4), validate_every=0),
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: model(batch).last_hidden_state.square().mean(),
    )
    groups = find_channel_groups(capture(model, (tokens[:2],)))
    (width,) = [width for width in groups.widths if width.kind == "ffn"]
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES[name], (width,), {}, training_steps=2)
    layer = model.encoder.albert_layer_groups[0].albert_layers[0]
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states[:3]
        read = torch.cat([layer.ffn(layer.attention(state)[0]).relu().flatten(0, 1) for state in states]).double()
        expected = {
            "apoz": (read > 0).double().mean(0),
            "mean_activation": read.mean(0),
            "wanda": layer.ffn_output.weight.abs().double().sum(0) * read.square().mean(0).sqrt(),
        }
    np.testing.assert_allclose(scores[width.name], expected[name].numpy(), rtol=1e-5)
