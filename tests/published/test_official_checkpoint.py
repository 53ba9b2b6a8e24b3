"""Published checkpoints: what is read, what is refused, and that the model computes what the published code would."""

from __future__ import annotations

import io
import pickle
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_network import CorrectedPropagation, PublishedNetwork, images, published_network
from torch import Tensor, nn

import ssgrl_fast as sf
from ssgrl_fast import cli
from ssgrl_fast.published.checkpoint import load_official_checkpoint, read_official


def backbone(network: PublishedNetwork) -> nn.Module:
    """A module of the same structure, other weights, that says its channels."""
    body = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.ReLU()).double()
    body.out_channels = 24
    return body


def save(path: Path, network: nn.Module, **beside: Any) -> Path:
    torch.save({"epoch": 3, "state_dict": network.state_dict(), "best_mAP": np.float64(83.8), **beside}, path)
    return path


def load(path: Path, network: PublishedNetwork, **options: Any) -> sf.SSGRL:
    given = {"words": network.word_features, "adjacency": network.graph_net._in_matrix} | options
    words, adjacency = given.pop("words"), given.pop("adjacency")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return load_official_checkpoint(path, words, adjacency, backbone=backbone(network), **given)
    finally:
        torch.set_default_dtype(default)


def test_the_model_computes_what_the_published_network_does(tmp_path: Path) -> None:
    network = published_network()
    model = load(save(tmp_path / "model_best.pth.tar", network), network)
    assert model.head.mode == "official" and not model.training
    found = model(images(torch.float64))
    torch.testing.assert_close(found, network(images(torch.float64)), rtol=0, atol=1e-10)
    model.save_pretrained(tmp_path / "bundle")
    again = sf.SSGRL.from_pretrained(tmp_path / "bundle", backbone=backbone(network))
    assert torch.equal(again(images(torch.float64)), found)


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 did: both as strings of bytes."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text


