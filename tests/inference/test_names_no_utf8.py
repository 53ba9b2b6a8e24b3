"""Names of files and folders in another encoding than UTF-8: read, written so that they are found again, or refused in
a sentence."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from PIL import Image
from small_bundles import NAMES, make_model
from small_runs import write_image

from ssgrl_fast.cli import main

LATIN = os.fsdecode("caf\u00e9.png".encode("latin-1"))


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    model = make_model()
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(tmp_path / "bundle")
    return str(tmp_path / "bundle")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", LATIN, "z.png"):
        Image.new("RGB", (32, 32), (9, 99, 200)).save(folder / name)
    return folder


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_predictions_name_the_same_files(suffix: str, bundle: str, images: Path, tmp_path: Path) -> None:
    output = tmp_path / f"labels.{suffix}"
    command = ["predict", str(images), "--model", bundle, "--output", str(output), "--no-progress"]
    assert main(command) == 0
    text = output.read_bytes().decode()  # it is UTF-8
    expected = [str(images / name) for name in ("a.png", LATIN, "z.png")]
    if suffix == "csv":
        found = [row["file"].replace(r"\udce9", "\udce9") for row in csv.DictReader(text.splitlines())]
    else:
        rows = json.loads(text)["files"] if suffix == "json" else list(map(json.loads, text.splitlines()[1:]))
        found = [row["file"] for row in rows]
        assert all(Path(file).is_file() for file in found)
    assert found == expected
    if suffix == "jsonl":
        output.write_text("".join(text.splitlines(keepends=True)[:3]) + '{"file', encoding="utf-8")
        assert main([*command, "--resume"]) == 0
        assert output.read_text(encoding="utf-8") == text


@pytest.mark.thorough
def test_a_terminal_shows_them(bundle: str, images: Path) -> None:
    command = [sys.executable, "-m", "ssgrl_fast", "predict", str(images), "--model", bundle, "--no-progress"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert json.loads(done.stdout)["files"][1]["file"] == str(images / LATIN)
    (images / LATIN).write_bytes(b"no image")
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 1 and rb"caf\udce9.png" in done.stderr


def test_reports_hold_them(bundle: str, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 3)):
        (tmp_path / "voc" / split).mkdir(parents=True)
        for number in range(count):
            write_image(tmp_path / "voc" / split / f"{number}.png", [NAMES[number]])
    for suffix in (".png", ".xml"):
        shutil.move(tmp_path / "voc" / "test" / f"1{suffix}", tmp_path / "voc" / "test" / f"{LATIN[:-4]}{suffix}")
    data = ["--data.kind", "voc", "--data.root", str(tmp_path / "voc"), "--no-progress", "--worst", "3"]
    assert main(["evaluate", "--model", bundle, *data, "--output", str(tmp_path / "report")]) == 0
    for path in (tmp_path / "report").rglob("*"):
        if path.suffix in (".json", ".md", ".csv", ".html"):
            path.read_text(encoding="utf-8")


def test_a_folder_of_a_class_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (len(name), 3, 4)).save(photos / name / "1.png")
    shutil.copy(images / "a.png", photos / "dog" / LATIN)
    assert main(["train", str(photos), "--out", str(tmp_path / "out"), "--dry-run"]) == 1
    assert r"the name 'dog/caf\udce9.png' is no UTF-8, as a table needs: rename" in capsys.readouterr().err
