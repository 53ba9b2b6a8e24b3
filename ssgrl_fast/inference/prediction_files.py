"""Files of predictions, written row by row: JSON, JSON Lines, CSV; Parquet by :mod:`ssgrl_fast.inference.shards`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ssgrl_fast._utils.checks import some
from ssgrl_fast._utils.escape import for_json
from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.data.sources import is_address
from ssgrl_fast.inference.predict import FORMAT, Scored, as_row
from ssgrl_fast.inference.shards import Shards, check_same, write_parquet

__all__ = [
    "SUFFIXES",
    "check_folder",
    "check_output",
    "is_folder",
    "rows_present",
    "table_header",
    "table_rows",
    "write_json",
    "write_rows",
]

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_FOREIGN = "backslashreplace"  # names that are not UTF-8, as JSON's escapes
_CSV_START = ["file", "error", "labels"]


def write_rows(
    output: Path, facts: dict[str, Any], scored: Iterable[Scored], *, passed_over: Sequence[str], start: int = 0
) -> dict[str, int]:
    """Write the rows as they come; the suffix names the form.

    - ``.json``: one object: the facts, "files" (the rows), then "images", "broken", "passed_over".
    - ``.jsonl``: the facts in the first line, then one row per line, each on the disc at once: what an interrupted run
      has written stays, and is continued with ``start``.
    - ``.csv``: per file its error (or nothing), its labels as a JSON list, and the probability of each class, or with
      "top" of the facts ``class_1, probability_1, …``.
    - ``.parquet``: the table of :mod:`ssgrl_fast.inference.shards`.

    JSON, CSV and Parquet appear under their name when they are whole.

    Args:
        output: the file.
        facts: of :func:`~ssgrl_fast.inference.predict.run_facts`.
        scored: of :func:`~ssgrl_fast.inference.predict.score_files`.
        passed_over: files of the folders that are no images.
        start: rows that a ``.jsonl`` has already, of :func:`rows_present`.

    Returns:
        {"images", "broken"}: the rows written now.

    Raises:
        OSError: the file cannot be written.
    """
    if output.suffix == ".parquet":
        return write_parquet(output, facts, scored)
    rows = (as_row(each, facts) for each in scored)
    if output.suffix == ".jsonl":
        counts = {"images": 0, "broken": 0}
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a" if start else "w", encoding="utf-8", errors=_FOREIGN, newline="") as file:
            if not start:
                file.write(_text({**facts, "passed_over": passed_over}) + "\n")
            for row in rows:
                file.write(_text(row) + "\n")
                file.flush()
                counts["broken" if "error" in row else "images"] += 1
            os.fsync(file.fileno())
        return counts
    with replacing(output) as part, open(part, "w", encoding="utf-8", errors=_FOREIGN, newline="") as file:
        return _write_csv(file, facts, rows) if output.suffix == ".csv" else write_json(file, facts, rows, passed_over)


def write_json(
    file: IO[str], facts: dict[str, Any], rows: Iterable[dict[str, Any]], passed_over: Sequence[str]
) -> dict[str, int]:
    """Write one JSON object, its rows as they come; see :func:`write_rows`."""
    file.write(_text(facts, indent=2).removesuffix("\n}") + ',\n  "files": [')
    images, broken, between = 0, [], "\n"
    for row in rows:
        if "error" in row:
            broken.append(row)
            continue
        file.write(between + "    " + _text(row, indent=2).replace("\n", "\n    "))
        images, between = images + 1, ",\n"
    rest = {"images": images, "broken": broken, "passed_over": passed_over}
    file.write("\n  ],\n" + _text(rest, indent=2).removeprefix("{\n") + "\n")
    return {"images": images, "broken": len(broken)}


def _write_csv(file: IO[str], facts: dict[str, Any], rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    writer = csv.writer(file)
    writer.writerow(table_header(facts))
    counts = {"images": 0, "broken": 0}
    for path, error, labels, *cells in table_rows(facts, rows):
        writer.writerow([path, error, None if labels is None else _text(labels), *cells])
        counts["images" if error is None else "broken"] += 1
    return counts


def table_header(facts: dict[str, Any]) -> list[str]:
    """The columns of a table of predictions: file, error, labels, and the classes, or with "top" ``class_1,
    probability_1, …``.

    Raises:
        ValueError: a class is called like one of the first three.
    """
    names, top = facts["class_names"], facts["top"]
    best = [title for rank in range(1, (top or 0) + 1) for title in (f"class_{rank}", f"probability_{rank}")]
    if not top and (double := [name for name in names if name in _CSV_START]):
        raise ValueError(f"predict: the class {double[0]!r} is called as a column of the table; write .json or .jsonl")
    return _CSV_START + (best if top else names)


def table_rows(facts: dict[str, Any], rows: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    """The cells of each row under :func:`table_header`; None where there is nothing."""
    names, width = facts["class_names"], len(table_header(facts)) - len(_CSV_START)
    for row in rows:
        scores = {entry["class"]: entry["probability"] for entry in row.get("scores", [])}
        ranked: list[Any] = [cell for pair in scores.items() for cell in pair]
        cells = ranked + [None] * (width - len(ranked)) if facts["top"] else [scores.get(name) for name in names]
        yield [row["file"], row.get("error"), row.get("labels"), *cells]


def rows_present(output: Path, facts: dict[str, Any], names: Iterator[str], *, batch_size: int) -> int:
    """How many rows an interrupted ``.jsonl`` holds, without those of a batch that it does not hold whole, and without
    a last line that was cut off: both are removed from it. The rest is then computed in the batches of a run without
    an interruption, and is equal to the last bit.

    Args:
        output: the file, as :func:`check_output` takes it; 0 rows where it does not exist.
        facts: of the run that continues it, which have to be the same.
        names: of the run's images, of which those are taken that have rows, and must be the same.
        batch_size: images per batch of the run; broken ones do not count.

    Raises:
        ValueError: no ``.jsonl``, another run's facts or files; the message names the file and the first difference.
    """
    if output.suffix != ".jsonl":
        raise ValueError(
            "predict: --resume continues a .jsonl file, which is written line by line, or a folder of shards, got "
            f"{output}"
        )
    if not output.exists():
        return 0
    count, whole, images = 0, 0, 0
    batches = 0, 0  # rows and bytes of the batches that are whole
    with open(output, "rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(f"{output}: row {count + (whole > 0)} is damaged: {error}") from error
            if not isinstance(row, dict) or ("file" not in row and whole > 0):
                raise ValueError(f"{output}: row {count + (whole > 0)} is damaged: it holds no prediction")
            if whole == 0:
                check_same(output, facts, row)
            elif row["file"] != (expected := next(names, None)):
                shown = "no further row" if expected is None else expected
                raise ValueError(f"{output}: row {count + 1} is of {row['file']}, expected {shown}: other files")
            else:
                count += 1
                images += "error" not in row
            whole += len(line)
            if images % batch_size == 0 and "error" not in row:
                batches = count, whole
        if next(names, None) is None:  # the last batch may be smaller
            batches = count, whole
        file.truncate(batches[1])
    return batches[0]


def is_folder(output: str) -> bool:
    """Whether an output is a folder of shards: an address, a folder that is there, or a name without an extension."""
    return is_address(output) or Path(output).is_dir() or not Path(output).suffix


def check_output(output: Path, files: Iterable[Path], bundle: Path | None) -> None:
    """Refuse to replace what predict did not write; for a folder of shards see :func:`check_folder`.

    Raises:
        ValueError: a suffix that names no form; a symbolic link that leads nowhere; an image of this run, a file of
            the bundle, or a file that does not begin as a file of predictions does.
    """
    if output.suffix not in SUFFIXES:
        raise ValueError(f"predict: --output must end in {', '.join(SUFFIXES)}, got {output}")
    if not output.exists():
        if output.is_symlink():
            raise ValueError(
                f"predict: --output {output} is a symbolic link to {output.readlink()}, which does not exist"
            )
        return
    place = output.resolve()
    if any(place.samefile(path) for path in files if path.exists()):
        raise ValueError(f"predict: --output {output} is one of the images to be read")
    if bundle is not None and place.is_relative_to(bundle.resolve()):
        raise ValueError(f"predict: --output {output} is a file of the bundle {bundle}")
    if output.suffix == ".parquet" and output.stat().st_size:
        Shards(str(output)).open(str(output))
        return
    with open(output, "rb") as file:
        start = file.read(200)
    known = start.startswith(",".join(_CSV_START).encode()) if output.suffix == ".csv" else FORMAT.encode() in start
    if start and not known:
        raise ValueError(f"predict: --output {output} exists and is no file of predictions: it is not replaced")


def check_folder(output: str, bundle: Path, *, resume: bool) -> None:
    """Refuse to write shards among other files.

    Raises:
        ValueError: a folder of the bundle, a folder with other files, or with shards that are not to be continued.
    """
    place = Path(output)
    if not is_address(output):
        if place.is_dir() and (others := [each.name for each in place.iterdir() if not _is_shard_name(each.name)]):
            raise ValueError(f"predict: --output {output} is a folder with other files than shards: {some(others)}")
        if place.resolve().is_relative_to(bundle.resolve()) and bundle.exists():
            raise ValueError(f"predict: --output {output} is in the bundle {bundle}")
        if place.exists() and not place.is_dir():
            raise ValueError(f"predict: --output must end in {', '.join(SUFFIXES)} or be a folder, got {output}")
    if not resume and Shards(output).paths():
        raise ValueError(f"predict: --output {output} holds shards: --resume continues them; or name another folder")


def _is_shard_name(name: str) -> bool:
    return name.endswith(".parquet") or (name.startswith(".") and name.endswith(".partial"))


def _text(value: Any, indent: int | None = None) -> str:
    return for_json(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))
