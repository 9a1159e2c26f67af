"""Checkpoints that a run may start from."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from nnicompress.errors import ConfigError
from nnicompress.pipeline.stages.start import load_weights, read_checkpoint


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("nest", ["safetensors", "plain", "state_dict", "model"])
def test_the_usual_kinds_of_checkpoint(tmp_path: Path, nest: str) -> None:
    trained, fresh = network(), network()
    path = tmp_path / ("w.safetensors" if nest == "safetensors" else "w.pt")
    if nest == "safetensors":
        save_model(trained, str(path))
    else:
        weights = trained.state_dict()
        torch.save(weights if nest == "plain" else {nest: weights, "epoch": 3}, path)
    load_weights(fresh, read_checkpoint(path))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


def test_a_tied_tensor_is_given_once(tmp_path: Path) -> None:
    trained, fresh = Tied(), Tied()
    save_model(trained, str(tmp_path / "w.safetensors"))
    load_weights(fresh, read_checkpoint(tmp_path / "w.safetensors"))
    assert torch.equal(fresh.head.weight, trained.embed.weight)


def test_names_and_shapes_must_fit() -> None:
    weights = network().state_dict()
    with pytest.raises(ConfigError, match=r"has '0\.weigth', Sequential has not; did you mean '0\.weight'"):
        load_weights(network(), {**weights, "0.weigth": weights["0.weight"]})
    with pytest.raises(ConfigError, match=r"'0\.bias' is \[9\] in the checkpoint and \[4\] in the model"):
        load_weights(network(), {**weights, "0.bias": torch.zeros(9)})
    with pytest.raises(ConfigError, match=r"lacks '1\.weight' and 1 more"):
        load_weights(network(), {n: t for n, t in weights.items() if n.startswith("0")})


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "x.safetensors").write_bytes(b"not at all")
    with pytest.raises(ConfigError, match="neither safetensors nor"):
        read_checkpoint(tmp_path / "x.safetensors")
    torch.save({"epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no state_dict"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"hello\n", b"", b"PK\x03\x04 half of an archive", bytes(range(256))])
def test_a_damaged_file_is_one_line_without_torch_s_own_advice(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="neither safetensors nor a state_dict") as caught:
        read_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_weights_that_are_not_finite_are_named() -> None:
    weights = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    weights["0.weight"].view(-1)[0] = float("nan")
    with pytest.raises(ConfigError, match=r"'0\.weight' of the checkpoint holds values that are not finite"):
        load_weights(network(), weights)


def test_a_pickle_never_runs_code(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="neither safetensors nor a state_dict"):
        read_checkpoint(tmp_path / "model.pt")
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(ConfigError):
        read_checkpoint(tmp_path / "bomb.pt")
    assert not marker.exists()
