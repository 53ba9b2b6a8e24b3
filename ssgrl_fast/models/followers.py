"""Which module takes the output of which convolution, found by running a network, whatever its Python code does."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Followers", "run_and_pair"]


class Followers(NamedTuple):
    """What a run of a network showed.

    Attributes:
        output: the network's.
        pairs: a convolution and the module that took its output, for each time that one did.
        calls: how often each convolution, and each module of the kinds asked for, was called.
    """

    output: Tensor
    pairs: list[tuple[nn.Conv2d, nn.Module]]
    calls: Counter[nn.Module]


def run_and_pair(network: nn.Module, images: Tensor, *kinds: type[nn.Module]) -> Followers:
    """Run a network once; modules of these kinds (or subclasses of them) may follow a convolution."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that its id is not used again
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def after_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] += 1
        outputs[id(output)] = module, output

    def before_follower(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if inputs and id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], module))

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, kinds):
            hooks.append(module.register_forward_pre_hook(before_follower))
    try:
        return Followers(network(images), pairs, calls)
    finally:
        for hook in hooks:
            hook.remove()
