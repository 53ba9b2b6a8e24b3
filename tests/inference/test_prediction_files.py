"""Files of predictions: the same rows in every form, resumed after a kill, and nothing else replaced."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="the training extra is not installed")
from PIL import Image
from small_bundles import write_bundle_and_photos
from torch import Tensor

from ssgrl_fast import cli
from ssgrl_fast._utils.ahead import read_ahead, read_batches
from ssgrl_fast.inference.image_files import find_images
from ssgrl_fast.inference.predictor import Predictor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    write_bundle_and_photos(folder, 23)
    return folder


def predict(place: Path, output: str, *options: str) -> int:
    paths = [str(place / "photos"), "--model", str(place / "bundle"), "--output", str(place / output)]
    return cli.main(["predict", *paths, "--no-progress", "--skip-broken", *options])


def rows_of(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["format"] == "ssgrl_fast.predictions"
    return lines[1:]


def test_every_form_holds_the_same_rows(place: Path) -> None:
    for name in ("all.json", "all.jsonl", "all.csv"):
        assert predict(place, name) == 0
    whole, lines = json.loads((place / "all.json").read_text()), rows_of(place / "all.jsonl")
    assert [row["file"] for row in lines] == sorted(map(str, (place / "photos").iterdir()))
    assert [row for row in lines if "error" not in row] == whole["files"] and len(whole["files"]) == whole[
        "images"
    ] == 23
    assert [row for row in lines if "error" in row] == whole["broken"] and len(whole["broken"]) == 1
    with open(place / "all.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, cells in zip(lines, table, strict=True):
        assert cells["file"] == row["file"] and cells["error"] == row.get("error", "")
        for entry in row.get("scores", []):
            assert float(cells[entry["class"]]) == entry["probability"]
        assert json.loads(cells["labels"] or "[]") == row.get("labels", [])
    assert predict(place, "top.csv", "--top", "2") == 0
    with open(place / "top.csv", newline="") as file:
        first = next(csv.DictReader(file))
    best = lines[0]["scores"][:2]
    assert [first["class_1"], first["class_2"]] == [entry["class"] for entry in best]
    assert [float(first["probability_1"]), float(first["probability_2"])] == [entry["probability"] for entry in best]


@pytest.mark.parametrize("top", [None, 2])
def test_a_frame_holds_the_rows_of_the_csv(place: Path, top: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas", reason="frames need pandas")
    assert predict(place, "rows.csv", *([] if top is None else ["--top", str(top)])) == 0
    predictor, files = Predictor.load(place / "bundle"), find_images([place / "photos"])
    frame = predictor.to_frame(files, skip_broken=True, top=top)
    expected = pandas.read_csv(place / "rows.csv")
    expected["labels"] = [None if isinstance(text, float) else json.loads(text) for text in expected["labels"]]
    pandas.testing.assert_frame_equal(frame, expected, check_dtype=False, rtol=0, atol=1e-12)
    assert frame["error"].notna().sum() == 1 and frame["file"].tolist() == [str(file) for file in files]
    monkeypatch.setattr(type(predictor), "class_names", ["labels", *predictor.class_names[1:]])
    if top is None:
        with pytest.raises(ValueError, match="the class 'labels' is called as a column of the table"):
            predictor.to_frame(files)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Predictor.to_frame needs pandas: pip install 'ssgrl_fast\[frame\]'"):
        predictor.to_frame(files)


def test_threads_and_batches_change_no_row(place: Path) -> None:
    for name, options in (("r0.jsonl", ["--readers", "0"]), ("r3.jsonl", ["--readers", "3"])):
        assert predict(place, name, *options) == 0
    assert rows_of(place / "r0.jsonl") == rows_of(place / "r3.jsonl")


SLOW = """
import sys, time
from ssgrl_fast import cli
from ssgrl_fast.inference.predictor import Predictor
plain = Predictor.scores
def slow(self, images, **options):
    time.sleep(0.1)
    return plain(self, images, **options)
Predictor.scores = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.thorough
def test_a_killed_run_is_resumed_with_nothing_lost_and_nothing_twice(place: Path) -> None:
    output, kills = place / "killed.jsonl", 0
    command = ["predict", str(place / "photos"), "--model", str(place / "bundle"), "--output", str(output)]
    command += ["--no-progress", "--skip-broken", "--batch-size", "2"]
    # processes of one kind: another number of threads changes the last bits
    subprocess.run([sys.executable, "-c", SLOW, *command], check=True)
    expected = rows_of(output)
    output.unlink()
    for wait in (3, 7, 12):  # rows that have to be there
        run = subprocess.Popen([sys.executable, "-c", SLOW, *command, *(["--resume"] if kills else [])])
        while run.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") <= wait):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        kills += run.wait() == -signal.SIGKILL
    assert kills == 3
    with open(output, "ab") as file:
        file.write(b'{"file": "cut o')  # as a kill within a write leaves it
    subprocess.run([sys.executable, "-c", SLOW, *command, "--resume"], check=True)
    assert rows_of(output) == expected


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 6, 8, 9, 11, 12, 13, 22, 23, 24])
def test_a_resumed_run_computes_the_batches_of_a_whole_one(place: Path, monkeypatch, rows: int) -> None:
    """Another batch changes the last bits of the scores: the rows of a batch that was cut off are computed again."""
    batches, scores = [], Predictor.scores

    def recorded(self: Predictor, images: Tensor, **options: bool) -> tuple[Tensor, Tensor | None]:
        batches.append(images)
        return scores(self, images, **options)

    monkeypatch.setattr(Predictor, "scores", recorded)
    assert predict(place, "whole4.jsonl", "--batch-size", "4") == 0
    whole, lines = batches.copy(), (place / "whole4.jsonl").read_bytes().splitlines(keepends=True)
    batches.clear()
    (place / "cut4.jsonl").write_bytes(b"".join(lines[: 1 + rows]))
    assert predict(place, "cut4.jsonl", "--batch-size", "4", "--resume") == 0
    assert (place / "cut4.jsonl").read_bytes() == b"".join(lines)
    assert len(batches) == len(whole) - (rows - (rows > 8)) // 4 - (rows == 24)  # row 8 is the broken file
    assert all(torch.equal(*pair) for pair in zip(batches, whole[len(whole) - len(batches) :], strict=True))


