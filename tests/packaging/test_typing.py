"""What a type checker tells a user of the public interface, and that the project's own settings hold."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging_tree import copy_project, environment, run
from strict_user import main

ROOT = Path(__file__).resolve().parents[2]
USER = """
import torch
import ssgrl_fast as sf

head = sf.SSGRLHead(8, torch.randn(3, 4), torch.rand(3, 3), joint_dim=4)
rows = torch.rand(1, 2, 3)
reveal_type(sf.functional.semantic_attention(rows, rows[0], rows[0, 0], rows))
reveal_type(head.forward(torch.rand(1, 8, 2, 2)))
reveal_type(head.forward(torch.rand(1, 8, 2, 2), return_attention=True))
reveal_type(sf.SSGRL.from_pretrained("bundle"))
reveal_type(sf.accelerate(torch.nn.Linear(2, 2)))
reveal_type(sf.words.load("vectors.txt", ["cat"]))
sf.graph.cooccurrence("no matrix")
sf.SSGRLHead(8, rows[0], rows[0], mode="printed")
"""
REVEALED = [
    "tuple[torch._tensor.Tensor, torch._tensor.Tensor]",
    "torch._tensor.Tensor",
    "tuple[torch._tensor.Tensor, torch._tensor.Tensor]",
    "ssgrl_fast.models.ssgrl.SSGRL",
    "torch.nn.modules.linear.Linear",
    "torch._tensor.Tensor",
]


def mypy(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_the_projects_own_settings_hold() -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    done = mypy(cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_a_strict_user_sees_the_types_and_is_told_of_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    done = mypy("--strict", "--follow-imports=silent", "user.py", cwd=tmp_path, MYPYPATH=str(ROOT))
    assert re.findall(r'Revealed type is "(.*)"', done.stdout) == REVEALED
    errors = re.findall(r"user\.py:(\d+): error: .*\[(.*)\]", done.stdout)
    assert errors == [("13", "arg-type"), ("14", "arg-type")], done.stdout


def test_the_strict_users_program_runs(tmp_path: Path) -> None:
    report = main(tmp_path)
    assert report.class_names == ["cat", "dog", "bird"] and report.images == 4
    assert report.ap_definition == "voc2007" and not math.isnan(report.mean_ap)


@pytest.mark.long
def test_the_strict_users_program_type_checks_against_the_installed_package(tmp_path: Path) -> None:
    """By py.typed in site-packages; without that file, mypy refuses the import."""
    pytest.importorskip("mypy", reason="needs mypy")
    tree, interpreter = copy_project(tmp_path / "tree"), environment(tmp_path / "environment")
    done = run(
        [str(interpreter), "-m", "pip", "install", "--no-build-isolation", "--no-deps", str(tree)],
        tmp_path,
        {"SSGRL_SKIP_EXT": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    user = tmp_path / "user.py"
    user.write_text((ROOT / "tests" / "support" / "strict_user.py").read_text(encoding="utf-8"), encoding="utf-8")
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(interpreter), "user.py"]
    done = run(check, tmp_path)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
    (marker,) = (tmp_path / "environment").glob("lib/python*/site-packages/ssgrl_fast/py.typed")
    marker.unlink()
    done = run(check, tmp_path)
    assert "missing library stubs or py.typed marker" in done.stdout
