"""The columns of source, captioned and synthetic rows, as `datasets.Features`.

`names` are class names in label order.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets import ClassLabel, Features, Image, List, Value


def source_features(names: Sequence[str]) -> Features:
    """Columns of a real image: the stored image and its class."""
    texts = {name: Value("string") for name in ("wnid", "class_name", "source_id")}
    return Features({"image": Image(), "label": ClassLabel(names=list(names)), **texts})


def captioned_features(names: Sequence[str]) -> Features:
    """Columns of a captioned image; the image itself stays in its source.

    `caption` is null if there is none; `source_sha256` is of the stored bytes; `width` and `height` are in pixels after
    decoding, with EXIF rotation.
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


def synthetic_features(names: Sequence[str], *, paired: bool = False) -> Features:
    """Columns of a synthetic image, as published.

    `caption` is null if the recipe has none; if images got the captions of others (`paired`), it is the caption as it
    was put into the prompt, and `caption_source_id` is the real image that it describes; `prompt_tokens` is the number
    of the text encoder's tokens before truncation; `safety` is whether a safety checker flagged an attempt; `retries`
    is the number of discarded attempts.
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
            **({"caption_source_id": Value("string")} if paired else {}),
        }
    )
