"""Predictions in Parquet: one file, or a folder of shards that any number of processes write and a later run continues.

| column | content |
|---|---|
| file | the image's name; bytes that are no UTF-8 as ``\\udc80`` … ``\\udcff`` |
| error | of an image that could not be read, or null; the columns below are then null |
| labels | the predicted ones, the highest score first |
| classes | with ``top`` the classes of the scores, the highest first; otherwise null |
| scores | logits, float32: C in the order of the run's "class_names", or those of the column classes |
| overlays | files of attention overlays, or null |
| attention | with that option only: float16, h x w values per score, in their order; the fact "attention" is [h, w] |

The facts of the run stand in the schema's metadata as JSON under the key ``ssgrl_fast.predictions``. A shard appears
when it is whole, under a name made of its images' names, so that a repeated piece of work replaces its own shard. A
shard ends where a batch ends. A resumed run therefore has the batches of a run without a kill, and its rows are the
same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_table
from ssgrl_fast._utils.files import replacing
from ssgrl_fast.data.sources import file_system, is_address
from ssgrl_fast.inference.predict import FORMAT, Scored, predicted, ranking

__all__ = ["SHARD_ROWS", "Shards", "check_same", "counted", "of_the_run", "table_of", "write_parquet"]

SHARD_ROWS = 4096
_VALUES = 1 << 24  # scores of a shard at most
_GROUP_VALUES = 1 << 22  # and of a row group
_OF_THE_MACHINE = ("device", "backend", "runtime", "versions")  # facts that may differ between the shards of a run


@dataclass(frozen=True)
class Shards:
    """A folder of shards, on a disk or at an address; or one Parquet file, to be read.

    Attributes:
        folder: where.
    """

    folder: str

    def paths(self) -> list[str]:
        """Names of the shards, sorted; none where there is no folder."""
        if is_address(self.folder):
            system, place = file_system(self.folder)
            found = system.find(place, maxdepth=1) if system.exists(place) else []
            return sorted(system.unstrip_protocol(name) for name in found if name.endswith(".parquet"))
        folder = Path(self.folder)
        return [self.folder] if folder.is_file() else sorted(map(str, folder.glob("[!.]*.parquet")))

    def open(self, path: str) -> tuple[Any, dict[str, Any]]:
        """A shard as ``pyarrow.parquet.ParquetFile``, and the facts of its run.

        Raises:
            ValueError: damaged, or no predictions; the message names it.
        """
        parquet = need("pyarrow.parquet", "train", "predictions in Parquet")
        try:
            file = parquet.ParquetFile(_opened(path))
            return file, json.loads((file.schema_arrow.metadata or {})[FORMAT.encode()])
        except KeyError:
            raise ValueError(f"{path}: a Parquet file, but no predictions: its metadata have no {FORMAT}") from None
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: no shard of predictions: {error}") from error

    def write(self, table: Any) -> str:
        """Write a table of :func:`table_of` as a shard; its name.

        Raises:
            OSError: it could not be written.
        """
        names = "\0".join(table["file"].to_pylist()).encode()
        path = f"{self.folder.rstrip('/')}/{hashlib.blake2b(names, digest_size=16).hexdigest()}.parquet"
        if not is_address(self.folder):
            with replacing(path) as part:
                _write(table, part)
            return path
        stream = need("pyarrow", "train", "predictions in Parquet").BufferOutputStream()
        _write(table, stream)
        system, place = file_system(path)
        system.pipe_file(place, stream.getvalue().to_pybytes())  # a store shows whole objects alone
        return path

    def finished(self, facts: dict[str, Any]) -> set[str]:
        """Names of the images whose rows are there.

        Args:
            facts: of the run that continues, which have to be the same but for the machine's.

        Raises:
            ValueError: a damaged shard, or one of another run; the message names the first difference.
        """
        done: set[str] = set()
        for path in self.paths():
            file, found = self.open(path)
            check_same(path, of_the_run(facts), found)
            done.update(file.read(["file"])["file"].to_pylist())
        return done

    def write_all(
        self,
        facts: dict[str, Any],
        scored: Iterable[Scored],
        *,
        batch_size: int,
        rows: int = SHARD_ROWS,
        seconds: float = 60.0,
    ) -> Iterator[Counter[str]]:
        """Write shards as the images come; yields the :func:`counted` rows of each when it is there.

        Args:
            facts: of :func:`~ssgrl_fast.inference.predict.run_facts`.
            scored: of :func:`~ssgrl_fast.inference.predict.score_files`.
            batch_size: images per batch of the run, without broken ones.
            rows: of a shard at most; a single batch with its broken images may have more. It is closed earlier at 2^24
                scores and attention values (67 MB).
            seconds: a shard is closed at the end of a batch once this time has passed since its first image.
        """
        for part in _parts(scored, min(rows, _VALUES // _row_values(facts)), seconds, batch_size):
            self.write(table_of(facts, part))
            yield counted(part)


def of_the_run(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that all shards of a run share."""
    return {name: value for name, value in facts.items() if name not in _OF_THE_MACHINE}


