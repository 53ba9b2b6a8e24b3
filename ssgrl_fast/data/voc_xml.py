"""Reads one XML annotation in the Pascal VOC format: class name, "difficult" flag and box of each object.

``<annotation>`` holds ``<object>`` elements, each with a ``<name>`` and perhaps a ``<difficult>``. Also read: tags in
other letters (``<Object>``), a root ``<annotations>``, objects one level deeper in ``<objects>``, and any encoding that
the file declares. An object anywhere else, as within another, is an error, because it would be lost; the ``<part>`` of
an object has no label, and an object that LabelMe has marked ``<deleted>1</deleted>`` is left out.
"""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from ssgrl_fast._utils.text import decode_text, encoding_advice
from ssgrl_fast.data.boxes import ImageBoxes, ObjectBox, as_edges
from ssgrl_fast.data.errors import BrokenAnnotation

__all__ = ["read_annotation", "read_boxes", "read_objects"]

_ROOTS, _CONTAINER, _OBJECT = ("annotation", "annotations"), "objects", "object"
_PARTS = (_OBJECT, "bndbox", "robndbox", "polygon")  # what belongs to an object, and to nothing else
_ABOUT = ("owner", "source")  # whose <name> is no class
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?\sencoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_UTF8 = ("utf-8", "utf8", "utf_8", "us-ascii", "ascii")
_OTHER_UNITS = re.compile(r"(?i)utf[-_]?(?:7|16|32)")  # bytes that can be searched for a declaration are not these


def read_annotation(path: Path) -> dict[str, int]:
    """Read one XML file: class name -> 1 if a non-difficult object of it exists, 0 if all its objects are difficult.

    Raises:
        FileNotFoundError, BrokenAnnotation: see :func:`read_objects`.
    """
    present: dict[str, int] = {}
    for name, difficult in read_objects(path):
        present[name] = max(present.get(name, 0), int(not difficult))
    return present


def read_objects(path: Path) -> list[tuple[str, bool]]:
    """Read one XML file: the class name of every object, and whether it is difficult.

    Raises:
        FileNotFoundError: the file does not exist.
        BrokenAnnotation: malformed XML, text that is not in the declared encoding (without a declaration UTF-8),
            another root element, objects in a place where none are expected, an object without a name or with several,
            or a flag, difficult or deleted, other than 0 or 1.
    """
    return [(name, difficult) for name, difficult, _ in _named_objects(path)[1]]


def read_boxes(path: Path) -> ImageBoxes:
    """Read one XML file with the boxes of its objects: ``<bndbox>`` with xmin, ymin, xmax and ymax, the first and the
    last pixel of the object, counted from 1 (the devkit's convention); and the ``<size>``, if it is above 0.

    Raises:
        FileNotFoundError, BrokenAnnotation: see :func:`read_objects`; a box without four finite numbers.
    """
    root, named = _named_objects(path)
    objects = []
    for name, difficult, entry in named:
        edges = None
        if (box := _child(entry, "bndbox")) is not None:
            texts = [_text_of(_child(box, tag)) for tag in ("ymin", "xmin", "ymax", "xmax")]
            if (edges := as_edges(texts)) is None:
                raise BrokenAnnotation(f"{path}: <bndbox> of {name} must hold ymin, xmin, ymax, xmax, got {texts}")
            edges = (edges[0] - 1, edges[1] - 1, *edges[2:])
        objects.append(ObjectBox(name, int(not difficult), edges))
    stated = _child(root, "size")
    sides = [] if stated is None else [_text_of(_child(stated, tag)) for tag in ("height", "width")]
    known = bool(sides) and all(side.isdecimal() and int(side) for side in sides)
    return ImageBoxes((int(sides[0]), int(sides[1])) if known else None, objects)


