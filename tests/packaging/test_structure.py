"""The repository's structure: who may import whom, what lies in the package's root, and how long a file may be."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from imports import ROOT, graph
from packaging_tree import project_files

PACKAGE = ROOT / "ssgrl_fast"
ROOMS = {"cli", "studies", "training", "inference", "published", "models", "modules", "functional", "backends"}
ROOMS |= {"reference", "labels", "data", "metrics", "_utils"}
FILES = {"__init__.py", "__main__.py", "_version.py", "testing.py", "py.typed"}
FILES |= {"_native.pyi"}  # the types of the compiled module of that name, which mypy looks for beside it
CODE = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
LONGEST = 400


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package and the contracts in a folder."""
    pytest.importorskip("importlinter", reason="needs import-linter: pip install 'ssgrl_fast[dev]'")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_packages_folders_import_in_one_direction() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_a_forbidden_import_breaks_its_contract(tmp_path: Path) -> None:
    """One import planted against each contract, in a copy."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "ssgrl_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    planted = {
        "reference/__init__.py": "from ssgrl_fast.backends import base",
        "labels/matrix.py": "import ssgrl_fast.data.base",
        "labels/words.py": "from ssgrl_fast import modules",
        "functional/__init__.py": "import ssgrl_fast.labels.graph",
        "metrics/tables.py": "import ssgrl_fast",
    }
    for name, line in planted.items():
        with (tmp_path / "ssgrl_fast" / name).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert done.returncode == 1, done.stdout + done.stderr
    assert [each["name"] for each in contracts if f"{each['name']} BROKEN" not in done.stdout] == []


def test_the_repository_has_no_import_circle() -> None:
    """Package, kernels, benchmarks and test helpers; imports inside functions count."""
    imports = graph()
    assert len(imports) > 150 and sum(map(len, imports.values())) > 400
    assert "ssgrl_fast._utils.checks" in imports["ssgrl_fast.studies.comparison"]
    assert circles(imports) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others."""
    reached = {name: reachable(imports, name) for name in imports}
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in imports if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def reachable(imports: dict[str, set[str]], start: str) -> set[str]:
    """All modules that a module imports, at any distance."""
    seen: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports[name]
    return seen


def test_the_packages_root_holds_its_folders_and_few_files() -> None:
    entries = {path.relative_to("ssgrl_fast").parts for path in project_files() if path.parts[0] == "ssgrl_fast"}
    assert {parts[0] for parts in entries if len(parts) == 1} == FILES
    assert {parts[0] for parts in entries if len(parts) > 1} == ROOMS


def test_no_file_of_code_is_longer_than_the_limit() -> None:
    files = [path for path in project_files() if path.suffix in CODE]
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 300
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
