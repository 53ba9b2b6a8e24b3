"""The package: one version, honest archives, builds that fail in a sentence, and imports that compile nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging_tree import BUILD, PURE, ROOT, build_sdist, project_files, python, run

import ssgrl_fast
from ssgrl_fast.backends import extension

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def contents(archive: Path) -> dict[str, bytes]:
    """The files of a source archive by their names in it, but for setuptools' list of what it saw."""
    with tarfile.open(archive) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar.getmembers() if member.isfile()]
        return {name: file.read() for name, file in files if file is not None and not name.endswith("/SOURCES.txt")}


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the project."""
    for path in project_files():
        data = (ROOT / path).read_bytes()
        if b"\0" not in data:
            yield path, data.decode("utf-8")


def test_the_version_stands_in_one_place() -> None:
    version = BUILD["version"]()
    assert ssgrl_fast.__version__ == version
    assert PYPROJECT["project"]["dynamic"] == ["version", "readme"]
    assigned = re.compile(r"version\w*\"?\s*[=:]+\s*[\"']" + re.escape(version) + r"[\"']", re.IGNORECASE)
    holders = [str(path) for path, text in texts() if path.suffix != ".md" and assigned.search(text)]
    assert holders == ["ssgrl_fast/_version.py"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None and newest[1] == version


def test_the_archives_carry_the_version(sdist: Path, pure_wheel: Path) -> None:
    version = BUILD["version"]()
    assert sdist.name == f"ssgrl_fast-{version}.tar.gz"
    assert pure_wheel.name == f"ssgrl_fast-{version}-py3-none-any.whl"


def test_the_sdist_holds_every_file_that_builds_and_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    folders = {"csrc", "kernels", "configs", "benchmarks", "tests", "scripts", "ssgrl_fast", "docs", "examples"}
    folders |= {".ci", ".github"}
    needed = {path.as_posix() for path in project_files() if path.parts[0] in folders or len(path.parts) == 1}
    assert {"csrc/schemas.cpp", "csrc/native.cpp", "Makefile", "LICENSE", "tests/packaging/test_packaging.py"} <= needed
    assert {"docs/conf.py", "docs/images/app.png", "docs/images/head.svg", "examples/train_digits.py"} <= needed
    assert {"CITATION.cff", "SECURITY.md", ".pre-commit-config.yaml", ".github/workflows/test.yml"} <= needed
    assert sorted(needed - held) == []
    assert [name for name in held if name.endswith((".so", ".o", ".pyc"))] == []
    made = {"PKG-INFO", "setup.cfg"} | {name for name in held if name.split("/")[0] == "ssgrl_fast.egg-info"}
    folders = {parent.as_posix() for path in project_files() for parent in path.parents}
    assert sorted(held - made - folders - {path.as_posix() for path in project_files()}) == []


@pytest.mark.thorough
def test_the_sdist_makes_itself_again(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    second = build_sdist(unpacked)
    assert contents(second) == contents(sdist)


def test_the_wheel_holds_the_package_and_the_console_script_alone(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as archive:
        held = set(archive.namelist())
        entry_points = archive.read(next(n for n in held if n.endswith("entry_points.txt"))).decode()
    needed = set()
    for path in project_files():
        top, name = path.parts[0], path.as_posix()
        if top == "ssgrl_fast" and path.suffix in (".py", ".pyi", ".typed"):
            needed.add(name)
        elif (top, path.suffix) in (("kernels", ".py"), ("benchmarks", ".py"), ("configs", ".yaml")):
            needed.add(f"ssgrl_fast/{name}")
    assert {"ssgrl_fast/py.typed", "ssgrl_fast/backends/build.py"} <= needed
    assert sorted(needed - held) == []
    assert {name.split("/")[0] for name in held} == {
        "ssgrl_fast",
        "ssgrl_fast_cli.py",
        f"ssgrl_fast-{BUILD['version']()}.dist-info",
    }
    assert "ssgrl-fast = ssgrl_fast_cli:main" in entry_points


def test_the_long_description_has_no_link_that_leads_nowhere(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as archive:
        text = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    assert "Project-URL: Paper, https://arxiv.org/abs/1908.07325" in text
    header, _, description = text.partition("\n\n")
    assert (
        "Description-Content-Type: text/markdown" in header and "docs/glossary.md" in (ROOT / "README.md").read_text()
    )
    assert [link for link in re.findall(r"\]\(([^)]*)\)", description) if not link.startswith(("https://", "#"))] == []
    assert "[Chen et al., ICCV 2019](https://arxiv.org/abs/1908.07325)" in description and "glossary" in description


def test_one_line_makes_the_links_of_the_long_description_absolute(tree: Path, tmp_path: Path) -> None:
    """And CITATION.cff names the same repository."""
    urls = PYPROJECT["project"]["urls"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^repository-code: \"?([^\s\"]+)", citation, re.MULTILINE) == [
        *filter(None, [urls.get("Repository")])
    ]
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns("dist"))
    path, address = copy / "pyproject.toml", "https://git.example/owner/ssgrl_fast"
    path.write_text(path.read_text().replace("[project.urls]\n", f'[project.urls]\nRepository = "{address}/"\n'))
    code = "import build_backend as b; b.prepare_metadata_for_build_wheel('out')"
    (copy / "out").mkdir()
    done = python(f"import sys; sys.path.insert(0, 'scripts'); {code}", copy, PURE)
    (metadata,) = (copy / "out").rglob("METADATA")
    text, version = metadata.read_text(encoding="utf-8"), BUILD["version"]()
    assert done.returncode == 0 and f"Project-URL: Repository, {address}/" in text, done.stderr
    links = re.findall(r"\]\(([^)]*)\)", text.partition("\n\n")[2])
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link.removeprefix(address) for link in links if link.startswith(address)]
    assert "/".join(["", "blob", f"v{version}", "docs/glossary.md"]) in own and len(own) > 15
    for link in own:
        kind, _, file = link.removeprefix("/").partition(f"/v{version}/")
        assert (ROOT / file.partition("#")[0]).is_file() and kind == ("raw" if file.endswith(".png") else "blob"), link


def test_recipes_parity_and_benchmarks_come_with_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
from ssgrl_fast import cli
print(cli.__file__)
assert cli.main(["recipes", "--copy", "digits"]) == 0
small = ["--shape", "voc", "--operation", "label_scores", "--dtype", "float32", "--inputs", "random"]
assert cli.main(["parity", *small]) == 0
assert cli.main(["bench", "--help"]) == 0
print(sys.modules["benchmarks"].__path__[0])
"""
    done = python(code, tmp_path, {"PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    assert Path(done.stdout.splitlines()[-1]) == installed / "ssgrl_fast" / "benchmarks"
    assert (tmp_path / "digits.yaml").read_bytes() == (ROOT / "configs" / "digits.yaml").read_bytes()
    assert "label_scores        voc      float32  random  reference" in done.stdout


def test_the_package_works_without_the_compiled_library(installed: Path, tmp_path: Path) -> None:
    code = """
import torch, ssgrl_fast
from ssgrl_fast import BackendUnavailable, functional
from ssgrl_fast._utils import files
from ssgrl_fast.backends import extension
print(ssgrl_fast.__file__)
print(extension.library())
u, v, p, features = torch.ones(1, 4, 3), torch.ones(2, 3), torch.ones(3), torch.arange(8.0).reshape(1, 4, 2)
pooled, attention = functional.semantic_attention(u, v, p, features)
print(pooled.tolist(), attention.tolist())
try:
    functional.semantic_attention(u, v, p, features, backend="cpu")
except BackendUnavailable as error:
    print(error)
print(sorted(path.name for path in files.config_folder().glob("*.yaml")))
"""
    done = python(code, tmp_path, {"PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    where, reason, result, refusal, recipes = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert reason.startswith("ssgrl_fast._C is not in this installation: build it with")
    assert result == f"{[[[3.0, 4.0]] * 2]} {[[[0.25] * 4] * 2]}"  # equal scores: the mean of the features
    assert refusal.endswith(reason)
    assert recipes == str(sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))


def test_env_runs_without_the_compiled_library(installed: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-P", "-m", "ssgrl_fast", "env"], tmp_path, {"PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    report = re.sub(r"\s+", " ", done.stdout)
    assert f"ssgrl_fast {BUILD['version']()}" in report
    assert "operators not usable: ssgrl_fast._C is not in this installation" in report
    assert "build facts not known: ssgrl_fast._native is not in this installation" in report
    assert re.search(r"graph_propagation reference cpu float64, float32", report)


def test_a_library_that_does_not_load_is_a_reason(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site"
    shutil.copytree(installed, broken)
    (broken / "ssgrl_fast" / "_C.abi3.so").write_bytes(b"no library")
    code = "from ssgrl_fast.backends import extension; print(extension.library())"
    done = python(code, tmp_path, {"PYTHONPATH": str(broken)})
    assert done.returncode == 0, done.stderr
    assert re.match(r"ssgrl_fast\._C could not be loaded with torch \d+\.\d+.*_C\.abi3\.so", done.stdout)


def test_importing_starts_no_process_and_imports_no_extra(tmp_path: Path) -> None:
    code = """
import sys, torch
before = set(sys.modules)
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.system", "socket.connect"):
        raise AssertionError(f"importing ssgrl_fast caused {event} {arguments}")
sys.addaudithook(watch)
import ssgrl_fast
print(" ".join(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    done = run([sys.executable, "-c", code], ROOT)
    assert done.returncode == 0, done.stderr
    new = set(done.stdout.split())
    assert "ssgrl_fast" in new
    heavy = {"lightning", "pytorch_lightning", "torchvision", "triton", "sklearn", "timm", "matplotlib", "torchmetrics"}
    assert sorted(new & (heavy | {"PIL", "rich", "yaml", "jsonargparse", "huggingface_hub"})) == []


def test_no_top_level_module_named_kernels(tmp_path: Path) -> None:
    code = "import ssgrl_fast, sys, ssgrl_fast.kernels as k; print('kernels' in sys.modules, *k.__path__)"
    done = run([sys.executable, "-c", code], ROOT)
    assert done.returncode == 0, done.stderr
    shadowed, folder = done.stdout.split(maxsplit=1)
    assert shadowed == "False"
    assert Path(folder.strip()).name == "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_no_registry_and_no_path_of_a_machine_in_any_file() -> None:
    hosts = [("pypi", "org"), ("pythonhosted", "org"), ("pytorch", "org/whl"), ("anaconda", "org"), ("debian", "org")]
    folders = r"(?<![\w.~*}>-])/(?:work|root|home|opt|Users)/\w"
    wrong = re.compile("|".join([*(re.escape(".".join(host)) for host in hosts), folders]))
    found = [f"{path}: {match[0]}" for path, text in texts() for match in wrong.finditer(text)]
    assert found == []


def test_workflows_name_files_and_jobs_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    jobs = {}
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs[path.name] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        for job in jobs[path.name].values():
            steps = [job, *job.get("steps", ())]
            named = [step["uses"] for step in steps if step.get("uses", "").startswith("./")]
            named += [name for step in steps for name in re.findall(r"\bscripts/\S+", step.get("run", ""))]
            assert [name for name in named if not (ROOT / name).is_file()] == []
            needed = job.get("needs", [])
            assert {*([needed] if isinstance(needed, str) else needed)} <= {*jobs[path.name]}
    upload = jobs["publish.yml"]["upload"]  # waits for the archives of the other workflow, and has PyPI's token alone
    assert jobs["publish.yml"][upload["needs"]]["uses"] == "./.github/workflows/wheels.yml"
    assert upload["permissions"] == {"id-token": "write"} and set(jobs["wheels.yml"]) == {"build", "smoke"}


def test_flags_keep_the_order_of_sums() -> None:
    assert "-O3" in BUILD["FLAGS"]
    assert not {"-ffast-math", "-fassociative-math", "-funsafe-math-optimizations", "-Ofast"} & set(BUILD["FLAGS"])


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    major, minor = BUILD["TORCH_MINIMUM"]
    assert int(BUILD["TORCH_TARGET"], 16) == (major << 56) | (minor << 48)
    assert f"torch>={major}.{minor}" in PYPROJECT["project"]["dependencies"]
    assert f"torch>={major}.{minor}" in BUILD["REQUIREMENTS"]
    assert BUILD["installed_torch_problem"](f"{major}.{minor}.0+cpu") is None
    assert BUILD["installed_torch_problem"](f"{major + 1}.0.0") is None
    assert BUILD["installed_torch_problem"]("2.9.1") == "torch >= 2.11 is needed, found 2.9.1"


def test_torch_is_fetched_only_where_something_is_compiled() -> None:
    assert BUILD["requirements"]({"SSGRL_SKIP_EXT": "0", "SSGRL_CUDA": "0"}) == list(BUILD["REQUIREMENTS"])
    assert BUILD["requirements"](PURE) == []
    assert BUILD["requirements"]({"SSGRL_ABI3": "1", "SSGRL_CUDA": "0"}) == ["torch>=2.11", "ninja"]
    assert not any("torch" in name for name in PYPROJECT["build-system"]["requires"])


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler: 'no-such-compiler' is not to be found"),
        ({"SSGRL_SKIP_EXT": "yes"}, "SSGRL_SKIP_EXT must be 0 or 1, got 'yes'"),
        pytest.param({"SSGRL_ABI3": "3.11"}, "SSGRL_ABI3 must be 0 or 1, got '3.11'", marks=pytest.mark.thorough),
        pytest.param({"SSGRL_RELEASE": "yes"}, "SSGRL_RELEASE must be 0 or 1, got 'yes'", marks=pytest.mark.thorough),
        pytest.param({"SSGRL_CUDA": "yes"}, "SSGRL_CUDA must be auto, 0 or 1, got 'yes'", marks=pytest.mark.thorough),
        ({"SSGRL_CUDA": "1", "CUDA_HOME": "/nowhere"}, "SSGRL_CUDA=1, but no CUDA toolkit with nvcc, headers and"),
        pytest.param(
            {"SSGRL_CUDA": "1", "SSGRL_SKIP_EXT": "1"},
            "SSGRL_CUDA=1 asks for the CUDA kernels and SSGRL_SKIP_EXT=1 for",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_build_that_cannot_be_ends_with_a_sentence(tree: Path, environ: dict[str, str], sentence: str) -> None:
    done = run([sys.executable, "setup.py", "build_ext"], tree, environ)
    assert done.returncode != 0
    assert f"ssgrl_fast: {sentence}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("module", ["torch", pytest.param("pybind11", marks=pytest.mark.thorough)])
def test_a_build_without_what_it_needs_ends_with_a_sentence(tree: Path, module: str) -> None:
    code = f"""
import runpy, sys
sys.modules[{module!r}] = None
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""
    done = run([sys.executable, "-c", code], tree)
    assert done.returncode != 0
    assert "ssgrl_fast: building the kernels needs torch >= 2.11 and pybind11 >= 3.0" in done.stderr
    assert "Set SSGRL_SKIP_EXT=1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_library_uses_nothing_but_stable_interfaces() -> None:
    """No C++ symbol of torch and no Python symbol beyond module creation: it loads beside any torch and Python."""
    path = next((ROOT / "ssgrl_fast").glob("_C.*so"), None)
    if path is None or shutil.which("nm") is None:
        pytest.skip("needs the compiled library in the source tree, and nm")
    listed = subprocess.run(["nm", "-D", "--undefined-only", path], check=True, capture_output=True, text=True).stdout
    symbols = {line.split()[-1].split("@")[0] for line in listed.splitlines()}
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    assert sorted(name for name in symbols if re.match(r"_Z.*(2at|3c10|5torch)", name)) == []
    assert {name for name in symbols if name.startswith(("Py", "_Py"))} == {"PyModule_Create2"}
    assert path.name == "_C.abi3.so"


def test_the_build_facts_are_those_of_the_build() -> None:
    module, reason = extension.native()
    if module is None:
        pytest.skip(str(reason))
    facts = module.build_info()
    assert facts["flags"] == " ".join(BUILD["FLAGS"])
    assert facts["torch_target"] == BUILD["TORCH_TARGET"]
    assert facts["version"] == BUILD["version"]()
    assert facts["built_for_python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert facts["cuda_targets"] == ("sm_80, sm_90a, sm_100, compute_100" if facts["nvcc"] else "")
    assert re.fullmatch(r"(\d+\.\d+)?", facts["nvcc"]) and re.fullmatch(r"(\d+\.\d+\.\d+)?", facts["cutlass"])
    assert module.cpu_isa() in module.kernel_isas()
    assert module.kernel_isas()[0] == "generic"


def test_the_source_digest_follows_the_sources(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns("dist"))
    code = "import runpy; print(runpy.run_path('ssgrl_fast/backends/build.py')['source_digest']())"
    first = python(code, copy).stdout.strip()
    assert first == BUILD["source_digest"]()
    with (copy / "csrc" / "schemas.cpp").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert python(code, copy).stdout.strip() != first
    shutil.rmtree(copy / "csrc")
    assert python(code, copy).stdout.strip() == "None"
