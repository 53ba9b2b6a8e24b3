"""Files that are whole or not there: a write that is interrupted, and a place that holds no file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ssgrl_fast._utils.files import replacing, write_json, write_text


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.md"
    write_text(path, "the earlier text é\n")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half of ")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "the earlier text é\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.md"]


def test_content_that_is_no_json_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"é": [1, None]})
    before = path.read_text(encoding="utf-8")
    assert before == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    for content in ({"ap": float("nan")}, {"ap": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, content)
    assert path.read_text(encoding="utf-8") == before and os.listdir(tmp_path) == ["report.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text\n")
    reader.join(timeout=10)
    assert read == ["text\n"] and pipe.is_fifo()
