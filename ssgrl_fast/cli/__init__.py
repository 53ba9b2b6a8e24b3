"""The command line ``ssgrl-fast VERB ...``: the table of verbs, error messages and exit statuses.

Each verb is a module of this folder with the verb's name (``plot-ap`` is ``plot_ap.py``) and has a function
``main(argv) -> int`` that takes the arguments after the verb. A verb's module is imported when the verb runs.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | an error, explained in one sentence (with ``--traceback``: the whole traceback) |
| 2 | wrong usage |
| 130 | interrupted (128 + SIGINT) |
| 141 | the program that read the output closed it, as ``head`` does (128 + SIGPIPE) |
| 143 | terminated, as a batch scheduler does before it kills (128 + SIGTERM) |
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence

from ssgrl_fast._utils.memory import keep_memory, without_collections
from ssgrl_fast._utils.signals import handling, stop
from ssgrl_fast._version import __version__
from ssgrl_fast.cli._sentences import printable_warnings, say
from ssgrl_fast.cli._stand_ins import StandIns

VERBS = {  # the one place of each verb's line of help: its own --help shows it too
    "train": "your own photographs to a trained model and a report: train DATA",
    "fit": "train a model by a recipe: --config NAME",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images and write a report",
    "evaluate": "evaluate a bundle: views, scales, thresholds, baseline; a report with pictures",
    "predict": "predict the labels of images as JSON, CSV or Parquet, with attention overlays on request",
    "export": "write a bundle as one file for ONNX Runtime, OpenVINO, torch.export or AOTInductor",
    "graph": "make or inspect a co-occurrence graph P(c' | c)",
    "words": "make or inspect the word vectors of class names",
    "visual-genome": "make the VG-500 table of labels from Visual Genome or the published lists",
    "comp1": "convert predictions to the files of the Pascal VOC evaluation server",
    "convert": "convert a checkpoint of the published code, or of HCP-MLR-PL, to a bundle",
    "plot-ap": "draw a bar chart of the AP of every class, beside a baseline's",
    "plot-attention": "draw images, attention maps and label distributions (Fig. 4 of the paper)",
    "app": "serve a page in the browser: labels of a photograph, attention, neighbours",
    "compare": "compare SSGRL with global pooling on cached features, over seeds and folds",
    "ablate": "train the paper's ablations by one recipe, over seeds (Table 5)",
    "recipes": "list the training recipes of the package, or copy one",
    "env": "show versions, build, devices, extras and the table of backends",
    "demo": "train SSGRL and a baseline on the embedded digits and measure this machine",
    "parity": "hold every backend of this machine to the float64 reference, forward and gradients",
    "bench": "run the benchmarks",
}
# imported with Lightning, slow, and of no use to a help text
NOT_FOR_HELP = (
    "torchmetrics",
    "torchvision",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
)
_EXPECTED = (ValueError, TypeError, OSError, ImportError)  # what the library raises about its input


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status (see the module).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    verb = arguments[0] if arguments else ""
    try:
        with handling(stop), printable_warnings():
            status = _run(verb, arguments)
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return status
    except KeyboardInterrupt as end:
        advice = getattr(end, "advice", "")
        say(f"ssgrl-fast {verb}: {str(end) or 'interrupted'}{advice and '; '}{advice}", sys.stderr)
        return getattr(end, "status", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 141
        if show_traceback or not _is_expected(error):
            say(traceback.format_exc().rstrip(), sys.stderr)
        else:
            message = (str(error).strip() or type(error).__name__).removeprefix(f"{verb}: ")
            if isinstance(error, OSError) and message.startswith("[Errno "):
                message = f"{error.filename or 'a file that was being written'}: {error.strerror}"
            say(f"ssgrl-fast {verb}: {message} (--traceback shows where)", sys.stderr)
        return 1


def _run(verb: str, arguments: list[str]) -> int:
    """Import the verb's module and run it."""
    try:
        if verb not in VERBS:
            return _usage(arguments)
        keep_memory()
        if verb in ("fit", "validate", "test") and sys.argv[1:] in ([verb, "-h"], [verb, "--help"]):
            sys.meta_path.insert(0, StandIns(*NOT_FOR_HELP))
        with without_collections():
            module = importlib.import_module(f"ssgrl_fast.cli.{verb.replace('-', '_')}")
        return int(module.main(arguments[1:]))
    except SystemExit as end:  # argparse and jsonargparse: 0 after --help, 2 after a usage error
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning makes 1 of it
            raise end.__context__ from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _usage(arguments: list[str]) -> int:
    """The program's own parser: --help, --version, and the message about an unknown verb."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="ssgrl-fast",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="SSGRL multi-label image classification with fused kernels.",
        epilog=f"verbs:\n{verbs}\n\n"
        "`ssgrl-fast VERB --help` lists a verb's options. --traceback shows where an error arose.",
    )
    parser.add_argument("--version", action="version", version=f"ssgrl_fast {__version__}")
    parser.add_argument("verb", metavar="VERB", choices=list(VERBS), help="what to do: one of the verbs below")
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        say(f"ssgrl-fast: there is no verb {arguments[0]}{nearest} (--help lists the verbs)", sys.stderr)
        return 2
    parser.parse_args(arguments)
    return 2


def _is_expected(error: Exception) -> bool:
    """Whether the message alone explains the error; anything else is a fault of the program."""
    if isinstance(error, _EXPECTED):
        return True
    return type(error).__name__ in ("BackendUnavailable", "MisconfigurationException")


def _output_is_closed() -> bool:
    """Whether standard output is a pipe that nobody reads any more; output still to come is then discarded."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    discard = os.open(os.devnull, os.O_WRONLY)
    os.dup2(discard, output)
    os.close(discard)
    return True
