"""20,000 photographs of many sizes, labelled by two processes: memory that does not grow, and rows that five kills do
not change."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the training extra is not installed")
pytest.importorskip("PIL", reason="the training extra is not installed")
from PIL import Image
from small_bundles import make_model
from test_shards import rows_of

from ssgrl_fast.inference.shards import Shards

FEW, MANY, KILLS = 1_000, 20_000, 5


def write_photographs(folder: Path) -> None:
    draw = random.Random(0)
    folder.mkdir()
    for number in range(MANY):
        size = draw.randint(64, 640), draw.randint(64, 640)
        picture = Image.frombytes("RGB", (12, 12), draw.randbytes(432)).resize(size, Image.Resampling.BILINEAR)
        picture.save(folder / f"{number:05}.jpg", quality=85)


def peaks_of(pid: int) -> dict[int, int]:
    """The largest memory so far, in bytes, of a process and its workers."""
    found = {}
    try:
        for each in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
            place = Path(f"/proc/{each}")
            if each == pid or b"spawn_main" in (place / "cmdline").read_bytes():
                found[each] = 1024 * int((place / "status").read_text().partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):  # one has ended
        pass
    return found


def run(folder: Path, output: str, source: str, shards: int | None = None, pause: float = 0.0) -> tuple[float, int]:
    """Label what a source holds, killed so many seconds after so many more shards; the seconds and bytes that it took,
    bytes of all processes together."""
    command = [sys.executable, "-m", "ssgrl_fast", "predict", "--model", str(folder / "bundle"), "--resume"]
    command += ["--output", str(folder / output), "--devices", "2", "--shard-rows", "400", "--no-progress"]
    start, peaks = time.perf_counter(), dict[int, int]()
    written = Shards(str(folder / output))
    last = float("inf") if shards is None else len(written.paths()) + shards
    process = subprocess.Popen([*command, *source.split()])
    while process.poll() is None and len(written.paths()) < last:
        peaks |= peaks_of(process.pid)
        time.sleep(0.1)
    time.sleep(pause)
    peaks |= peaks_of(process.pid)
    children = [pid for pid in peaks if pid != process.pid]
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        while any(Path(f"/proc/{child}").exists() for child in children):  # they end with their parent
            time.sleep(0.01)
    else:
        assert process.returncode == 0 and shards is None, "it ended by itself"
    return time.perf_counter() - start, sum(peaks.values())


@pytest.mark.long
def test_memory_and_five_kills(tmp_path: Path) -> None:
    model, photographs = make_model(), tmp_path / "photographs"
    model.preprocessing = {"image_size": 64, "resize": 64}
    model.save_pretrained(tmp_path / "bundle")
    write_photographs(photographs)
    (tmp_path / "few.txt").write_text("".join(f"photographs/{number:05}.jpg\n" for number in range(FEW)))
    _, few = run(tmp_path, "few", f"--list {tmp_path / 'few.txt'}")
    seconds, many = run(tmp_path, "whole", str(photographs))
    print(f"{FEW:,} images {few / 1e6:.0f} MB, {MANY:,} images {many / 1e6:.0f} MB in {seconds:.0f} s, 3 processes")
    assert len(rows_of(tmp_path / "few")) == FEW and 0 < many < 1.1 * few

    whole, draw, there = rows_of(tmp_path / "whole"), random.Random(0), [0]
    assert list(whole) and {Path(name).name for name in whole} == {f"{number:05}.jpg" for number in range(MANY)}
    for _ in range(KILLS):
        run(tmp_path, "killed", str(photographs), draw.randint(0, 5), draw.uniform(0.0, 1.0))
        there.append(
            sum(Shards("").open(path)[0].metadata.num_rows for path in Shards(str(tmp_path / "killed")).paths())
        )
    assert there == sorted(there) and len(set(there)) > 3, "kills come between shards"
    run(tmp_path, "killed", str(photographs))
    assert rows_of(tmp_path / "killed") == whole
    print(f"rows after each of {KILLS} kills {there[1:]}; then all {len(whole):,} equal to those of a whole run")