def check_same(output: str | Path, facts: dict[str, Any], found: dict[str, Any]) -> None:
    """Check that a file's facts are those of the run that continues it.

    Raises:
        ValueError: they differ; the message names the file and the first difference.
    """
    for name, value in json.loads(json.dumps(facts)).items():
        if found.get(name) != value:
            raise ValueError(f"{output}: was written with {name} = {found.get(name)!r}, this run has {value!r}")


def counted(scored: Sequence[Scored]) -> Counter[str]:
    """How many "images" and "broken" ones there are."""
    return Counter("images" if each.error is None else "broken" for each in scored)


def write_parquet(output: Path, facts: dict[str, Any], scored: Iterable[Scored]) -> Counter[str]:
    """Write one file, a row group at a time; it appears when it is whole. Arguments as for
    :meth:`Shards.write_all`."""
    parquet, counts = need("pyarrow.parquet", "train", "predictions in Parquet"), Counter[str]()
    with replacing(output) as part, parquet.ParquetWriter(part, _schema(facts), compression="zstd") as writer:
        for rows in _parts(scored, _group_rows(facts), float("inf")):
            writer.write_table(table_of(facts, rows))
            counts += counted(rows)
    return counts


def table_of(facts: dict[str, Any], scored: Sequence[Scored]) -> Any:
    """Rows as a ``pyarrow.Table`` with the columns of the module and the facts in its metadata."""
    top, names = facts["top"], facts["class_names"]
    columns: dict[str, list[Any]] = {name: [] for name in _schema(facts).names}
    for each in scored:
        logits, best = each.logits, None if each.logits is None or top is None else ranking(each.logits, top)
        columns["file"].append(for_table(each.file))
        columns["error"].append(None if each.error is None else for_table(each.error))
        columns["labels"].append(None if logits is None else predicted(logits, facts))
        columns["classes"].append(None if best is None else [names[index] for index in best.tolist()])
        kept = logits if logits is None or best is None else logits[best]
        columns["scores"].append(None if kept is None else kept.numpy())
        columns["overlays"].append(None if each.overlays is None else list(map(for_table, each.overlays)))
        if "attention" in columns:
            maps = each.attention if each.attention is None or best is None else each.attention[best]
            columns["attention"].append(None if maps is None else maps.half().flatten().numpy())
    return need("pyarrow", "train", "predictions in Parquet").table(columns, schema=_schema(facts))


def _schema(facts: dict[str, Any]) -> Any:
    arrow = need("pyarrow", "train", "predictions in Parquet")
    texts = arrow.list_(arrow.string())
    fields = {"file": arrow.string(), "error": arrow.string(), "labels": texts, "classes": texts}
    fields |= {"scores": arrow.list_(arrow.float32()), "overlays": texts}
    if facts.get("attention") is not None:
        fields["attention"] = arrow.list_(arrow.float16())
    return arrow.schema(list(fields.items()), metadata={FORMAT: json.dumps(facts, allow_nan=False)})


def _row_values(facts: dict[str, Any]) -> int:
    """Scores and attention values of an image at most."""
    height, width = facts.get("attention") or (0, 0)
    return (facts["top"] or len(facts["class_names"])) * (1 + height * width)


def _group_rows(facts: dict[str, Any]) -> int:
    return max(1, min(SHARD_ROWS, _GROUP_VALUES // _row_values(facts)))


def _write(table: Any, to: Any) -> None:
    parquet = need("pyarrow.parquet", "train", "predictions in Parquet")
    facts = json.loads(table.schema.metadata[FORMAT.encode()])
    parquet.write_table(table, to, compression="zstd", row_group_size=_group_rows(facts))


def _opened(path: str) -> Any:
    if not is_address(path):
        return path
    system, place = file_system(path)
    return system.open(place, "rb")


def _parts(scored: Iterable[Scored], rows: int, seconds: float, batch_size: int = 1) -> Iterator[list[Scored]]:
    """Rows in whole batches. A part ends where another batch, without broken images, would give more than ``rows``, or
    where ``seconds`` are over."""
    part: list[Scored] = []
    began, images = 0.0, 0
    for each in scored:
        began = began if part else time.monotonic()
        part.append(each)
        images += each.error is None
        full = len(part) + batch_size > rows or time.monotonic() - began > seconds
        if full and images % batch_size == 0:
            yield part
            part = []
    if part:
        yield part
