"""Exported files: read back by their own runtimes, without this project, and held to the model that they came from."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ssgrl_fast as sf
from ssgrl_fast.backends import build, extension
from ssgrl_fast.cli import main
from ssgrl_fast.inference import export
from ssgrl_fast.models import GlobalPoolingClassifier, build_backbone

C, S, SIZE = 5, 6, 32
needs_library = pytest.mark.skipif(extension.library() is not None, reason=str(extension.library()))
needs_compiler = pytest.mark.skipif(build.missing_tool() is not None, reason=str(build.missing_tool()))


def make_model(**options: Any) -> sf.SSGRL:
    torch.manual_seed(0)
    words, graph = torch.randn(C, S), torch.rand(C, C) / C
    return sf.SSGRL(build_backbone("small-cnn", width=4), words, graph, joint_dim=8, **options).eval()


def quantized_model() -> sf.SSGRL:
    model = make_model()
    model.head = model.head.quantize()
    return model


def images_of(batch: int) -> Tensor:
    return torch.linspace(-1, 1, batch * 3 * SIZE * SIZE).view(batch, 3, SIZE, SIZE)


@torch.no_grad()
def truth_of(model: sf.SSGRL, batch: int) -> Tensor:
    """The logits by the reference equations in float64."""
    with sf.use_backend("reference"):
        logits = model.double()(images_of(batch).double())
    model.float()
    return logits


def library_path() -> str:
    import ssgrl_fast._C as library

    return str(library.__file__)


def in_a_fresh_process(code: str, *arguments: str, folder: Path) -> str:
    """What a Python prints that starts outside the source tree and must not import this project."""
    script = f"import sys, torch\n{code}\nassert 'ssgrl_fast' not in sys.modules\n"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def close(printed: str, truth: Tensor) -> bool:
    values = torch.tensor([float(word) for word in printed.split()], dtype=torch.float64)
    return torch.allclose(values, truth.flatten(), rtol=0, atol=1e-5)


PRINT = (
    "\nimages = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)\nprint(*run(images)[0].flatten().tolist())"
)


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_onnx_in_its_runtime(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model, path = make_model(mode=mode), tmp_path / "model.onnx"
    assert export.export_model(model, path, "onnx", image_size=SIZE, attention=True, facts={"mode": mode}) <= 1e-5
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits", "attention"]
    for batch in (1, 2, 5, 9):
        logits, attention = session.run(None, {"images": images_of(batch).numpy()})
        assert torch.allclose(torch.from_numpy(logits).double(), truth_of(model, batch), rtol=0, atol=1e-5)
        assert attention.shape == (batch, C, SIZE // 8, SIZE // 8)
    stored = json.loads(session.get_modelmeta().custom_metadata_map[export.FACTS])
    assert stored == {"outputs": ["logits", "attention"], "image_size": SIZE, "mode": mode}
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("interaction", [True, False])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_openvino_is_right_at_every_batch(format: str, interaction: bool, tmp_path: Path) -> None:
    """Eq. 10 as a product, a sum and a bias was wrong there from two images on, by as much as the logits are."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    model, path = make_model(interaction=interaction), tmp_path / ("model.onnx" if format == "onnx" else "model.xml")
    export.export_model(model, path, format, image_size=SIZE)  # type: ignore[arg-type]
    run = export.load_exported(path, "openvino")
    for batch in (1, 2, 5):
        (logits,) = run(images_of(batch))
        assert torch.allclose(logits.double(), truth_of(model, batch), rtol=0, atol=1e-5)


@needs_library
def test_program_runs_with_the_operator_library_alone(tmp_path: Path) -> None:
    model, path = make_model(mode="official"), tmp_path / "model.pt2"
    export.export_model(model, path, "pt2", image_size=SIZE, facts={"class_names": model.class_names})
    code = f"torch.ops.load_library({library_path()!r})\nfiles = {{'{export.FACTS}': ''}}\n"
    code += "run = torch.export.load(sys.argv[1], extra_files=files).module()\nassert 'class 3' in files.popitem()[1]"
    assert close(in_a_fresh_process(code + PRINT, str(path), folder=tmp_path), truth_of(model, 4))


