"""Shards of predictions: the rows of the other forms, resumed after kills, written by several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="the training extra is not installed")
pytest.importorskip("PIL", reason="the training extra is not installed")
import killed_runs
from small_bundles import NAMES, write_bundle_and_photos

from ssgrl_fast import cli
from ssgrl_fast._utils.escape import for_table
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.shards import Shards

PHOTOS = 23
LATIN = os.fsdecode("caf\u00e9.png".encode("latin-1"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_bundle_and_photos(folder, PHOTOS)
    (folder / "photos" / "03.png").rename(folder / "photos" / LATIN)
    with tarfile.open(folder / "photos.tar", "w") as archive:
        archive.add(folder / "photos", ".")
    return folder


def command(place: Path, output: str, *options: str) -> list[str]:
    words = ["predict", "--model", str(place / "bundle"), "--output", str(place / output), "--no-progress"]
    words += ["--batch-size", "1"]  # the last bits do not depend on which images are computed together
    return [*words, "--skip-broken", *(options or [str(place / "photos")])]


def predict(place: Path, output: str, *options: str) -> int:
    return cli.main(command(place, output, *options))


def rows_of(folder: Path | str) -> dict[str, dict]:
    """Rows of shards by file; no file has two."""
    shards, rows = Shards(str(folder)), []
    for path in shards.paths():
        rows += shards.open(path)[0].read().to_pylist()
    assert len({row["file"] for row in rows}) == len(rows)
    return {row["file"]: row for row in rows}


@pytest.mark.parametrize("top", [None, 2])
def test_parquet_holds_the_rows_of_json_lines(top: int | None, place: Path) -> None:
    options = [str(place / "photos"), *([] if top is None else ["--top", "2"])]
    for output in (f"{top}.jsonl", f"{top}.parquet", f"{top}-shards"):
        assert predict(place, output, *options, "--shard-rows", "5") == 0
    facts, *lines = map(json.loads, (place / f"{top}.jsonl").read_text().splitlines())
    names = facts["class_names"]
    assert len(Shards(str(place / f"{top}-shards")).paths()) == 5
    for folder in (f"{top}.parquet", f"{top}-shards"):
        found = rows_of(place / folder)
        assert len(found) == len(lines) == PHOTOS + 1
        for line in lines:
            row = found[line["file"].replace("\udce9", r"\udce9")]
            assert row["error"] == line.get("error") and row["labels"] == line.get("labels")
            if "error" not in line:
                scores = {entry["class"]: entry["score"] for entry in line["scores"]}
                assert row["classes"] == (None if top is None else list(scores))
                assert row["scores"] == [scores[name] for name in row["classes"] or names]
        path = Shards(str(place / folder)).paths()[0]
        stored = Shards(str(place / folder)).open(path)[1]
        assert stored == {name: value for name, value in facts.items() if name != "passed_over"}
    assert predict(place, f"{top}.parquet", *options) == 0, "its own file is replaced"


def test_attention_is_kept_with_the_scores(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor = Predictor.load(place / "bundle")
    for output, more in (("maps", []), ("maps.parquet", ["--top", "2"])):
        assert predict(place, output, str(place / "photos"), "--attention", *more) == 0
    facts = Shards("").open(str(place / "maps.parquet"))[1]
    height, width = facts["attention"]
    best = rows_of(place / "maps.parquet")
    rows = rows_of(place / "maps")
    assert rows.pop(str(place / "photos" / "07b.png"))["attention"] is None
    for path in sorted((place / "photos").iterdir()):
        if (name := for_table(str(path))) not in rows:
            continue
        row = rows.pop(name)
        _, maps = predictor.scores(predictor.read(path)[None], attention=True)
        assert maps is not None and maps.shape == (1, len(NAMES), height, width) and maps.std() > 0
        assert row["attention"] == maps[0].half().flatten().tolist()
        kept = [NAMES.index(label) for label in best[name]["classes"]]
        assert len(kept) == 2 and best[name]["attention"] == maps[0, kept].half().flatten().tolist()
    assert not rows
    assert predict(place, "maps", str(place / "photos"), "--resume") == 1
    assert "was written with attention = [" in capsys.readouterr().err
    assert predict(place, "maps.json", str(place / "photos"), "--attention") == 1
    assert "--attention needs --output in Parquet" in capsys.readouterr().err


@pytest.mark.parametrize(("lost", "batches"), [(1, 2), (2, 4)])
def test_a_resumed_run_computes_the_batches_of_a_whole_one(
    lost: int, batches: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 in shards of two; the broken image is a row, but no image of a batch."""
    seen: list[list[float]] = []
    compute = Predictor.scores

    def scores(self: Predictor, images: Any, **options: Any) -> Any:
        seen.append(images.mean((1, 2, 3)).tolist())
        return compute(self, images, **options)

    monkeypatch.setattr(Predictor, "scores", scores)
    words, output = [str(place / "photos"), "--batch-size", "4", "--shard-rows", "9"], f"{lost} lost"
    assert predict(place, output, *words) == 0
    whole, all_batches = rows_of(place / output), list(seen)
    paths = sorted(Shards(str(place / output)).paths(), key=lambda path: os.stat(path).st_mtime_ns)
    assert [len(Shards("").open(path)[0].read()) for path in paths] == [9, 8, 7]
    for path in paths[-lost:]:
        os.unlink(path)
    seen.clear()
    assert predict(place, output, *words, "--resume") == 0
    assert rows_of(place / output) == whole and seen == all_batches[-batches:]


