"""Comparison with another commit: its package in a separate process, measured by this tree's benchmarks.

``git worktree`` checks the commit out into a temporary folder. A staging folder links its ``ssgrl_fast`` (and
``kernels``) and this tree's ``benchmarks``, so both commits are measured by the same code; the names of the package
that the benchmarks import must exist in the commit. Compiled files are copied if this tree's were built from the same
sources, and built otherwise. The process reads one request per line and runs one step per request, so its steps are
interleaved with this tree's round by round (a b a b). Everything is removed when the :class:`Base` is closed.

This tree's backends are timed in such a process as well ("<backend>@here"): a step that must wake another process is
slower than one in this process, and only steps measured in the same way can be compared.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import cases, verify
from benchmarks.harness.cases import Case

ROOT = Path(__file__).resolve().parents[2]
HERE = "here"
MARK = "benchmarks.harness.base answer: "
BUILD_FILES = ("ssgrl_fast/backends/build.py", "ssgrl_fast/_build.py")
"""Where a commit may have its list of compiled sources: its place now, and its place in older commits."""
_DIGEST = (
    "import importlib.util as u, sys; s = u.spec_from_file_location('build', sys.argv[1]);"
    " m = u.module_from_spec(s); s.loader.exec_module(m); print(m.source_digest())"
)


class Base:
    """A process with the package of a commit, which checks, prepares and runs its backends.

    Args:
        ref: the commit (any name that git accepts); None: this tree in its current state, called "here".
        threads: intra-op threads of the process.
        say: called with a message before each long step.

    Raises:
        ValueError: git does not know the commit, or its package cannot be built or imported; the message has the
            reason.
    """

    def __init__(self, ref: str | None, threads: int, say: Callable[[str], object] = lambda text: None) -> None:
        self.commit = HERE if ref is None else _git("rev-parse", "--verify", "--short=12", f"{ref}^{{commit}}", of=ref)
        self._folder = Path(tempfile.mkdtemp(prefix="ssgrl-fast-base-"))
        self._process: subprocess.Popen[str] | None = None
        try:
            if ref is None:
                self._package = ROOT
            else:
                say(f"checking out {self.commit}")
                _git("worktree", "add", "--detach", str(self._tree), self.commit, of=ref)
                self._package = self._tree
                self._compiled(say)
            self._process = self._start()
            hello = self._ask(do="hello", threads=threads)
            if not Path(hello["package"]).is_relative_to(self._package.resolve()):
                raise ValueError(f"--base {ref}: its process imported {hello['package']}, not the commit's package")
            self.backends: tuple[str, ...] = tuple(hello["backends"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _tree(self) -> Path:
        return self._folder / "tree"

    def close(self) -> None:
        """End the process and remove the folders and the git worktree."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # the process ends by itself at the end of its input
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        if self._tree.exists():
            remove = ["git", "worktree", "remove", "--force", str(self._tree)]
            subprocess.run(remove, cwd=ROOT, capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def gate(self, case: Case, names: Sequence[str]) -> int:
        """Check the commit's backends against its own reference; return the number of quantities checked.

        Raises:
            verify.ParityError: an error exceeds its budget.
        """
        answer = self._ask(do="gate", case=cases.describe(case), names=[n for n in names if n in self.backends])
        if answer["red"]:
            raise verify.ParityError([f"at {self.commit}: {line}" for line in answer["red"]])
        return int(answer["quantities"])

    def prepare(
        self, case: Case, names: Sequence[str]
    ) -> tuple[dict[str, Callable[[], object]], dict[str, tuple[str, str]]]:
        """Warm steps by "<backend>@<commit>", and (status, reason) of the backends that cannot run there."""
        answer = self._ask(do="prepare", case=cases.describe(case), names=list(names))
        refused = {f"{name}@{self.commit}": (status, reason) for name, (status, reason) in answer["refused"].items()}
        return {f"{name}@{self.commit}": BaseStep(self, name) for name in answer["ready"]}, refused

    def sample(self, name: str) -> float:
        """Seconds of one run there, measured in that process.

        Raises:
            MemoryError, RuntimeError: the run failed there.
        """
        answer = self._ask(do="sample", name=name)
        if "status" in answer:
            raise (MemoryError if answer["status"] == "out of memory" else RuntimeError)(answer["reason"])
        return float(answer["seconds"])

    def _ask(self, **request: object) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; its error is read below
        for line in process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
        errors = (self._folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ValueError(f"--base: the process of {self.commit} ended: {errors[-1] if errors else 'no message'}")

    def _start(self) -> subprocess.Popen[str]:
        stage = self._folder / "stage"
        stage.mkdir()
        (stage / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
        for name in ("ssgrl_fast", "kernels"):
            if (self._package / name).exists():
                (stage / name).symlink_to(self._package / name, target_is_directory=True)
        path = os.pathsep.join([str(stage), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self._folder / "errors.txt").open("w", encoding="utf-8") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.harness.base_process"],
                cwd=stage,
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _compiled(self, say: Callable[[str], object]) -> None:
        """Provide the commit's compiled modules: copies of this tree's if the sources are equal, else a build."""
        ours = sorted((ROOT / "ssgrl_fast").glob("*.so"))
        if not ours:
            return  # this tree runs without compiled kernels, so the commit does too
        if _digest(self._tree) == _built_from():
            for file in ours:
                shutil.copy2(file, self._tree / "ssgrl_fast" / file.name)
            return
        say(f"building the kernels of {self.commit}")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=self._tree, capture_output=True, text=True, check=False)
        if done.returncode:
            tail = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ValueError(f"--base: the kernels of {self.commit} do not build: {tail[-1] if tail else 'no message'}")


class BaseStep:
    """A warm step of a backend in the process of a commit, timed there."""

    def __init__(self, base: Base, name: str) -> None:
        self._base, self._name = base, name

    def __call__(self) -> float:
        return self.sample()

    def sample(self) -> float:
        """Seconds of one run."""
        return self._base.sample(self._name)


def _git(*arguments: str, of: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError("--base needs git, and there is none on the path") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ValueError(f"--base {of}: git {arguments[0]}: {lines[-1] if lines else 'failed'}")
    return done.stdout.strip()


def _digest(tree: Path) -> str | None:
    """The digest of a tree's compiled sources, computed by its own build file; None without one."""
    file = next((tree / name for name in BUILD_FILES if (tree / name).is_file()), None)
    if file is None:
        return None
    done = subprocess.run([sys.executable, "-c", _DIGEST, str(file)], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _built_from() -> str | None:
    """The digest of the sources that this tree's compiled modules were built from; None without them."""
    try:
        from ssgrl_fast import _native
    except ImportError:
        return None
    return str(_native.build_info()["sources"])
