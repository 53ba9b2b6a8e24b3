"""Ray's engine: the rows of the local one; an actor and a machine that die lose nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("PIL", reason="the training extra is not installed")

import pyarrow
import ray
from test_shards import LATIN, PHOTOS, place, predict, rows_of, rows_of_run  # noqa: F401

from ssgrl_fast.inference.image_files import find_sources
from ssgrl_fast.inference.predict import RowOptions, run_facts
from ssgrl_fast.inference.processes import Job
from ssgrl_fast.inference.ray_data import _Writer, label, predict_by_ray
from ssgrl_fast.inference.shards import Shards

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three machines of one core each; the first, the head's, holds no actor."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        made.workers = [made.add_node(num_cpus=1, **store) for _ in range(2)]
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def job_of(place: Path, output: str, **options: Any) -> Job:  # noqa: F811
    given = {"batch_size": 1, "skip_broken": True, **options}
    return Job(str(place / "bundle"), {}, RowOptions(**given), str(place / output), 4)


def photos(place: Path) -> list[str]:  # noqa: F811
    return find_sources([str(place / "photos")])[0]


def test_rows_are_those_of_the_local_engine_and_are_resumed(cluster: Any, place: Path) -> None:  # noqa: F811
    expected = rows_of_run(place, "plain")
    job, tar = job_of(place, "ray"), str(place / "photos.tar")
    assert predict_by_ray(job, photos(place), actors=2) == Counter(images=PHOTOS, broken=1)
    assert rows_of(place / "ray") == expected
    written = Shards(job.output).paths()
    os.unlink(written[2])
    before = {path: os.stat(path).st_mtime_ns for path in Shards(job.output).paths()}
    words = [str(place / "photos"), tar, "--engine", "ray", "--shard-rows", "4", "--resume"]
    assert predict(place, "ray", *words) == 0
    found = rows_of(place / "ray")
    assert len(found) == 2 * len(expected) and set(written) <= set(Shards(job.output).paths())
    assert {path: os.stat(path).st_mtime_ns for path in before} == before, "only the rest is computed"
    assert all(found[name] == row for name, row in expected.items())
    for name in set(found) - set(expected):
        assert found[name]["scores"] == expected[name.replace(".tar/.", "")]["scores"]
    with pytest.raises(ChildProcessError, match="07b.png: cannot identify image file"):
        predict_by_ray(job_of(place, "broken", skip_broken=False), photos(place))


def test_a_precision_that_machines_choose_is_refused(cluster: Any, place: Path) -> None:  # noqa: F811
    job = replace(job_of(place, "auto"), settings={"dtype": "auto"})
    for run in (
        lambda: predict_by_ray(job, photos(place)),
        lambda: label(ray.data.range(1), "-", settings=job.settings),
    ):
        with pytest.raises(ValueError, match="--dtype auto is what a machine is fast in.*name one"):
            run()
    facts = {**run_facts(job.predictor(), job.options), "dtype": "int8 backbone and bfloat16"}
    writer = _Writer(replace(job, settings={"dtype": "float32"}), {**facts, "device": "cuda:0"}, set())
    found = writer(pyarrow.table({"files": [photos(place)[0].encode()]})).to_pylist()
    message = "its machine computes with dtype = 'float32', the run has 'int8 backbone and bfloat16'"
    assert found == [{"images": 0, "broken": 0, "message": message}] and not Shards(job.output).paths()


def test_a_resumed_run_computes_the_batches_of_a_whole_one(cluster: Any, place: Path) -> None:  # noqa: F811
    """Blocks of 9 names in batches of 4: 23 images and a broken one, so that no two blocks have the same batches."""
    job = replace(job_of(place, "blocks", batch_size=4), rows=9)
    predict_by_ray(job, photos(place), actors=2)
    whole, paths = rows_of(place / "blocks"), Shards(job.output).paths()
    sizes = {path: len(Shards("").open(path)[0].read()) for path in paths}
    assert sorted(sizes.values()) == [6, 9, 9], "a block is a shard"
    for path in sorted(paths, key=sizes.__getitem__)[:2]:
        os.unlink(path)
    counts = predict_by_ray(job, photos(place), actors=1)
    assert counts.total() == 15 and rows_of(place / "blocks") == whole
    assert predict_by_ray(job, photos(place)).total() == 0


def test_a_data_set_gets_its_rows(cluster: Any, place: Path) -> None:  # noqa: F811
    expected = rows_of_run(place, "plain")
    names = [name for name in photos(place) if not name.endswith(LATIN)]  # which Ray's own reader does not take
    named = ray.data.read_binary_files(names, include_paths=True).rename_columns({"path": "file"})
    rows = label(named, place / "bundle", batch_size=1, skip_broken=True, rows=6).take_all()
    assert len(rows) == len(expected) - 1
    for row in rows:
        scores = expected[row["file"]]["scores"]
        assert list(row["scores"]) == scores if scores else row["scores"] is None
    with pytest.raises(ValueError, match="actors must be at least 1, got 0"):
        label(named, place / "bundle", actors=0)


def actors_of(node: Any) -> list[int]:
    """Processes of a node's actors that predict."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for child in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split():
        if b"ray::MapWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(int(child))
    return found


def test_an_actor_and_a_machine_that_die_lose_nothing(cluster: Any, place: Path) -> None:  # noqa: F811
    """Many names of one photograph; the first shard kills an actor, the tenth a whole machine."""
    many = place / "many"
    many.mkdir()
    for number in range(400):
        os.link(place / "photos" / "05.png", many / f"{number:04}.png")
    names = sorted(map(str, many.iterdir()))
    result: list[Any] = []
    job = job_of(place, "chaos")
    run = threading.Thread(target=lambda: result.append(predict_by_ray(job, names, actors=2)), daemon=True)
    run.start()
    for wanted, machine in ((1, False), (10, True)):
        while run.is_alive() and len(Shards(job.output).paths()) < wanted:
            time.sleep(0.01)
        assert len(Shards(job.output).paths()) < 90, "it is still running"
        if machine:
            cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        else:
            victims = [pid for node in cluster.workers for pid in actors_of(node)]
            os.kill(victims[0], signal.SIGKILL)
    run.join(240)
    assert result, "the run came to its end"
    rows = rows_of(place / "chaos")
    assert sorted(rows) == names and len({tuple(row["scores"]) for row in rows.values()}) == 1
