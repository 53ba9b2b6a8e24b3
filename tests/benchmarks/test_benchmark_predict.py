"""The benchmark of the whole job: photographs to labels, and no time for a rival with other logits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")
pytest.importorskip("PIL", reason="photographs need Pillow: pip install 'ssgrl_fast[train]'")

from benchmarks import predict

SMALL = ["--net", "small-cnn", "--image", "32", "--shape", "voc", "--images", "9", "--rounds", "2"]


def test_rivals_are_compared_by_file_and_class(tmp_path: Path) -> None:
    def write(name: str, rows: list[tuple[str, dict[str, float]]]) -> None:
        entries = [(file, [{"class": c, "score": score} for c, score in scores.items()]) for file, scores in rows]
        files = [{"file": file, "scores": scores} for file, scores in entries]
        (tmp_path / f"{name}.json").write_text(json.dumps({"files": files}))

    write("loop", [("a", {"x": 1.0, "y": 2.0}), ("b", {"x": 3.0, "y": 4.0})])
    write("same", [("b", {"y": 4.0, "x": 3.0}), ("a", {"x": 1.0, "y": 2.0})])
    write("other", [("a", {"x": 2.0, "y": 1.0}), ("b", {"x": 3.0, "y": 4.0})])
    assert predict._error(tmp_path, "same", "loop") == 0
    assert predict._error(tmp_path, "other", "loop") == pytest.approx((2 / 30) ** 0.5, rel=1e-5)


@pytest.mark.thorough
def test_every_rival_does_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    rows = tmp_path / "jobs.csv"
    assert predict.main([*SMALL, "--output", str(rows)]) == 0
    with rows.open(newline="", encoding="utf-8") as file:
        jobs = list(csv.DictReader(file))
    assert [job["rival"] for job in jobs] == [*predict.RIVALS] * 2, "interleaved"
    for job in jobs:
        assert job["images"] == "9" and float(job["wall_s"]) > 0 and float(job["peak_bytes"]) > 1e7
        assert float(job["cpu_s"]) >= float(job["system_s"]) > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("small-cnn, 32 px, 20 classes", *predict.RIVALS, "CPU ms/image"))


@pytest.mark.thorough
def test_a_rival_with_other_logits_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "_error", lambda folder, name, truth: 0.5 if name == "ours-torch" else 0.0)
    assert predict.main([*SMALL, "--only", "loop", "--only", "ours-torch"]) == 1
    assert "ours-torch is not timed: it failed, or its logits are 0.5 off" in capsys.readouterr().out
