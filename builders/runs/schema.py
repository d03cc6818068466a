"""The columns of source, captioned and synthetic rows, as `datasets.Features`.

`names` are class names in label order, so that a label is shown by name wherever the rows are opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets import ClassLabel, Features, Image, List, Value


def source_features(names: Sequence[str]) -> Features:
    """Columns of a real image: the image as stored, and what it is of."""
    return Features(
        {
            "image": Image(),
            "label": ClassLabel(names=list(names)),
            "wnid": Value("string"),
            "class_name": Value("string"),
            "source_id": Value("string"),
        }
    )


def captioned_features(names: Sequence[str]) -> Features:
    """Columns of a captioned image. The image itself stays in its source and is found there by `source_id`.

    `caption` is null where there is none; `source_sha256` is of the image's bytes as stored; `width` and `height` are
    pixels after decoding (rotated as its EXIF says).
    """
    return Features(
        {
            "source_id": Value("string"),
            "wnid": Value("string"),
            "label": ClassLabel(names=list(names)),
            "class_name": Value("string"),
            "caption": Value("string"),
            "caption_flags": List(Value("string")),
            "source_sha256": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
        }
    )


def synthetic_features(names: Sequence[str]) -> Features:
    """Columns of a synthetic image, as published.

    `caption` is null where the recipe has none; `prompt_tokens` counts the text encoder's tokens before any cut and
    `truncated` says that some were cut; `safety` says that a safety checker flagged an attempt; `retries` counts the
    attempts that were thrown away before this one.
    """
    return Features(
        {
            "image": Image(),
            "label": ClassLabel(names=list(names)),
            "wnid": Value("string"),
            "class_name": Value("string"),
            "prompt": Value("string"),
            "caption": Value("string"),
            "seed": Value("int64"),
            "sample_id": Value("string"),
            "source_id": Value("string"),
            "prompt_tokens": Value("int32"),
            "truncated": Value("bool"),
            "safety": Value("bool"),
            "retries": Value("int32"),
            "caption_flags": List(Value("string")),
        }
    )
