"""The version, in its only place: pyproject.toml, the compiled modules and ``ssgrl_fast.__version__`` read it here."""

__version__ = "0.2.0"
