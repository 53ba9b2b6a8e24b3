"""Empty modules in place of slow ones, for a process that prints help and ends."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Nothing:
    """A base class, or a decorator that changes nothing."""

    def __new__(cls, *given: Any, **options: Any) -> Any:
        """The argument, of a call with one; else an empty object."""
        return given[0] if given else super().__new__(cls)


class _Anything(ModuleType):
    """Each name of it is a class of its own."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class StandIns(MetaPathFinder, Loader):
    """Finds the named modules, and all inside them, as packages whose every name is an empty class or decorator.

    Modules that are imported already stay. ``sys.meta_path.insert(0, StandIns(...))`` puts it in force.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The specification of a stand-in, or None."""
        if not any(name == each or name.startswith(f"{each}.") for each in self.names):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module."""
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run."""