def test_a_damaged_row_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(place, "cut.jsonl") == 0
    whole = (place / "cut.jsonl").read_bytes().splitlines(keepends=True)
    for row in (b'{"file": \n', b"[1]\n", b"{}\n", b"\xff\n", b"[" * 10**5 + b"\n"):
        (place / "cut.jsonl").write_bytes(b"".join([*whole[:3], row, *whole[4:]]))
        assert predict(place, "cut.jsonl", "--resume") == 1
        assert "cut.jsonl: row 3 is damaged: " in capsys.readouterr().err


def test_resume_refuses_another_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(place, "once.jsonl") == 0
    assert predict(place, "once.jsonl", "--resume", "--threshold", "0.25") == 1
    assert "was written with threshold = 0.5, this run has 0.25" in capsys.readouterr().err
    assert predict(place, "once.json", "--resume") == 1
    assert "--resume continues a .jsonl file" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(place / "photos" / "00a.png")
    try:
        assert predict(place, "once.jsonl", "--resume") == 1
        assert "other files" in capsys.readouterr().err
    finally:
        (place / "photos" / "00a.png").unlink()


def test_what_predict_did_not_write_is_not_replaced(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "notes.csv").write_text("mine\n")
    (place / "photos" / "linked.json").symlink_to(place / "photos" / "00.png")
    (place / "same.json").hardlink_to(place / "photos" / "01.png")
    cases = {
        "notes.csv": "is no file of predictions",
        "photos/linked.json": "is one of the images",
        "same.json": "is one of the images",
        "bundle/config.json": "is a file of the bundle",
        "photos/00.png": "must end in .json, .jsonl, .csv",
    }
    before = {name: (place / name).read_bytes() for name in cases}
    for name, message in cases.items():
        assert predict(place, name) == 1
        assert message in capsys.readouterr().err
        assert (place / name).read_bytes() == before[name]
    (place / "photos" / "linked.json").unlink()
    for name in ("away.json", "away.jsonl"):
        (place / name).symlink_to(place / "nowhere.txt")
        assert predict(place, name) == 1
        assert f"is a symbolic link to {place / 'nowhere.txt'}, which does not exist" in capsys.readouterr().err
    assert not (place / "nowhere.txt").exists()
    image = place / "photos" / "02.png"
    before_sheet = image.read_bytes()
    sheet = ["plot-attention", str(place / "photos" / "02.png"), f"--model={place / 'bundle'}", f"--out={image}"]
    assert cli.main(sheet) == 1 and image.read_bytes() == before_sheet
    assert "is one of the images to be read" in capsys.readouterr().err


def test_read_ahead_keeps_the_order_and_raises_at_its_item() -> None:
    started: list[int] = []

    def read(item: int) -> int:
        started.append(item)
        time.sleep(0.002 * (item % 3))
        if item == 11:
            raise ValueError("item 11")
        return item * item

    results, found = read_ahead(read, iter(range(20)), readers=3, ahead=4), []
    with pytest.raises(ValueError, match="item 11"):
        for value in results:
            found.append(value)
            assert max(started) <= len(found) + 4, "no more than four results wait"
    assert found == [item * item for item in range(11)]
    assert list(read_batches(abs, range(5), batch_size=2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="ahead at least 1"):
        next(read_ahead(abs, [1], readers=1, ahead=0))


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_number_of_images(place: Path) -> None:
    """Peak memory of 40 and of 1,600 images, in processes of their own."""
    many = place / "many"
    for count in (40, 1600):
        (many / str(count)).mkdir(parents=True)
        for index in range(count):
            os.link(place / "photos" / "05.png", many / str(count) / f"{index:04}.png")
    peak = {}
    for count in (40, 1600):
        paths = [str(many / str(count)), "--model", str(place / "bundle"), "--output", str(place / f"{count}.jsonl")]
        code = "import resource, sys; from ssgrl_fast import cli; assert cli.main(sys.argv[1:]) == 0; "
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        command = [sys.executable, "-c", code, "predict", *paths, "--no-progress"]
        peak[count] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak[1600] < 1.05 * peak[40]
    assert len(rows_of(place / "1600.jsonl")) == 1600