@pytest.mark.parametrize("kind", ["zip", "legacy", "Python 2"])
def test_files_of_any_age_are_read_with_a_numpy_scalar_inside(kind: str, tmp_path: Path) -> None:
    network, path = published_network(), tmp_path / "checkpoint.pth.tar"
    content = {"epoch": 3, "state_dict": network.state_dict(), "best_mAP": np.float64(83.8)}
    module = types.ModuleType("python2")
    module.Pickler, module.dump = Python2, lambda value, file, protocol: Python2(file, 2).dump(value)
    options = {
        "zip": {},
        "legacy": {"_use_new_zipfile_serialization": False, "pickle_protocol": 2},
        "Python 2": {"_use_new_zipfile_serialization": False, "pickle_protocol": 2, "pickle_module": module},
    }
    torch.save(content, path, **options[kind])
    if kind == "Python 2":
        assert b"U\x10fc_output.weight" in path.read_bytes()
    found = read_official(path)
    assert found.facts["epoch"] == 3 and found.facts["best_mAP"] == 83.8
    assert found.sizes == {"K": 16, "D": 24, "S": 10, "M": 16, "O": 24, "C": 7}
    torch.testing.assert_close(load(path, network)(images(torch.float64)), network(images(torch.float64)))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_not_run(zipped: bool, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    path = tmp_path / "model.pth"
    content = {"state_dict": published_network().state_dict(), "extra": Malicious(planted)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"model\.pth: not a readable file of weights: it holds objects of \S+ .*nothing in it is run"
    ):
        read_official(path)
    assert not planted.exists()
    torch.load(path, weights_only=False)  # it would have
    assert planted.exists()


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    network = published_network()
    path = save(tmp_path / "parallel.pth", nn.DataParallel(network))
    torch.testing.assert_close(load(path, network)(images(torch.float64)), network(images(torch.float64)))


def test_a_bare_state_dict_of_a_resnet_without_counters_is_read(tmp_path: Path) -> None:
    """The published names on a torchvision ResNet; counters of batches are what old files lack."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    words, graph = torch.randn(5, 10), torch.rand(5, 5)
    network = PublishedNetwork(words, graph, dim=512, joint_dim=8)
    network.resnet_101 = resnet18()
    del network.resnet_101.fc
    state = {key: value for key, value in network.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "bare.pth")
    names = ["a", "b", "c", "d", "e"]
    model = load_official_checkpoint(tmp_path / "bare.pth", words, graph, class_names=names, backbone="resnet18")
    stem = network.resnet_101
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network.eval()
        features = stem.maxpool(stem.relu(stem.bn1(stem.conv1(x))))
        for stage in (stem.layer1, stem.layer2, stem.layer3, stem.layer4):
            features = stage(features)
        network.resnet_101 = nn.AvgPool2d(2, 2)
        torch.testing.assert_close(model(x), network(features), rtol=1e-4, atol=1e-5)


def successor_state(network: PublishedNetwork, words: Tensor | None, graph: Tensor | None) -> dict[str, Tensor]:
    """The weights under the names of HCP-MLR-PL."""
    renamed = [("resnet_101.", "backbone."), ("word_semantic.fc_a", "SemanticDecoupling.fc4"), ("fc_output.", "fc.")]
    renamed += [(f"word_semantic.fc_{index}.", f"SemanticDecoupling.fc{index}.") for index in (1, 2, 3)]
    for number, equation in enumerate((3, 4, 5), 1):
        renamed += [(f"graph_net.fc_eq{equation}_{kind}", f"GraphNeuralNetwork.fc_{number}_{kind}") for kind in "wu"]
    state = {}
    for key, value in network.state_dict().items():
        old, new = next(((old, new) for old, new in renamed if key.startswith(old)), ("", ""))
        state[new + key.removeprefix(old)] = value
    constants = {"wordFeatures": words, "GraphNeuralNetwork.inMatrix": graph}
    return state | {name: value for name, value in constants.items() if value is not None}


def test_the_successors_names_give_the_papers_gate_with_biases(tmp_path: Path) -> None:
    network = published_network()
    network.graph_net.__class__ = CorrectedPropagation
    words, graph = network.word_features, network.graph_net._in_matrix
    torch.save({"state_dict": successor_state(network, words, graph)}, tmp_path / "hcp.pth")
    model = load(tmp_path / "hcp.pth", network, words=None, adjacency=None)
    assert model.head.mode == "paper" and model.head.graph_propagation.bias_zr is not None
    torch.testing.assert_close(model(images(torch.float64)), network(images(torch.float64)), rtol=0, atol=1e-10)
    model.save_pretrained(tmp_path / "bundle")
    again = sf.SSGRL.from_pretrained(tmp_path / "bundle", backbone=backbone(network))
    assert torch.equal(again(images(torch.float64)), model(images(torch.float64)))
    with pytest.raises(ValueError, match="stores its own words, and those given differ"):
        load(tmp_path / "hcp.pth", network, words=words.flip(0))


def _drop(state: dict[str, Tensor]) -> None:
    del state["graph_net.fc_eq4_u.bias"]


def _shrink(state: dict[str, Tensor]) -> None:
    state["fc_output.weight"] = state["fc_output.weight"][:, :30]


def _add(state: dict[str, Tensor]) -> None:
    state["resnet_101.7.weight"] = torch.zeros(3)


def _rename(state: dict[str, Tensor]) -> None:
    for key in list(state):
        state[f"encoder.{key.split('.')[-1]}"] = state.pop(key)


REFUSED = {
    "missing": (_drop, {}, "looks like SSGRL as published and lacks graph_net.fc_eq4_u.bias"),
    "shape": (_shrink, {}, r"fc_output.weight is \[24, 30\], expected \[O, 2D\] = \[24, 48\]"),
    "unknown": (_add, {}, r"backbone: does not fit the model; tensors 1 unknown: 7.weight"),
    "foreign": (_rename, {}, "of no known layout: no key such as word_semantic.fc_1.weight"),
    "classes": (lambda state: None, {"words": torch.zeros(5, 10)}, r"holds 7 classes .* words must be \[7, 10\], got"),
    "graph": (lambda state: None, {"adjacency": torch.zeros(7, 6)}, r"adjacency must be \[7, 7\], got \[7, 6\]"),
    "no words": (lambda state: None, {"words": None}, "SSGRL as published stores no words"),
    "names": (lambda state: None, {"class_names": ["a"]}, "1 class_names for 7 classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    change, options, message = REFUSED[case]
    network = published_network()
    state = network.state_dict()
    change(state)
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model.pth", network, **options)


@pytest.mark.parametrize("content", ["truncated", "text", "tensor", "list"])
def test_broken_and_foreign_files_are_refused_by_name(content: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pth", published_network())
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif content == "text":
        path.write_text("hello")
    else:
        torch.save(torch.zeros(3) if content == "tensor" else [1, 2], path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_official(path)
    with pytest.raises(FileNotFoundError, match="nowhere.pth: no such file"):
        read_official(tmp_path / "nowhere.pth")


def test_convert_writes_a_bundle_and_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    names = ["cat", "dog", "bird"]
    network = PublishedNetwork(torch.randn(3, 10), torch.rand(3, 3), dim=512, joint_dim=8)
    network.resnet_101 = resnet18()
    del network.resnet_101.fc
    path = save(tmp_path / "model_best.pth.tar", network)
    np.save(tmp_path / "words.npy", network.word_features.numpy())
    np.save(tmp_path / "graph.npy", network.graph_net._in_matrix.numpy())
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\ndog\r\nbird\r\n".encode())
    given = [
        "--words",
        tmp_path / "words.npy",
        "--graph",
        tmp_path / "graph.npy",
        "--class-names",
        tmp_path / "names.txt",
    ]
    command = ["convert", path, *given, "--backbone", "resnet18", "--out", tmp_path / "bundle"]
    assert cli.main(list(map(str, command))) == 0
    printed = capsys.readouterr().out
    size = "images resized to 640, cropped to 576"
    for words in ("SSGRL as published", "3 classes", "epoch: 3", "best_mAP: 83.8", "mode official", size):
        assert words in printed
    model = sf.SSGRL.from_pretrained(tmp_path / "bundle")
    assert model.class_names == names and torch.equal(model.head.adjacency, network.graph_net._in_matrix)
    for more, expected in (
        ([], {"image_size": 576, "resize": 640}),  # the paper's (3.5)
        (["--image-size", "448"], {"image_size": 448, "resize": 448}),
        (["--image-size", "448", "--resize", "512"], {"image_size": 448, "resize": 512}),
    ):
        assert cli.main(list(map(str, [*command, *more]))) == 0
        assert sf.SSGRL.from_pretrained(tmp_path / "bundle").preprocessing == expected
    assert cli.main(list(map(str, [*command, "--resize", "512"]))) == 1
    assert "--resize needs --image-size" in capsys.readouterr().err
    assert cli.main(list(map(str, [*command[:-1], path]))) == 1  # a file where the folder should be
    assert "File exists" in capsys.readouterr().err


def test_a_torch_file_in_memory_is_no_path(tmp_path: Path) -> None:
    """What a user may try: the file's own message names the argument's type."""
    with pytest.raises(TypeError):
        read_official(io.BytesIO(b""))  # type: ignore[arg-type]


@pytest.mark.long
def test_the_whole_published_contract_is_646_entries(tmp_path: Path) -> None:
    """ResNet-101 and the head at C = 80: 646 entries, 92,270,737 parameters."""
    from torchvision.models import resnet101

    torch.manual_seed(0)
    network = PublishedNetwork(torch.randn(80, 300), torch.rand(80, 80), dim=2048, joint_dim=1024)
    network.resnet_101 = resnet101()
    del network.resnet_101.fc
    assert len(network.state_dict()) == 646
    assert sum(value.numel() for value in network.parameters()) == 92_270_737
    path = save(tmp_path / "model_best_coco.pth.tar", network)
    model = load_official_checkpoint(path, network.word_features, network.graph_net._in_matrix)
    assert model(torch.randn(1, 3, 128, 128)).shape == (1, 80)
    gates = model.head.graph_propagation.gates()
    assert torch.equal(gates["U_z"], network.graph_net.fc_eq3_u.weight)
    assert torch.equal(gates["U_r"], network.graph_net.fc_eq4_u.weight)
    assert torch.equal(model.backbone.net.layer4[2].conv3.weight, network.resnet_101.layer4[2].conv3.weight)
