"""Images from lists, tar shards and addresses: the same bytes under the right names, and damage is named."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="the training extra is not installed")
from PIL import Image

from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage, Unreachable
from ssgrl_fast.data.images import read_image
from ssgrl_fast.data.sources import ImageSource, find_at, open_images, read_names
from ssgrl_fast.inference.image_files import find_sources


def content(number: int) -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", (9, 7), random.Random(number).randbytes(189)).save(stream, format="PNG")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def opened(source: ImageSource) -> bytes:
    if source.opener is None:
        return Path(source.name).read_bytes()
    with source.opener() as file:
        return file.read()


LATIN = os.fsdecode("caf\u00e9.png".encode("latin-1"))
MEMBERS = {"a/0.png": content(0), "a/0.json": b"{}", "./1.png": content(1), LATIN: content(2), "._x.png": b"hidden"}
IMAGES = {name: data for name, data in MEMBERS.items() if name.endswith("png") and not name.startswith("._")}


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "TAR", "tgz", "tar.xz"])
def test_a_shard_gives_its_images(ending: str, tmp_path: Path) -> None:
    compression = {"tar": "", "tar.gz": "gz", "tgz": "gz", "tar.bz2": "bz2", "tar.xz": "xz"}[ending.lower()]
    path = write_tar(tmp_path / f"s.{ending}", MEMBERS, f"w:{compression}")
    found = {source.name: opened(source) for source in open_images([str(path)])}
    assert found == {f"{path}/{name}": data for name, data in IMAGES.items()}
    done = {f"{path}/a/0.png", f"{path}/caf\\udce9.png"}
    assert [source.name for source in open_images([str(path)], done)] == [f"{path}/./1.png"]
    source = next(open_images([str(path)]))
    assert read_image(source.name, opener=source.opener).size == (9, 7)
    assert opened(source) == opened(source), "it can be opened again"


def test_links_and_folders_of_a_shard_are_no_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            header = tarfile.TarInfo(f"{ord(kind)}.png")
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
    assert list(open_images([str(tmp_path / "s.tar")])) == []


def damaged(shard: Path) -> dict[str, str]:
    """What is wrong with a shard, by the name of the entry."""
    errors = {}
    for source in open_images([str(shard)]):
        try:
            read_image(source.name, opener=source.opener)
        except (BrokenImage, FileNotFoundError) as error:
            errors[source.name] = str(error)
    return errors


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_no_damage_of_a_shard_passes_in_silence(ending: str, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / f"whole.{ending}", {f"{n}.png": content(n) for n in range(4)}, f"w:{ending[4:]}")
    data, shard = whole.read_bytes(), tmp_path / f"s.{ending}"
    assert damaged(whole) == {}
    draw = random.Random(0)
    end = 4 * 1024 if ending == "tar" else len(data)  # of the last member; the mark at the end follows
    for cut in [0, 1, 512, 1024, 2048, end, *(draw.randrange(end) for _ in range(40))]:
        shard.write_bytes(data[:cut])
        errors = damaged(shard)
        if ending == "tar" or len(list(open_images([str(shard)]))) != 4:  # the compressed mark may be cut
            assert errors[str(shard)].startswith(f"{shard}: a damaged tar archive: "), cut
    if ending == "tar":
        for header in range(0, end, 1024):
            bad = bytearray(data)
            bad[header + draw.randrange(100)] ^= 1 << draw.randrange(8)
            shard.write_bytes(bad)
            assert str(shard) in damaged(shard), header
        shard.write_bytes(data + data)
        assert "several archives in one file" in damaged(shard)[str(shard)]
        for _ in range(100):  # any header at all
            bad = bytearray(data)
            for _ in range(4):
                bad[draw.randrange(4) * 1024 + draw.randrange(512)] = draw.randrange(256)
            shard.write_bytes(bad)
            damaged(shard)


def test_a_name_that_occurs_twice_and_a_missing_shard_are_errors(tmp_path: Path) -> None:
    header = tarfile.TarInfo("0.png")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(header)
    assert "0.png occurs twice" in damaged(tmp_path / "s.tar")[str(tmp_path / "s.tar")]
    assert damaged(tmp_path / "no.tar") == {str(tmp_path / "no.tar"): f"{tmp_path / 'no.tar'}: no such file"}


def test_lists_keep_every_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="lists in Parquet need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["a b.png", "/abs/c.png", "memory://m/d.png", "s.tar"]
    expected = [str(tmp_path / "a b.png"), "/abs/c.png", "memory://m/d.png", str(tmp_path / "s.tar")]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode() + b"\n\ncaf\xe9.png\n")
    assert read_names(str(tmp_path / "list.txt")) == [*expected, str(tmp_path / LATIN)]
    (tmp_path / "list.csv").write_text("label;photo\n" + "".join(f"x;{name}\n" for name in names))
    parquet.write_table(pyarrow.table({"photo": names, "other": [1, 2, 3, 4]}), tmp_path / "list.parquet")
    for table in ("list.csv", "list.parquet"):
        assert read_names(str(tmp_path / table), "photo") == expected
        with pytest.raises(BrokenAnnotation, match=rf"{table}: .*'file'"):
            read_names(str(tmp_path / table))
    found, _ = find_sources([], [str(tmp_path / "list.csv"), str(tmp_path / "list.parquet")], "photo")
    assert found == expected, "each once"
    parquet.write_table(pyarrow.table({"photo": list(map(str.encode, names))}), tmp_path / "bytes.parquet")
    assert read_names(str(tmp_path / "bytes.parquet"), "photo") == expected
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "list.parquet").read_bytes()[:-9])
    with pytest.raises(BrokenAnnotation, match=r"damaged.parquet: no table in Parquet that can be read"):
        read_names(str(tmp_path / "damaged.parquet"))
    parquet.write_table(pyarrow.table({"file": ["a.png", None]}), tmp_path / "gap.parquet")
    with pytest.raises(BrokenAnnotation, match="row 2 has no name in the column 'file'"):
        read_names(str(tmp_path / "gap.parquet"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        read_names(str(tmp_path / "empty.txt"))


def check_store(root: str, put: object) -> None:
    """Files, folders, patterns and shards at addresses below ``root``; ``put(name, data)`` writes there."""
    assert callable(put)
    for name, data in {"p/0.png": content(0), "p/q/1.png": content(1), "p/.h.png": b"", "p/n.txt": b""}.items():
        put(name, data)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        header = tarfile.TarInfo("5.png")
        header.size = len(content(5))
        archive.addfile(header, io.BytesIO(content(5)))
    put("t/s.tar", stream.getvalue())
    assert find_at(f"{root}/p") == ([f"{root}/p/0.png", f"{root}/p/q/1.png"], [f"{root}/p/n.txt"])
    assert find_at(f"{root}/p/*.txt")[0] == [f"{root}/p/n.txt"]
    names, others = find_sources([f"{root}/p/", f"{root}/t/*.tar", f"{root}/p/0.png"])
    assert [*names, *others] == [f"{root}/p/0.png", f"{root}/p/q/1.png", f"{root}/t/s.tar", f"{root}/p/n.txt"]
    found = {source.name: opened(source) for source in open_images(names)}
    assert found == {
        f"{root}/p/0.png": content(0),
        f"{root}/p/q/1.png": content(1),
        f"{root}/t/s.tar/5.png": content(5),
    }
    for missing in ("no", "p/*.gif"):
        with pytest.raises(FileNotFoundError, match=f"{root}/.*: no image there"):
            find_at(f"{root}/{missing}")
    with pytest.raises(FileNotFoundError, match=f"{root}/p/9.png: no such file"):
        opened(next(open_images([f"{root}/p/9.png"])))


def test_addresses_of_memory_and_files(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="addresses need fsspec")
    check_store("memory:///fleet", lambda name, data: fsspec.filesystem("memory").pipe_file(f"/fleet/{name}", data))

    def put(name: str, data: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    check_store(f"file://{tmp_path}", put)
    with pytest.raises(ValueError, match="nowhere://x: Protocol not known"):
        find_at("nowhere://x")


@pytest.mark.thorough
def test_addresses_of_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    server = pytest.importorskip("moto.server", reason="moto, which serves the bucket, is not installed")
    fsspec = pytest.importorskip("fsspec")
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    served.start()
    try:
        host, port = served.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("photos")
        check_store("s3://photos", lambda name, data: fsspec.filesystem("s3").pipe_file(f"photos/{name}", data))
    finally:
        served.stop()
    fsspec.filesystem("s3").invalidate_cache()
    with pytest.raises(Unreachable, match="s3://photos/p/0.png: "):
        opened(next(open_images(["s3://photos/p/0.png"])))