@pytest.mark.thorough
def test_program_of_the_reference_needs_pytorch_alone(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "model.pt2"
    export.export_model(model, path, "pt2", image_size=SIZE, backend="reference")
    code = "run = torch.export.load(sys.argv[1]).module()"
    assert close(in_a_fresh_process(code + PRINT, str(path), folder=tmp_path), truth_of(model, 4))


@needs_library
def test_what_is_exported_keeps_nothing_for_a_backward() -> None:
    program = torch.export.export(make_model(), (images_of(2),))
    calls = {str(node.target): node.args for node in program.graph.nodes if "ssgrl_fast" in str(node.target)}
    assert set(calls) == {f"ssgrl_fast.{stem}.default" for stem in sf.backends.base.STEMS}
    for stem in ("graph_propagation", "label_scores"):
        assert calls[f"ssgrl_fast.{stem}.default"][-1] is False, "save"


_CPP = """
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <iostream>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

int main(int count, char** arguments) {
  if (count != 3 || !dlopen(arguments[1], RTLD_LAZY | RTLD_GLOBAL)) {
    std::cerr << (count == 3 ? dlerror() : "usage: run LIBRARY PACKAGE") << "\\n";
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader loader(arguments[2]);
  const auto images = at::linspace(-1, 1, 4 * 3 * 32 * 32).view({4, 3, 32, 32});
  const auto logits = loader.run({images})[0].flatten();
  std::cout.precision(9);
  for (int64_t i = 0; i < logits.numel(); ++i) {
    std::cout << logits[i].item<float>() << "\\n";
  }
}
"""


@pytest.mark.thorough
@needs_library
@needs_compiler
def test_package_runs_from_python_and_from_cpp(tmp_path: Path) -> None:
    """The paper's mode has no biases, so its operator's list of them is empty, which the runtime cannot pass."""
    model, path = make_model(), tmp_path / "model.pt2"
    assert export.export_model(model, path, "aoti", image_size=SIZE, facts={"mode": "paper"}) <= 1e-5
    truth = truth_of(model, 4)
    code = f"torch.ops.load_library({library_path()!r})\nrun = torch._inductor.aoti_load_package(sys.argv[1])\n"
    code += f"assert '\"mode\": \"paper\"' in run.get_metadata()['{export.FACTS}']"
    assert close(in_a_fresh_process(code + PRINT, str(path), folder=tmp_path), truth)

    (tmp_path / "run.cpp").write_text(_CPP, encoding="utf-8")
    root = Path(torch.__file__).parent
    flags = ["-std=c++20", f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", f"-L{root}/lib"]
    flags += [f"-Wl,-rpath,{root}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command = [*shlex.split(os.environ.get("CXX") or "c++"), "run.cpp", "-o", "run", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["./run", library_path(), str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert close(done.stdout, truth)


def test_the_verb_exports_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    model.preprocessing = {"image_size": SIZE, "resize": 40}
    model.save_pretrained(tmp_path / "bundle")
    output = tmp_path / "new" / "model.pt2"
    arguments = ["export", "--model", str(tmp_path / "bundle"), "--format", "pt2", "--output", str(output)]
    assert main([*arguments, "--attention"]) == 0
    printed = capsys.readouterr().out
    for words in ("logits and attention", "resized to 40, centre crop 32", "mode paper, backend", "largest error"):
        assert words in printed
    logits, attention = export.load_exported(output, "pt2")(images_of(3))
    assert torch.allclose(logits.double(), truth_of(model, 3), atol=1e-5) and attention.shape == (3, C, 4, 4)
    assert main([*arguments[:-1], str(tmp_path / "model.bin")]) == 1
    assert "must end in .pt2" in capsys.readouterr().err


def test_the_verb_exports_the_baseline_but_no_attention_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), C).eval()
    model.save_pretrained(tmp_path / "bundle")
    output = tmp_path / "model.pt2"
    arguments = ["export", "--model", str(tmp_path / "bundle"), "--format", "pt2", "--output", str(output)]
    assert main([*arguments, "--image-size", "32", "--attention"]) == 1
    assert "which has no attention maps" in capsys.readouterr().err and not output.exists()
    assert main([*arguments, "--image-size", "32"]) == 0
    assert "needs PyTorch alone" in capsys.readouterr().out
    assert torch.allclose(export.load_exported(output, "pt2")(images_of(3))[0], model(images_of(3)), atol=1e-6)


def test_a_file_that_differs_is_refused_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other, path = make_model(), make_model(mode="official"), tmp_path / "model.pt2"
    export.export_model(model, path, "pt2", image_size=SIZE)
    with pytest.raises(ValueError, match=r"model.pt2 differs from the model by .*, more than 1e-05"):
        export.check_exported(path, "pt2", other, image_size=SIZE)
    with pytest.raises(ValueError, match=r"outputs of shapes \[\[1, 5\]\], expected \[\[1, 5\], \[1, 5, 4, 4\]\]"):
        export.check_exported(path, "pt2", model, image_size=SIZE, attention=True)
    before, trace = path.read_bytes(), export._trace
    monkeypatch.setattr(export, "_trace", lambda outputs, example: trace(export._Outputs(other, False), example))
    with pytest.raises(ValueError, match="differs from the model"):
        export.export_model(model, path, "pt2", image_size=SIZE)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "tflite"}, "format must be one of 'onnx', 'openvino', 'pt2', 'aoti', got 'tflite'"),
        ({"path": "model.onnx"}, "of format 'pt2' must end in .pt2, got model.onnx"),
        ({"model": make_model().double()}, "must be float32, got torch.float64"),
        ({"model": quantized_model()}, "its head is quantized \\(fp8\\): export the original"),
        ({"model": make_model().train()}, "must be in evaluation mode"),
        ({"format": "onnx", "path": "m.onnx", "backend": "cpu"}, "equations of backend 'reference', got backend='cpu'"),
        ({"model": make_model(backend="reference"), "backend": "cpu"}, "built with backend='reference'.* 'cpu'"),
    ],
)
def test_export_refuses(change: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"model": make_model(), "path": "model.pt2", "format": "pt2", "image_size": SIZE, **change}
    with pytest.raises(ValueError, match=match):
        export.export_model(given.pop("model"), given.pop("path"), given.pop("format"), **given)


def test_onnx_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export to onnx needs onnxscript: pip install 'ssgrl_fast\[onnx\]'"):
        export.export_model(make_model(), "model.onnx", "onnx", image_size=SIZE)


def test_a_package_without_a_compiler_says_so() -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(ValueError, match=r"aoti compiles C\+\+, and there is no compiler no-such-compiler: install one"),
    ):
        export.export_model(make_model(), "model.pt2", "aoti", image_size=SIZE)
