"""Which module of the repository imports which, read from the sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name to file: the package, the Triton kernels under the name they are installed as, benchmarks, and the
    helpers of the tests, which import each other without a prefix."""
    found = {}
    for folder, prefix in (
        ("ssgrl_fast", "ssgrl_fast"),
        ("kernels", "ssgrl_fast.kernels"),
        ("benchmarks", "benchmarks"),
    ):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([prefix, *(part for part in parts if part != "__init__")])] = path
    return found | {path.stem: path for path in sorted((root / "tests" / "support").glob("*.py"))}


def imported(path: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """The known modules that a file imports, in functions too, and the packages that it takes names or modules from."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            modules = {f"{source}.{alias.name}" for alias in node.names} & set(known)
            yield from modules
            if source in known and (len(modules) < len(node.names) or not name.startswith(f"{source}.")):
                yield source  # a package is run before its modules; one inside it that asks for a module alone is not


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Every module with those it imports, itself left out."""
    known = modules(root)
    return {name: set(imported(path, name, known)) - {name} for name, path in known.items()}