def test_shards_from_a_tar_and_a_list_at_an_address(place: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="addresses need fsspec")
    expected = rows_of_run(place, "plain")
    words = [str(place / "photos.tar"), "--output", "memory://labels/a", "--shard-rows", "7"]
    assert predict(place, "-", *words) == 0
    found = rows_of("memory://labels/a")
    assert len(Shards("memory://labels/a").paths()) == 4
    for name, row in found.items():
        plain = expected[name.replace(".tar/.", "")]
        assert row["scores"] == plain["scores"] and row["labels"] == plain["labels"]
    assert len(found) == len(expected)
    system = fsspec.filesystem("memory")
    for path in Shards("memory://labels/a").paths()[1:3]:
        system.rm(path.removeprefix("memory:/"))
    assert len(rows_of("memory://labels/a")) < len(expected)
    assert predict(place, "-", *words) == 1, "shards are not written among others unasked"
    assert predict(place, "-", *words, "--resume") == 0
    assert rows_of("memory://labels/a") == found


def rows_of_run(place: Path, output: str) -> dict[str, dict]:
    if not (place / output).exists():
        assert predict(place, output) == 0
    return rows_of(place / output)


def test_a_damaged_tar_is_a_sentence_and_its_earlier_rows_stay(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = place / "cut.tar"
    cut.write_bytes((place / "photos.tar").read_bytes()[:30_000])
    assert cli.main([word for word in command(place, "cut", str(cut)) if word != "--skip-broken"]) == 1
    assert f"{cut}: a damaged tar archive: " in capsys.readouterr().err
    assert predict(place, "cut", str(cut), "--resume") == 0
    rows = rows_of(place / "cut")
    assert "a damaged tar archive" in rows[str(cut)]["error"] and len(rows) > 3
    assert predict(place, "cut.jsonl", str(cut)) == 0 and predict(place, "cut.jsonl", str(cut), "--resume") == 0


def test_resume_takes_only_shards_of_the_same_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_of_run(place, "plain")
    assert predict(place, "plain", str(place / "photos"), "--resume", "--threshold", "0.25") == 1
    assert "was written with threshold = 0.5, this run has 0.25" in capsys.readouterr().err
    (place / "bad").mkdir()
    (place / "bad" / "x.parquet").write_bytes(Shards(str(place / "plain")).paths()[0].encode())
    assert predict(place, "bad", str(place / "photos"), "--resume") == 1
    assert f"{place / 'bad' / 'x.parquet'}: no shard of predictions" in capsys.readouterr().err
    cases = {
        "photos": "is a folder with other files than shards",
        "bundle/labels": "is in the bundle",
        "plain": "holds shards: --resume continues them",
    }
    for output, message in cases.items():
        assert predict(place, output) == 1 and message in capsys.readouterr().err
    assert predict(place, "x.json", str(place / "photos"), "--devices", "2") == 1
    assert "--output must be a folder" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_run_killed_at_random_moments_is_resumed(place: Path, tmp_path: Path) -> None:
    expected = rows_of_run(place, "plain")
    words = command(place, "killed", str(place / "photos"), "--shard-rows", "2", "--resume")
    draw, kills = random.Random(0), 0
    seconds = killed_runs.finish([word.replace("killed", "timed") for word in words], tmp_path / "log")
    for _ in range(5):
        kills += killed_runs.kill(words, tmp_path / "log", draw.uniform(0.1, 0.6) * seconds)
        before = set(Shards(str(place / "killed")).paths())
    assert kills
    killed_runs.finish(words, tmp_path / "log")
    assert before <= set(Shards(str(place / "killed")).paths()), "what was there is not written again"
    assert rows_of(place / "killed") == expected


@pytest.mark.thorough
def test_two_processes_write_the_rows_of_one_and_a_killed_one_loses_nothing(place: Path) -> None:
    expected = rows_of_run(place, "plain")
    words = [str(place / "photos"), "--devices", "2", "--shard-rows", "2"]
    run = subprocess.Popen([sys.executable, "-m", "ssgrl_fast", *command(place, "two", *words)])
    killed = 0
    while run.poll() is None:
        time.sleep(0.02)
        if not killed and Shards(str(place / "two")).paths():
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
            killed = workers[-1]
            os.kill(killed, signal.SIGKILL)
    assert run.returncode == 0 and killed
    assert rows_of(place / "two") == expected


@pytest.mark.thorough
def test_a_failing_process_ends_the_run_in_its_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in command(place, "failed", str(place / "photos"), "--devices", "2") if "skip" not in word]
    assert cli.main(words) == 1
    assert f"{place / 'photos' / '07b.png'}: cannot identify image file" in capsys.readouterr().err
