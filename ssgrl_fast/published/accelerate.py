"""Fused forwards for models in the layout of the published code.

:func:`accelerate` finds the submodules of a model that compute semantic decoupling, graph propagation and the class
rows, and lets the fused operations run in their place; :func:`restore` undoes it. Parameters, names, state_dict and
everything else that a model holds stay as they are.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn

from ssgrl_fast.published.layouts import LAYOUTS, Layout
from ssgrl_fast.published.probe import matching
from ssgrl_fast.published.swapped import Swapped, swapped_class

__all__ = ["accelerate", "restore"]

M = TypeVar("M", bound=nn.Module)


def accelerate(model: M, *, verbose: bool = True) -> M:
    """Run the published parts of a model on the fused operations, in place.

    A part is recognised by the names of its layers, wherever it stands in the model or as the model itself: semantic
    decoupling (``fc_1 fc_2 fc_3 fc_a``), graph propagation (``fc_eq3_w … fc_eq5_u`` with its two matrices and
    time_step), beside one of them the class rows (``weight`` [C, D], ``bias`` [C]); the names of HCP-MLR-PL as well.
    Then a probe decides: a copy with random weights in float64 and its fused form must agree in outputs and in every
    gradient, in training and in evaluation, with the reset gate either as the published code has it or as the paper has
    it (D1).

    A part that passes gets a subclass of its own class, whose forward calls the fused operations on the parameters,
    matrices, words and time_step as it finds them at each call. No parameter, name or buffer changes: optimizers,
    checkpoints, deepcopy, pickling, averaged copies and data-parallel wrappers go on as before; ``fully_shard`` comes
    after this function, on the model or on whole parts. What differs:

    - fc_3.bias and fc_a.bias, which the softmax cancels (D4), get gradients of exactly zero instead of rounding noise.
    - A part runs its own forward again, with a warning, where its layers have got hooks or been exchanged, or its
      matrices are no transposes of each other any more; and, without one, in a call with optional arguments.
    - Where dtypes or devices differ within a call (matrices in float32 that the part casts, beside weights in float64),
      the first such call also runs the part's own forward on one image. Where that raises, or gives another dtype, the
      part runs its own forward, with a warning that says why; under ``torch.compile`` always, without one.
    - Under ``torch.compile`` the matrices are trusted to be as they were here; on a GPU also where they are changed
      through ``.data``, which leaves no mark.

    Args:
        model: an nn.Module, perhaps wrapped.
        verbose: print one line that says what was replaced.

    Returns:
        The same model.

    Warns:
        UserWarning: a part looks like the published one and is left alone, and why; or there is none.

    Raises:
        TypeError: model is no nn.Module.
    """
    _check("accelerate", model)
    recognised = [(name, module, _layout(module)) for name, module in model.named_modules()]
    done = [f"{name or 'the model'} (already)" for name, module, _ in recognised if isinstance(module, Swapped)]
    strong = bool(done) or any(layout is not None and layout.layers for _, _, layout in recognised)
    left: list[str] = []
    for name, module, layout in recognised:
        if layout is None or isinstance(module, Swapped):
            continue
        if not layout.layers and not strong:  # rows of weights and a bias alone are too common to mean anything
            continue
        where = f"{name or 'the model'} ({type(module).__name__})"
        reason = _swap(module, layout)
        if isinstance(module, Swapped):
            done.append(f"{where}: {module.ssgrl_describes}")
        elif layout.layers:
            left.append(f"{where}: {reason}")
    if verbose and done:
        print(f"ssgrl_fast.accelerate: {'; '.join(done)}")
    if left:
        warnings.warn(f"ssgrl_fast.accelerate left alone {'; '.join(left)}", stacklevel=2)
    elif not done:
        known = "; ".join(" ".join(layout.layers.values()) for layout in LAYOUTS if layout.layers)
        reason = f"no part of {type(model).__name__} has the layers of a published one"
        warnings.warn(f"ssgrl_fast.accelerate changed nothing: {reason} ({known})", stacklevel=2)
    return model


def restore(model: M) -> M:
    """Undo :func:`accelerate`: every part has its own class and forward again.

    Raises:
        TypeError: model is no nn.Module.
        ValueError: the class of a part was exchanged once more, as fully sharded data parallelism does.
    """
    _check("restore", model)
    for module in model.modules():
        if isinstance(module, Swapped):
            if type(module) is not swapped_class(module.ssgrl_owner, module.ssgrl_layout, module.ssgrl_option):
                raise ValueError(f"restore: a part has since become a {type(module).__name__}; undo that first")
            module.__class__ = module.ssgrl_owner
    return model


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


def _layout(module: nn.Module) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.fits(module)), None)


def _swap(module: nn.Module, layout: Layout) -> str | None:
    """Exchange the class of one module; returns why not."""
    option, reason = matching(module, layout)
    if option is None:
        return reason
    owner: Any = type(module)
    try:
        module.__class__ = swapped_class(owner, layout, option)
    except TypeError as error:
        return f"its class cannot be exchanged ({error})"
    return None
