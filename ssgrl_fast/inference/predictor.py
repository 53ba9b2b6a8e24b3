"""A model with the preprocessing of its images, as the commands run it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast import backends
from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast._utils.pytorch import check_device
from ssgrl_fast._version import __version__
from ssgrl_fast.data.options import ImageOptions
from ssgrl_fast.inference.figures import SHEET_PIXELS, Sample
from ssgrl_fast.inference.placement import Placement, pixels, place
from ssgrl_fast.inference.runtimes import RUNTIMES, RuntimeBackbone, with_runtime
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, from_pretrained
from ssgrl_fast.models import bundle as checkpoints
from ssgrl_fast.models.prepare import prepare

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DTYPES", "Predictor"]

DTYPES = ("float32", "bfloat16", "float64", "fp8", "int8", "auto")
"""What :meth:`Predictor.to_dtype` takes."""
_log = logging.getLogger(__name__)
Opener = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Predictor:
    """A model with the preprocessing of its images.

    Attributes:
        model: SSGRL or the pooling baseline, in evaluation mode.
        source: the bundle the model was read from.
        image_size, resize: of ``eval_transform``, pixels.
        runtime: who computes the backbone (:mod:`ssgrl_fast.inference.runtimes`).
        folder: where a runtime keeps converted networks, or None.
        max_pixels: width times height that an image file may have (:func:`~ssgrl_fast.data.images.read_image`).
        int8: whether the backbone is computed in int8.
        calibration: photographs that int8's ranges are taken from where the folder has no quantized network yet.
    """

    model: SSGRL | GlobalPoolingClassifier
    source: str
    image_size: int
    resize: int
    runtime: str = "torch"
    folder: Path | None = None
    max_pixels: int = ImageOptions.max_pixels
    int8: bool = False
    calibration: Sequence[Path] = ()

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        device: str = "cpu",
        backend: str | None = None,
        runtime: str = "torch",
        max_pixels: int = ImageOptions.max_pixels,
        dtype: str | None = None,
        calibration: Sequence[Path] = (),
    ) -> Self:
        """Read a bundle.

        Args:
            bundle: folder of a bundle, or a Hub repository.
            image_size, resize: None: those of the bundle. If only image_size is given, images are resized to it without
                a crop; if only resize, it is cropped to the bundle's image_size.
            device: where the model runs.
            backend: of the three operations; None: the fastest.
            runtime: who computes the backbone, see :func:`~ssgrl_fast.inference.runtimes.with_runtime`; converted
                networks are kept in the bundle's folder ``runtimes``.
            max_pixels: width times height that an image file may have.
            dtype: see :meth:`to_dtype`; None: the one that the bundle's weights are stored in.
            calibration: photographs for dtype "int8", as those that it will be used on; needed once for each network,
                and at most 128 of them, evenly taken, are read.

        Raises:
            FileNotFoundError, ValueError: see ``SSGRL.from_pretrained``; a device that is not there; a backend for
                a model without SSGRL's head; no image_size, and the bundle does not state one; an unknown runtime.
            ImportError: the runtime's extra is not installed.
            BackendUnavailable: the named backend cannot run here.
        """
        for name, count in (("image_size", image_size), ("resize", resize), ("max_pixels", max_pixels)):
            if count is not None and count < 1:
                raise ValueError(f"Predictor.load: {name} must be at least 1 pixel, got {count}")
        place = check_device("Predictor", device)
        folder = checkpoints.locate(bundle)
        kind = checkpoints.read_config(folder)["kind"]
        if backend is not None and kind != "SSGRL":
            raise ValueError(f"backend {backend!r} is for SSGRL's head; {bundle} holds a {kind}")
        model = from_pretrained(folder) if backend is None else SSGRL.from_pretrained(folder, backend=backend)
        stored = model.preprocessing or {}
        if image_size is None:
            if "image_size" not in stored:
                raise ValueError(
                    f"{bundle}: its config.json does not state the image size that the model was trained with, and at "
                    "another size its scores are wrong: give it with --image-size (in Python: image_size=…), or set "
                    'model.preprocessing = {"image_size": …, "resize": …} before save_pretrained'
                )
            image_size = stored["image_size"]
            resize = resize if resize is not None else stored.get("resize", image_size)
        elif resize is None:
            resize = image_size
        check_choice("Predictor", "runtime", runtime, RUNTIMES)
        predictor = cls(model.to(place), str(bundle), image_size, resize, runtime, folder / "runtimes", max_pixels)
        predictor = replace(predictor, calibration=calibration)
        predictor = predictor if dtype is None else predictor.to_dtype(dtype)
        predictor._backend()
        return predictor

    @cached_property
    def network(self) -> SSGRL | GlobalPoolingClassifier:
        """The model as it is run: prepared for inference, with its backbone in the runtime. Made at its first use.

        Raises:
            ValueError, ImportError: see :func:`~ssgrl_fast.inference.runtimes.with_runtime`.
        """
        network, reason = with_runtime(
            prepare(self.model, fuse=self.runtime == "torch"),
            self.runtime,
            image_size=self.image_size,
            folder=self.folder,
            int8=self.int8,
            calibration=self._calibrated if self.calibration else None,
        )
        if self.runtime != "torch":
            _log.warning("%s", reason)
        return network

    def _calibrated(self, most: int) -> list[Tensor]:
        """At most so many of the photographs for int8, evenly taken, [3, S, S] each."""
        return [self.read(Path(path)) for path in self.calibration[:: -(-len(self.calibration) // most)]]

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return self.model.class_names

    @property
    def mode(self) -> str:
        """The mode of SSGRL's head, or that there is none."""
        return self.model.head.mode if isinstance(self.model, SSGRL) else "none (no SSGRL head)"

    @property
    def has_graph(self) -> bool:
        """Whether the model is SSGRL with graph propagation."""
        return isinstance(self.model, SSGRL) and self.model.head.interaction

    def to_dtype(self, dtype: str) -> Self:
        """Convert the model in place.

        Args:
            dtype: "float32", "bfloat16", "float64"; "fp8": bfloat16 with the graph's products in e4m3
                (:mod:`ssgrl_fast.modules.fp8`); "auto": bfloat16 on a GPU and on a CPU with instructions for it
                (AMX, AVX512-BF16), else float32; "int8": the backbone in int8, which OpenVINO computes, the head as
                by "auto".

        Returns:
            A predictor of the converted model.

        Raises:
            ValueError: an unknown dtype, "fp8" and a model that cannot be quantized, or "int8" and a runtime that does
                not compute it.
        """
        check_choice("Predictor", "dtype", dtype, DTYPES)
        if dtype == "int8":
            return self._to_int8()
        if dtype == "auto":
            dtype = str(_fast_dtype(next(self.model.head.parameters()).device)).removeprefix("torch.")
        model = self.model.to(torch.bfloat16 if dtype == "fp8" else getattr(torch, dtype))
        if dtype == "fp8":
            if not isinstance(model, SSGRL):
                raise ValueError(f"{self.source} cannot be quantized to fp8: a {type(model).__name__} has no graph")
            try:
                model.head = model.head.quantize("fp8")
            except ValueError as error:
                raise ValueError(f"{self.source} cannot be quantized to fp8: {error}") from error
        return replace(self, int8=False)

    def _to_int8(self) -> Self:
        device = next(self.model.head.parameters()).device
        if self.runtime not in ("openvino", "auto") or device.type != "cpu":
            raise ValueError(
                f"{self.source}: dtype int8 is computed by the runtime openvino on a CPU, got the runtime "
                f"{self.runtime} on {device}"
            )
        self.model.backbone.float()
        self.model.head.to(_fast_dtype(device))
        return replace(self, int8=True)

    def facts(self) -> dict[str, Any]:
        """What the scores depend on, for the first part of the JSON.

        Raises:
            BackendUnavailable: a named backend cannot run here.
        """
        model, weight = self.model, next(self.model.head.parameters())
        head = model.head if isinstance(model, SSGRL) else None
        return {
            "model": self.source,
            "kind": type(model).__name__,
            "mode": self.mode,
            "backend": self._backend(),
            "runtime": getattr(self.network.backbone, "runtime", "torch"),
            "device": str(weight.device),
            "dtype": ("int8 backbone and " if self.int8 else "")
            + str(weight.dtype).removeprefix("torch.")
            + (f" and {head.quantized}" if head and head.quantized else ""),
            "image_size": self.image_size,
            "resize": self.resize,
            "normalisation": {"mean": list(model.backbone.mean), "std": list(model.backbone.std)},
            "versions": {"ssgrl_fast": __version__, "torch": torch.__version__},
        }

    def _backend(self) -> str:
        if not isinstance(self.model, SSGRL):
            return "none (no SSGRL head)"
        head, weight = self.model.head, next(self.model.head.parameters())
        return backends.chosen(weight.device, weight.dtype, head.backend, head.operations)

    def read(self, path: Path | str, opener: Opener | None = None) -> Tensor:
        """An image file as input of the network, float32 [3, S, S].

        Args:
            path: the file.
            opener: gives its bytes where ``path`` is the name of something else (:mod:`ssgrl_fast.data.sources`).

        Raises:
            FileNotFoundError, BrokenImage: naming the file.
            Unreachable: the store of an opener gives no answer.
        """
        from ssgrl_fast.data.transforms import eval_transform

        body = self.model.backbone
        transform = eval_transform(self.image_size, resize=self.resize, mean=body.mean, std=body.std)
        return transform(self._image(path, opener))

    def photograph(self, path: str | Path, longest: int, opener: Opener | None = None) -> np.ndarray:
        """An image file as a picture [H, W, 3] uint8 of at most ``longest`` pixels on its longer side. Errors as for
        :meth:`read`."""
        return pixels(self._image(path, opener), longest)

    def _image(self, path: str | Path, opener: Opener | None) -> Image:
        from ssgrl_fast.data.images import read_image

        return read_image(path, side=self.resize, max_pixels=self.max_pixels, opener=opener)

    @torch.inference_mode()
    def scores(self, images: Tensor, *, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] in float32 on the CPU of images [B, 3, S, S], and attention [B, C, h, w] or None.

        Raises:
            ValueError: attention was requested of a model that has none.
        """
        weight = next(self.model.head.parameters())
        converted = isinstance(self.network.backbone, RuntimeBackbone)
        images = images.to(weight.device, torch.float32 if converted else weight.dtype)
        if not attention:
            return self.network(images).float().cpu(), None
        self._ssgrl()
        assert isinstance(self.network, SSGRL)
        logits, maps = self.network(images, return_attention=True)
        return logits.float().cpu(), maps.float().cpu()

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """Where each class is looked for, float32 [B, C, h, w] on the CPU, for images [B, 3, S, S]: the attention of
        SSGRL, or the class activation maps of a pooling baseline, which may be negative."""
        if isinstance(self.network, SSGRL):
            _, attention = self.scores(images, attention=True)
            assert attention is not None
            return attention
        weight = next(self.model.head.parameters())
        features = self.network.backbone(images.to(weight.device, weight.dtype))
        return self.network.head.activation_maps(features).float().cpu()

    def placement(self, picture: tuple[int, ...], scale: tuple[int, int] | None = None) -> Placement:
        """Where the cells of the maps lie on a picture of a whole photograph, at any size.

        Args:
            picture: the shape of the photograph, (H, W) or (H, W, 3).
            scale: (resize, size) that the network's input was made with; None: this predictor's.
        """
        resize, size = scale or (self.resize, self.image_size)
        grid = self.model.backbone.grid(size, size)
        return place((grid.y.centres(), grid.x.centres()), (picture[0], picture[1]), size=size, resize=resize)

    def _ssgrl(self) -> SSGRL:
        if not isinstance(self.model, SSGRL):
            raise ValueError(f"{self.source} holds a {type(self.model).__name__}, which has no attention maps")
        return self.model

    def to_frame(self, files: Sequence[str | Path], **options: Any) -> Any:
        """Predict the labels of image files as a table in memory.

        Args:
            files: image files, in the order of the rows.
            options: of :class:`~ssgrl_fast.inference.predict.RowOptions`.

        Returns:
            A ``pandas.DataFrame`` with a row per file: "file", "error" (None but with ``skip_broken``), "labels" (a
            list), and the probability of each class, or with ``top`` the columns ``class_1``, ``probability_1``, …

        Raises:
            ImportError: pandas is missing; the message names the extra.
            BrokenImage, FileNotFoundError, ValueError: as :func:`~ssgrl_fast.inference.predict.predict_rows`; a class
                that is called "file", "error" or "labels".
        """
        pandas = need("pandas", "frame", "Predictor.to_frame")
        from ssgrl_fast.inference.predict import RowOptions, predict_rows, run_facts
        from ssgrl_fast.inference.prediction_files import table_header, table_rows

        chosen = RowOptions(**options)
        facts = run_facts(self, chosen)
        columns = table_header(facts)
        rows = predict_rows(self, files, chosen)
        return pandas.DataFrame(list(table_rows(facts, rows)), columns=columns)

    def sample(self, path: Path, targets: np.ndarray | None = None) -> Sample:
        """One row of an attention sheet: the photograph, its probabilities and its attention maps.

        Raises:
            FileNotFoundError, BrokenImage: naming the file.
            ValueError: the model has no attention maps.
        """
        logits, maps = self.scores(self.read(path)[None], attention=True)
        assert maps is not None
        picture = self.photograph(path, SHEET_PIXELS)
        probabilities = logits[0].sigmoid().numpy()
        return Sample(picture, probabilities, maps[0].numpy(), self.placement(picture.shape), targets, path.name)


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it, else float32."""
    slow = device.type == "cpu" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.float32 if slow else torch.bfloat16
