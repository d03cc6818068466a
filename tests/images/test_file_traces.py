"""Whether real and synthetic images can be told apart by how they are stored, the pictures themselves put aside.

Both sets show the same kind of picture (noise with the spectrum of photographs), so that whatever a classifier finds is
the storage. It sees what a file says of itself: markers, tables, subsampling, sizes, and the traces that an earlier
JPEG file leaves in the pixels. It must be at chance on what `export_real` writes beside a run, and must not be where
one of the two is stored otherwise: that shows that it would have found something.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image, JpegImagePlugin

from hfsyn.captions.caption_stage import caption
from hfsyn.errors import HfsynError
from hfsyn.exporting import export_real
from hfsyn.images.encoding import encode, fitted
from hfsyn.images.generate_stage import generate
from hfsyn.recipes.recipe import StorePart, load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare

SIDE = 64
COUNT = 160
FOLDS = 5
Vector = npt.NDArray[np.float64]


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Coloured noise whose power falls with the frequency, as that of photographs does; never stored before."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    shape = 1 / np.maximum(frequency, 1 / max(width, height)) ** rng.uniform(1.0, 1.4)
    luma = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * shape, (height, width))
    tint = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * shape**1.3, (height, width))
    luma, tint = (x / x.std() for x in (luma, tint))
    channels = [110 + 45 * luma + weight * tint for weight in rng.uniform(-20, 20, 3)]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def as_imagenet_stores_it(image: Image.Image, seed: int) -> bytes:
    """High quality, but not the same for all; a comment, sometimes progressive."""
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    image.save(
        out,
        "JPEG",
        quality=int(rng.integers(94, 99)),
        subsampling="4:4:4",
        comment=b"a camera",
        progressive=bool(rng.integers(2)),
    )
    return out.getvalue()


def as_a_telephone_stores_it(image: Image.Image) -> Image.Image:
    """Low quality and chroma at half size, read again."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75, subsampling="4:2:0")
    return Image.open(out).convert("RGB")


def sizes(seed: int) -> tuple[int, int]:
    """Width and height of an original: mostly larger than the synthetic images, now and then the same."""
    rng = np.random.default_rng(seed)
    return (SIDE, SIDE) if rng.random() < 0.25 else (int(rng.integers(80, 140)), int(rng.integers(80, 140)))


class Painter(FakeGenerator):
    """Draws pictures like the real ones, at the size of synthetic images."""

    def draw(self, prompt: str, seed: int) -> npt.NDArray[np.uint8]:
        number = seed % 10**6 + 10**6
        return np.asarray(fitted(picture(number, *sizes(number)), SIDE, SIDE))


# --- what a file says of itself --------------------------------------------------------------------------------------


def features(data: bytes) -> Vector:
    """Everything but the picture."""
    image = Image.open(io.BytesIO(data))
    header = data[: data.index(b"\xff\xda")]
    tables = image.quantization if isinstance(image, JpegImagePlugin.JpegImageFile) else {}
    luma = np.asarray(image.convert("L"), dtype=np.float64)
    activity = np.abs(np.diff(luma)).mean() + np.abs(np.diff(luma, axis=0)).mean()
    found = [
        *(tables[0][i] for i in (0, 1, 9, 63)),
        sum(tables[0]),
        sum(tables.get(1, [0])),
        len(tables),
        JpegImagePlugin.get_sampling(image),
        "progressive" in image.info,
        "comment" in image.info,
        len(header),
        header.count(b"\xff\xe1"),
        *image.size,
        len(data),
        len(data) / activity / luma.size,
        *blockiness(luma),
        *periodicity(luma),
    ]
    return np.array(found, dtype=np.float64)


def blockiness(luma: Vector) -> list[float]:
    """How much larger steps are at each of the eight places within a block than on the mean: an earlier grid shows."""
    steps = np.abs(np.diff(luma, axis=1)).mean(0)
    by_place = np.array([steps[place::8].mean() for place in range(8)])
    return list(by_place / by_place.mean())


