"""The command line: one small parser that lists every verb and imports what a verb needs when it runs.

Exit status: 0 done; 1 an error, said in a sentence (the whole traceback with --traceback); 2 wrong usage;
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from ssgrl_fast import __version__

_HELP = {
    "fit": "train a model by a recipe: --config configs/NAME.yaml",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images, with a report",
    "evaluate": "evaluate a bundle: ten-crop, scales, baseline, thresholds; a report with pictures",
    "predict": "labels of image files or folders as JSON, with attention overlays on request",
    "export": "a bundle as one file for ONNX Runtime, torch.export or AOTInductor",
    "graph": "make or inspect a co-occurrence graph",
    "words": "make or inspect the word vectors of class names",
    "visual-genome": "VG-500 as a table of labels",
    "comp1": "predictions to the files of the Pascal VOC evaluation server",
    "convert": "a checkpoint of the published code to a bundle",
    "plot-ap": "bar chart of the AP of every class",
    "plot-attention": "sheet of images, attention maps and label distributions (Fig. 4 of the paper)",
    "app": "a page in the browser: labels of a photograph, attention, neighbours that raised them",
    "compare": "SSGRL against global pooling on cached features: seeds, folds, bootstrap interval",
    "ablate": "the paper's ablations by one recipe, over seeds: Table 5 with mean and deviation",
    "env": "versions, build, devices and the backend table",
    "demo": "train on the embedded digits beside a baseline and measure this machine",
    "bench": "run the benchmarks (from a source tree)",
}
_REGISTERED = {  # modules with register(subparsers), which adds the verb and sets run=function of the arguments
    "predict": "ssgrl_fast.cli.predict",
    "app": "ssgrl_fast.cli.app",
    "compare": "ssgrl_fast.cli.compare",
    "comp1": "ssgrl_fast.cli.data",
    "convert": "ssgrl_fast.cli.convert",
    "visual-genome": "ssgrl_fast.cli.data",
    "export": "ssgrl_fast.cli.export",
    "graph": "ssgrl_fast.cli.graph",
    "words": "ssgrl_fast.cli.graph",
    "plot-ap": "ssgrl_fast.cli.plot",
    "plot-attention": "ssgrl_fast.cli.plot",
}
_MAINS = {  # modules with main(arguments)
    "ablate": "ssgrl_fast.cli.ablate",
    "demo": "ssgrl_fast.cli.demo",
    "env": "ssgrl_fast.cli.env",
    "evaluate": "ssgrl_fast.cli.evaluate",
}
_EXPECTED = (ValueError, TypeError, OSError, ImportError)  # what the library raises about what it was given


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status (see the module).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    verb = arguments[0] if arguments else ""
    try:
        if verb not in _HELP:
            return _usage(arguments)
        return _runner(verb)(arguments[1:])
    except KeyboardInterrupt:
        print(f"ssgrl-fast {verb}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # argparse and jsonargparse: 0 after --help, 2 after a usage error
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if show_traceback or not _is_expected(error):
            traceback.print_exc()
        else:
            print(f"ssgrl-fast {verb}: {_sentence(error)} (--traceback shows where)", file=sys.stderr)
        return 1


def _usage(arguments: list[str]) -> int:
    verbs = "\n".join(f"  {name:<15} {text}" for name, text in _HELP.items())
    parser = argparse.ArgumentParser(
        prog="ssgrl-fast",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="SSGRL multi-label image classification with fused kernels.",
        epilog=f"verbs:\n{verbs}\n\n`ssgrl-fast VERB --help` says more. --traceback shows where an error arose.",
    )
    parser.add_argument("--version", action="version", version=f"ssgrl_fast {__version__}")
    parser.add_argument("verb", metavar="VERB", choices=list(_HELP), help="what to do, see below")
    parser.parse_args(arguments)
    return 2


def _runner(verb: str) -> Callable[[list[str]], int]:
    if verb in ("fit", "validate", "test"):
        return lambda rest: importlib.import_module("ssgrl_fast.cli.fit").main([verb, *rest])
    if verb in _REGISTERED:
        return lambda rest: _run_registered(_REGISTERED[verb], [verb, *rest])
    if verb == "bench":
        return _run_benchmarks
    return lambda rest: int(importlib.import_module(_MAINS[verb]).main(rest) or 0)


def _run_registered(module: str, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ssgrl-fast")
    importlib.import_module(module).register(parser.add_subparsers(dest="verb", metavar="VERB", required=True))
    options = parser.parse_args(arguments)
    return int(options.run(options) or 0)


def _run_benchmarks(arguments: list[str]) -> int:
    if find_spec("benchmarks") is None or find_spec("benchmarks.run") is None:
        raise FileNotFoundError("bench needs the source tree: run `python -m benchmarks.run` in the project's folder")
    return int(importlib.import_module("benchmarks.run").main(arguments) or 0)


def _is_expected(error: Exception) -> bool:
    if isinstance(error, _EXPECTED):
        return True
    return type(error).__name__ in ("BackendUnavailable", "MisconfigurationException")


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    return text if text else type(error).__name__