def _named_objects(path: Path) -> tuple[ElementTree.Element, list[tuple[str, bool, ElementTree.Element]]]:
    """The root, and of every object its class name, whether it is difficult, and its element."""
    try:
        root = ElementTree.fromstring(_text(path).lstrip())
    except FileNotFoundError:
        raise
    except BrokenAnnotation:
        raise
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise BrokenAnnotation(f"{path}: not valid XML: {error}") from error
    if _tag(root) not in _ROOTS:
        raise BrokenAnnotation(f"{path}: the root element must be <annotation>, got <{root.tag}>")
    objects: list[tuple[str, bool, ElementTree.Element]] = []
    for number, entry in enumerate(_objects(root, path), start=1):
        name = _child_text(entry, "name", number, path)
        flags = {tag: _child_text(entry, tag, number, path) or "0" for tag in ("difficult", "deleted")}
        if not name:
            raise BrokenAnnotation(f"{path}: object {number} has no <name>")
        if any(_tag(inner) == _OBJECT for inner in entry.iter() if inner is not entry):
            raise BrokenAnnotation(
                f"{path}: object {number} ({name}) holds another <object>, whose label would be lost"
            )
        for tag, flag in flags.items():
            if flag not in ("0", "1"):
                raise BrokenAnnotation(f"{path}: <{tag}> of object {number} ({name}) must be 0 or 1, got {flag!r}")
        if flags["deleted"] == "0":
            objects.append((name, flags["difficult"] == "1", entry))
    return root, objects


def _text(path: Path) -> str:
    """The text of an XML file in the encoding that it declares."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    match = _DECLARED.match(content)
    encoding = "utf-8" if match is None else match[1].decode("ascii")
    if encoding.lower() in _UTF8:
        try:
            return decode_text(content, str(path))
        except ValueError as error:
            raise BrokenAnnotation(str(error)) from error
    if _OTHER_UNITS.fullmatch(encoding.partition("-le")[0].partition("-be")[0]):
        raise BrokenAnnotation(
            f"{path}: not valid XML: it declares the encoding {encoding}, but its bytes are in another; declare that"
        )
    try:
        return content.decode(encoding)
    except LookupError as error:
        raise BrokenAnnotation(
            f"{path}: not valid XML: it declares the encoding {encoding!r}, which Python does not know"
        ) from error
    except UnicodeDecodeError as error:
        advice = encoding_advice(content, error.start)
        raise BrokenAnnotation(f"{path}: not {encoding} text, the encoding that it declares{advice}") from error


def _objects(parent: ElementTree.Element, path: Path) -> Iterator[ElementTree.Element]:
    """The objects in an element and in its <objects>; names of a <part> inside an object are no classes.

    Raises:
        BrokenAnnotation: something of an object in another element.
    """
    for child in parent:
        tag = _tag(child)
        if tag == _OBJECT:
            yield child
        elif tag == _CONTAINER:
            yield from _objects(child, path)
        elif tag not in _ABOUT and (stray := _stray(child)) is not None:
            where = f"<{stray.tag}>" + ("" if stray is child else f" inside <{child.tag}>")
            raise BrokenAnnotation(
                f"{path}: {where} belongs to no object: objects are expected as <annotation><object>, or "
                "<annotation><objects><object>"
            )


def _stray(child: ElementTree.Element) -> ElementTree.Element | None:
    """A part of an object in an element that is none, or the name of something in it."""
    inside = list(child.iter())
    parts = (inner for inner in inside if _tag(inner) in _PARTS)
    return next(parts, next((inner for inner in inside[1:] if _tag(inner) in ("name", "label")), None))


def _child(parent: ElementTree.Element, tag: str) -> ElementTree.Element | None:
    return next((child for child in parent if _tag(child) == tag), None)


def _text_of(element: ElementTree.Element | None) -> str:
    return "" if element is None else (element.text or "").strip()


def _child_text(entry: ElementTree.Element, tag: str, number: int, path: Path) -> str:
    texts = {(child.text or "").strip() for child in entry if _tag(child) == tag}
    if len(texts) > 1:
        found = ", ".join(map(repr, sorted(texts)))
        raise BrokenAnnotation(f"{path}: object {number} has several <{tag}>: {found}")
    return texts.pop() if texts else ""


def _tag(element: ElementTree.Element) -> str:
    """The tag in lower case, without its name space."""
    return element.tag.rpartition("}")[2].lower()