def periodicity(luma: Vector) -> list[float]:
    """Whether DCT coefficients gather at multiples of a step, as those do that were rounded before."""
    n = np.arange(8)
    basis = np.cos(np.pi * (2 * n[None, :] + 1) * n[:, None] / 16) / 2
    basis[0] /= np.sqrt(2)
    height, width = (x // 8 * 8 for x in luma.shape)
    blocks = (luma[:height, :width] - 128).reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
    coefficients = basis @ blocks @ basis.T
    found = []
    for row, column in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2)):
        values = coefficients[..., row, column].ravel()
        values = values[np.abs(values) > 1]  # zeros are multiples of everything
        steps = range(2, 13)
        found.append(max(abs(np.exp(2j * np.pi * values / step).mean()) for step in steps) if len(values) else 0.0)
    return found


def accuracy(real: Sequence[bytes], synthetic: Sequence[bytes]) -> float:
    """Of a logistic regression on the features, each file judged by one that has not seen it."""
    x = np.array([features(data) for data in (*real, *synthetic)])
    y = np.repeat([0.0, 1.0], [len(real), len(synthetic)])
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    right = 0
    for fold in range(FOLDS):
        test = np.arange(len(y)) % FOLDS == fold
        mean, std = x[~test].mean(0), x[~test].std(0)
        scaled = np.c_[(x - mean) / np.where(std > 1e-9, std, 1), np.ones(len(x))]
        weights = np.zeros(scaled.shape[1])
        for _ in range(30):  # Newton's steps, with a ridge
            p = 1 / (1 + np.exp(-scaled[~test] @ weights))
            gradient = scaled[~test].T @ (p - y[~test]) + weights
            hessian = (scaled[~test].T * (p * (1 - p))) @ scaled[~test] + np.eye(len(weights))
            weights -= np.linalg.solve(hessian, gradient)
        right += int(((scaled[test] @ weights > 0) == (y[test] > 0.5)).sum())
    return right / len(y)


CHANCE = 0.5 + 2.58 * np.sqrt(0.25 / (2 * COUNT))
"""What one of a hundred guessers exceeds."""


# --- the pair --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over a folder of photographs, whose generator paints pictures of the same kind."""
    folder = tmp_path_factory.mktemp("traces")
    for number in range(COUNT):
        path = folder / "photos" / ("n01440764" if number % 2 else "n02102040") / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_imagenet_stores_it(picture(number, *sizes(number)), number))
    settings = [
        "source.variant=imagenette",
        f"source.path={folder / 'photos'}",
        "store.format=jpeg",
        "store.shard_rows=60",
        "store.mark=false",  # a mark tells them apart, and is meant to; it leaves the pixels alone
    ]
    found = prepare(load_recipe("shapes-cip", settings), folder / "run")
    caption(found, captioner=FakeCaptioner(), quiet=True)
    generate(found, generator=Painter(), quiet=True)
    return finish(found).folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    return export_real(run, run.parent / "real", quiet=True)


def stored(folder: Path) -> list[bytes]:
    return [
        row["image"]["bytes"]
        for path in sorted((folder / "data").glob("*.parquet"))
        for row in pq.read_table(path, columns=["image"]).to_pylist()
    ]


def originals(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run.parent / "photos").rglob("*.JPEG"))]


def test_files_do_not_tell_real_from_synthetic(run: Path, exported: Path) -> None:
    real, synthetic = stored(exported), stored(run)
    assert len(real) == len(synthetic) == COUNT
    assert accuracy(real, synthetic) <= CHANCE


def restored(run: Path, store: Callable[[Image.Image], bytes]) -> list[bytes]:
    return [store(Image.open(io.BytesIO(data)).convert("RGB")) for data in originals(run)]


STORE = StorePart(format="jpeg")
OTHERWISE: dict[str, Callable[[Image.Image], bytes]] = {
    "another quality": lambda image: encode(fitted(image, SIDE, SIDE), StorePart(format="jpeg", quality=90)),
    "another subsampling": lambda image: encode(
        fitted(image, SIDE, SIDE), StorePart(format="jpeg", subsampling="4:2:0")
    ),
    "another size": lambda image: encode(fitted(image, SIDE + 8, SIDE), STORE),
}


def test_nothing_of_the_file_that_an_image_was_read_from_goes_into_the_new_one() -> None:
    out = io.BytesIO()
    picture(1, SIDE, SIDE).save(out, "JPEG", comment=b"a camera", icc_profile=b"colours", exif=b"Exif\x00\x00where")
    read = Image.open(io.BytesIO(out.getvalue()))
    assert encode(read, STORE) == encode(np.asarray(read), STORE)


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_pair_that_is_stored_otherwise_is_found_out(run: Path, how: str) -> None:
    assert accuracy(restored(run, OTHERWISE[how]), stored(run)) >= 0.99


