"""Class names and word vectors as users have them: byte-order marks, line endings, other kinds of files, names whose
words stand apart in other ways."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ssgrl_fast.cli import main
from ssgrl_fast.labels import words
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.training.network import words_and_graph
from ssgrl_fast.training.options import TaskOptions

# ---- lists of names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_marks_and_line_endings(tmp_path: Path, mark: str, ending: str) -> None:
    names = ["cat", "vélo", "猫", "hot dog (food)", "yes", "line\u2028inside"]
    path = tmp_path / "classes.txt"
    path.write_bytes((mark + ending.join(names) + ending).encode())
    assert read_class_names(path) == names
    (tmp_path / "classes.json").write_bytes((mark + '["cat",' + ending + '"vélo"]').encode())
    assert read_class_names(tmp_path / "classes.json") == ["cat", "vélo"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\nvélo\n".encode("cp1252"), r"line 2: not UTF-8 text; it may read .*'vélo' \(cp1252\)"),
        ("кот\n".encode("cp1251"), r"line 1: not UTF-8 text; it may read .*'кот' \(cp1251\)"),
        ("cat\n".encode("utf-16"), "UTF-16: convert it with iconv"),
        (b"PK\x03\x04", "a zip archive"),
        (b"<!doctype html>", "a web page"),
        (b"cat\0dog", "a binary file"),
    ],
)
def test_other_encodings_and_files_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("classes.txt", "classes.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            read_class_names(tmp_path / name)


# ---- text files of vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["cat\t1\t2\ndog\t3\t4\n", "cat\t1 2\ndog\t3 4\n", "\ufeffcat 1 2\r\ndog 3 4\r\n", "\ufeff2 2\ncat 1 2\ndog 3 4\n"],
)
def test_tabs_and_marks(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.txt").write_bytes(text.encode())
    assert words.load(tmp_path / "v.txt", ["cat", "dog"]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00cat", "a gzip archive: unpack it with gunzip"),
        (b"PK\x03\x04cat", "a zip archive"),
        (b"\x80\x04\x95cat", "a pickle of Python objects"),
        (b"\x93NUMPYcat", "a NumPy array: give it the extension .npy"),
        (b"3 4\ncat \x00\x00\x80\x3f", r"word2vec's binary form: save it as text"),
        (b"<html >", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\xff\xfec\0", "UTF-16 text"),
        (b"cat,1,2\n", "line 1: expected a word and its numbers with blanks or tabs between, .*got 'cat,1,2'"),
        (b"cat 1 \x1b[31m" + b"x" * 600 + b"\n", r"line 1: could not convert string to float: '\\x1b\[31mx{35}…'"),
    ],
)
def test_files_that_are_no_vectors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        words.load(path, ["cat"])
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and len(text) < 300 + len(str(path))


# ---- names whose words stand apart in other ways -----------------------------------------------------------------

VOCABULARY = "hot dog food traffic light person hand 's building edifice bow decorative ribbons t-shirt & rock roll"


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("hot dog (food)", "hot dog food"),
        ("hot-dog", "hot dog"),
        ("trafficLight", "traffic light"),
        ("Traffic_Light", "traffic light"),
        ("person's hand", "person 's hand"),
        ("building, edifice", "building edifice"),
        ("bow_(decorative_ribbons)", "bow decorative ribbons"),
        ("T-shirt", "t-shirt"),
        ("rock & roll", "rock & roll"),
        ("'building'", "building"),
        ("food/hand;light.", "food hand light"),
    ],
)
def test_names_are_parted(tmp_path: Path, name: str, used: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text("".join(f"{word} {index} 1\n" for index, word in enumerate(VOCABULARY.split())))
    assert words.lookup(path, [name]).used == [tuple(used.split())]


def test_a_possessive_without_its_own_vector_is_the_word(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("person 1 2\nhand 3 4\n")
    assert words.lookup(tmp_path / "v.txt", ["person's hand"]).used == [("person", "hand")]


def test_what_is_proposed_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The option in the message, with words in the place of A and B, is taken by the verb and by the task's options."""
    path = tmp_path / "v.txt"
    path.write_text("tuk 1 2\nvehicle 3 4\n")
    with pytest.raises(ValueError, match="no vector") as caught:
        words.load(path, ["o'rick=shaw"])
    typed = shlex.split(str(caught.value))
    option = next(word for word in typed if word.startswith("--compound=")).replace("A+B", "tuk+vehicle")
    assert main(["words", str(path), "--names", "o'rick=shaw", option]) == 0
    assert "tuk + vehicle" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--compound=-tuk=o=A"):  # one argument, though it begins with a dash
        words.load(path, ["-tuk=o"], compounds={})
    text = typed[typed.index("--model.compounds") + 1]
    assert text == '{"o\'rick=shaw": ["A", "B"]}'
    options = TaskOptions(words=str(path), compounds={"o'rick=shaw": ["tuk", "vehicle"], "hot dog (food)": ["vehicle"]})
    data = type("Data", (), {"class_names": ["o'rick=shaw", "hot dog (food)"], "train_labels": [[1, 1], [1, 0]]})
    vectors = words_and_graph(options, data()).vectors
    assert vectors is not None and vectors.tolist() == [[2, 3], [3, 4]]  # a whole name may be spelled as well
