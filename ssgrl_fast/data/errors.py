"""What a broken file of a data set raises."""

from __future__ import annotations


class BrokenImage(ValueError):
    """An image file that cannot be decoded to RGB pixels; the message opens with the file's path."""


class BrokenAnnotation(ValueError):
    """An annotation file, or an entry of one, that does not say which labels an image has; the message opens with the
    file's path."""