def test_files_as_they_lie_in_a_folder_are_found_out(run: Path) -> None:
    assert accuracy(originals(run), stored(run)) >= 0.99


def test_traces_of_a_bad_earlier_file_are_found_out_unless_the_image_is_made_much_smaller() -> None:
    """Same size, same encoder: only traces in the pixels are left. What `export_real` says of its limits."""

    def pair(first: int, last: int, *, resampled: bool) -> float:
        extents = np.random.default_rng(0).integers(first, last, (2 * COUNT, 2))
        fresh = [picture(n, *map(int, extent)) for n, extent in enumerate(extents)]
        real = [as_a_telephone_stores_it(image) for image in fresh[:COUNT]]
        made = [fitted(x, SIDE, SIDE) if resampled else x for x in (*real, *fresh[COUNT:])]
        files = [encode(image, STORE) for image in made]
        return accuracy(files[:COUNT], files[COUNT:])

    assert pair(SIDE, SIDE + 1, resampled=False) >= 0.9
    assert pair(SIDE, SIDE + 1, resampled=True) >= 0.65
    assert pair(int(2.4 * SIDE), 4 * SIDE, resampled=True) <= CHANCE


# --- export_real itself ----------------------------------------------------------------------------------------------


def test_an_export_has_the_rows_and_columns_of_the_run(run: Path, exported: Path) -> None:
    real, synthetic = (load_dataset(str(folder), split="train") for folder in (exported, run))
    assert real.features == synthetic.features
    assert {row["source_id"]: (row["wnid"], row["label"], row["caption"]) for row in real} == {
        row["source_id"]: (row["wnid"], row["label"], row["caption"]) for row in synthetic
    }
    assert {image.size for image in real["image"]} == {image.size for image in synthetic["image"]} == {(SIDE, SIDE)}
    assert set(real["prompt"]) == set(real["seed"]) == {None}
    assert json.loads((exported / "export.json").read_text())["width"] == SIDE


def test_an_export_that_was_stopped_continues_and_another_is_refused(run: Path, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    export_real(run, copy, quiet=True)
    whole = {path.name: path.read_bytes() for path in (copy / "data").iterdir()}
    assert whole == {path.name: path.read_bytes() for path in (exported / "data").iterdir()}
    (copy / "export.json").rename(copy / ".export.json")  # as it is called until the end
    (copy / "data" / sorted(whole)[1]).unlink()
    export_real(run, copy, quiet=True)
    assert {path.name: path.read_bytes() for path in (copy / "data").iterdir()} == whole

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(HfsynError, match="holds files that do not belong to an export"):
        export_real(run, tmp_path / "full", quiet=True)
    (copy / "export.json").write_text("{}")
    with pytest.raises(HfsynError, match="the export of another run"):
        export_real(run, copy, quiet=True)


def test_a_source_that_has_changed_and_a_run_without_images_are_refused(run: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text())
    image = tmp_path / "photos" / "n01440764" / "a.JPEG"
    image.parent.mkdir(parents=True)
    image.write_bytes(originals(run)[0])
    fields["source"]["path"] = str(tmp_path / "photos")
    other = prepare(load_recipe(fields), tmp_path / "run")
    caption(other, captioner=FakeCaptioner(), quiet=True)
    with pytest.raises(HfsynError, match="has no finished shard of images"):
        export_real(other, tmp_path / "real", quiet=True)
    assert not (tmp_path / "real").exists()
    generate(other, generator=Painter(), quiet=True)
    image.write_bytes(originals(run)[1])
    with pytest.raises(HfsynError, match="is not the image that was captioned"):
        export_real(other, tmp_path / "real", quiet=True)


def test_a_real_image_is_taken_from_its_middle_and_always_resampled() -> None:
    wide = Image.new("RGB", (300, 100))
    wide.paste((255, 0, 0), (90, 0, 210, 100))
    assert np.unique(np.asarray(fitted(wide, 50, 50)).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]
    same = picture(1, SIDE, SIDE)
    assert np.abs(np.asarray(fitted(same, SIDE, SIDE)).astype(int) - np.asarray(same)).max() > 5
