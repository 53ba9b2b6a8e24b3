"""Where the files lie that come with the package but are not Python code."""

from __future__ import annotations

from pathlib import Path


def config_folder() -> Path:
    """The folder of the training recipes: inside an installed package, or configs/ beside it in a source tree.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no folder configs/ in {package} nor beside it")
