"""The drawn world: deterministic, readable back, balanced, and shaped as every other source."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from builders.errors import DataError
from builders.shapes import Shapes
from builders.sources import drawing
from builders.sources.drawing import (
    BACKGROUNDS,
    COLOURS,
    CONTEXTS,
    SHAPES,
    TEXTURES,
    Drawing,
    ShapesSource,
    caption_of,
    contrasts,
    draw,
    draw_array,
    parse_caption,
    sample_attributes,
)
from builders.variants import get_variant


def test_a_drawing_depends_on_its_arguments_only() -> None:
    first = sample_attributes(0, "train", 17)
    assert first == sample_attributes(0, "train", 17)
    assert np.array_equal(draw_array(first), draw_array(first))
    others = [sample_attributes(1, "train", 17), sample_attributes(0, "test", 17), sample_attributes(0, "train", 27)]
    assert len({first, *others}) == 4


def test_attributes_are_the_same_on_every_machine() -> None:
    text = "\n".join(repr(sample_attributes(0, "train", index)) for index in range(200))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d8266bf00c41618c"


def test_the_pixels_of_drawings_stay_as_they_are() -> None:
    """All shapes, colours and textures are among them; published sets and figures rest on these very pixels."""
    drawn = [sample_attributes(0, "train", index) for index in range(600)]
    for values in (
        {d.shape for d in drawn},
        {d.colour for d in drawn},
        {d.background for d in drawn},
        {d.texture for d in drawn},
    ):
        assert values in map(set, (SHAPES, COLOURS, BACKGROUNDS, TEXTURES))
    pixels = b"".join(draw_array(attributes).tobytes() for attributes in drawn)
    assert hashlib.sha256(pixels).hexdigest()[:16] == "b74f30d5f6ce16d8"


def test_every_caption_reads_back() -> None:
    for shape, colour, background, texture in product(SHAPES, COLOURS, BACKGROUNDS, TEXTURES):
        caption = caption_of(Drawing(shape, colour, background, texture, 0.7, 0, 0, 0, 0))
        expected = {"shape": shape, "colour": colour, "background": background, "texture": texture}
        assert parse_caption(caption) == expected
        assert parse_caption(f"a photo of {shape}, {caption}") == expected


def test_what_a_caption_does_not_say_is_none() -> None:
    nothing = {"shape": None, "colour": None, "background": None, "texture": None}
    assert parse_caption("") == nothing
    assert parse_caption("a photo of goldfish") == nothing
    assert parse_caption("a photo of star") == nothing | {"shape": "star"}
    assert parse_caption("a red thing on a blue background") == nothing | {"colour": "red", "background": "blue"}
    assert parse_caption("An Orange RING on a checked") == nothing | {
        "shape": "ring",
        "colour": "orange",
        "texture": "checks",
    }


def test_the_article_fits_the_colour() -> None:
    assert caption_of(Drawing("star", "orange", "black", "dots", 0.7, 0, 0, 0, 0)) == (
        "an orange star on a dotted black background"
    )


def test_every_shape_is_large_and_inside_the_frame() -> None:
    for index in range(400):
        mask = drawing._mask(sample_attributes(3, "train", index))
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.max() <= 0.6, index  # half a pixel of margin: an edge pixel may be half covered
        rows, columns = np.nonzero(mask.max(1) > 0.3)[0], np.nonzero(mask.max(0) > 0.3)[0]
        span = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        assert 15 <= span <= 32, (index, span)


def test_images_are_rgb_and_differ() -> None:
    images = [draw(sample_attributes(0, "train", index)) for index in range(50)]
    assert {(image.mode, image.size) for image in images} == {("RGB", (32, 32))}
    assert len({image.tobytes() for image in images}) == 50


def test_a_shape_is_always_visible() -> None:
    drawings = [sample_attributes(0, "train", index, world=world) for world in drawing.WORLDS for index in range(1000)]
    assert all(contrasts(one.colour, one.background) for one in drawings)
    # No colour is left with only a few backgrounds, or colour and background would tell of each other.
    assert all(sum(contrasts(colour, background) for background in BACKGROUNDS) >= 5 for colour in COLOURS)


def test_attributes_are_independent_of_the_class_unless_the_context_says_otherwise() -> None:
    count = 4000
    plain = [sample_attributes(0, "train", index) for index in range(count)]
    context = [sample_attributes(0, "train", index, world="shapes-context") for index in range(count)]

    def own_share(drawings: list[Drawing], name: str) -> float:
        return float(np.mean([getattr(one, name) == getattr(CONTEXTS[one.shape], name) for one in drawings]))

    for name, values in (("colour", 8), ("background", 8), ("texture", 5)):
        assert own_share(plain, name) == pytest.approx(1 / values, abs=0.04)
        assert own_share(context, name) == pytest.approx(0.75 + 0.25 / values, abs=0.04)
    assert set(Counter(one.shape for one in plain).values()) == {count // 10}
    assert {one.colour for one in plain} == set(COLOURS)
    assert {one.background for one in plain} == set(BACKGROUNDS)
    assert {one.texture for one in plain} == set(TEXTURES)


def test_unknown_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes-context"):
        sample_attributes(0, "train", 0, world="forms")


@pytest.mark.parametrize("variant", ["shapes", "shapes-context"])
def test_classes_are_the_variants_in_label_order(variant: str) -> None:
    assert tuple(info.name for info in get_variant(variant).classes) == SHAPES
    assert [info.index for info in ShapesSource(variant=variant).classes] == list(range(10))


def test_the_index_draws_nothing_and_the_rows_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ShapesSource(split="test", limit_per_class=3)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw", lambda _: pytest.fail("the index drew an image"))
        entries = list(source.index())
    assert len(entries) == len(source) == 30
    assert len({entry.source_id for entry in entries}) == 30
    assert entries[11].source_id == f"{source.classes[1].wnid}/test_000011.png"
    wanted = [entries[21], entries[4]]
    rows = list(source.read(wanted))
    assert [(row.source_id, row.wnid) for row in rows] == [(entry.source_id, entry.wnid) for entry in wanted]
    for row, index in zip(rows, (21, 4), strict=True):
        assert row.path == f"test_{index:06d}.png"
        pixels = np.asarray(Image.open(io.BytesIO(row.image)))
        assert np.array_equal(pixels, draw_array(sample_attributes(0, "test", index)))


def test_a_limit_keeps_the_first_of_each_class() -> None:
    everything = [entry.source_id for entry in ShapesSource().index()]
    assert len(everything) == 5000
    assert [entry.source_id for entry in ShapesSource(limit_per_class=2).index()] == everything[:20]
    assert len(ShapesSource(split="test", limit_per_class=10_000)) == 2000


def test_other_seeds_give_other_drawings_of_the_same_index() -> None:
    one, other = ShapesSource(limit_per_class=1), ShapesSource(limit_per_class=1, seed=1)
    assert list(one.index()) == list(other.index())
    assert one.drawing(0) != other.drawing(0)


def test_photographs_and_unknown_splits_are_refused() -> None:
    with pytest.raises(DataError, match="not a drawn one"):
        ShapesSource(variant="imagenette")
    with pytest.raises(DataError, match="no split 'validation'"):
        ShapesSource(split="validation")


def test_the_builder_prepares_what_the_source_draws(tmp_path: Path) -> None:
    builder = Shapes(config_name="shapes-context", cache_dir=str(tmp_path))
    builder.download_and_prepare()
    train, test = builder.as_dataset("train"), builder.as_dataset("test")
    assert (len(train), len(test)) == (5000, 2000)
    assert train.features["label"].names == list(SHAPES)
    assert Counter(test["label"]) == dict.fromkeys(range(10), 200)
    source = ShapesSource(variant="shapes-context", split="test")
    entries = [source.entry(index) for index in (0, 777, 1999)]
    raw = test.cast_column("image", datasets.Image(decode=False))
    for row, index in zip(source.read(entries), (0, 777, 1999), strict=True):
        found, one = raw[index], source.drawing(index)
        assert found["image"]["bytes"] == row.image
        assert (found["source_id"], found["wnid"]) == (row.source_id, row.wnid)
        assert found["class_name"] == found["shape"] == one.shape == SHAPES[found["label"]]
        assert found["caption_truth"] == caption_of(one)
        assert (found["colour"], found["background"], found["texture"]) == (one.colour, one.background, one.texture)
        assert found["rotation"] == pytest.approx(one.rotation, abs=1e-4)


def test_the_builder_streams_in_shards(tmp_path: Path) -> None:
    stream = Shapes(cache_dir=str(tmp_path)).as_streaming_dataset("test")
    assert stream.num_shards == 10
    first = next(iter(stream))
    assert first["source_id"] == ShapesSource(split="test").entry(0).source_id
    last = list(stream.shard(num_shards=10, index=9, contiguous=True))
    assert [row["source_id"][-10:] for row in (last[0], last[-1])] == ["001800.png", "001999.png"]


def test_each_configuration_has_its_own_version(tmp_path: Path) -> None:
    names = {config.name for config in Shapes.BUILDER_CONFIGS}
    assert names == {"shapes", "shapes-context"}
    for name in names:
        builder = Shapes(config_name=name, cache_dir=str(tmp_path))
        assert str(builder.config.version) == "1.0.0"
        assert name in builder.cache_dir
