"""The page holds what was measured, needs nothing from elsewhere, escapes everything, and fits on a phone."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import in_chromium, needs_chromium
from fakes import FakeCaptioner, FakeGenerator
from PIL import Image

from builders.runs import layout
from hfsyn.captions.caption_stage import caption
from hfsyn.errors import HfsynError
from hfsyn.images.generate_stage import generate
from hfsyn.judging.bench.cells import bench
from hfsyn.judging.bench.page import write_page
from hfsyn.judging.bench.plots import class_plot
from hfsyn.judging.measures.metrics import wilson
from hfsyn.outlook.informativeness import OWN, Gain, Informativeness
from hfsyn.recipes.recipe import load_recipe
from hfsyn.runs.finish import finish
from hfsyn.runs.prepare import prepare

NASTY = '<script>alert(1)</script> & $x$ "quoted"'


def train(config: Any, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    (out / "arm.json").write_text(json.dumps([config.data.train[0], config.seed, config.data.limit_per_class or 0]))
    return {}


def measured(model: Path, dataset: str, split: str | None) -> dict[str, Any]:
    """Accuracy from the arm's name, the seed and the limit; two classes, one of them with a nasty name."""
    arm, seed, limit = json.loads((model / "arm.json").read_text())
    hits = {"shapes": 80, "basic": 50}.get(arm.rpartition("/")[2].partition("-")[0], 65) + seed + limit
    rows = [
        {"wnid": "n1", "name": "<b>&$x$", "n": 100, "top1": wilson(hits, 100)},
        {"wnid": "n2", "name": "star", "n": 100, "top1": wilson(hits - 10, 100)},
    ]
    top5 = {"value": None, "low": None, "high": None, "note": "there are only 2 classes"}
    metrics = {"classes": 2, "top1": wilson(2 * hits - 10, 200), "top5": top5, "ece": wilson(5, 100), "per_class": rows}
    return {"n": 200, "metrics": {**metrics, "masked": None}, "software": {"torch": "9.9"}, "device": "1 x cpu"}


class NastyCaptioner(FakeCaptioner):
    def caption(self, images: Any) -> list[str]:
        return [NASTY for _ in images]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench over two runs with nasty captions, two limits and one failed arm, and its page."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("basic", "cip"):
        small = ["source.limit_per_class=2", "generate.batch_size=4"]
        run = prepare(load_recipe(f"shapes-{name}", small), folder / "runs" / f"{name}-0").folder
        caption(run, captioner=NastyCaptioner() if name == "cip" else None, quiet=True)
        generate(run, generator=FakeGenerator(size=28), quiet=True)
        finish(run)
        if name == "cip":
            gains = {OWN: Gain(-0.1234, 0.0056, 20)}
            told = Informativeness("cip", "builtin", "builtin", 20, 4, 0.4, gains, {}, {OWN: NASTY})
            (run / layout.INFORMATIVENESS).write_text(json.dumps(told.as_dict()), encoding="utf-8")
    matrix = {
        "name": "drawn",
        "arms": {
            "real": {"train": ["shapes"]},
            "basic": {"train": [str(folder / "runs" / "basic-{seed}")]},
            "cip": {"train": [str(folder / "runs" / "cip-{seed}")]},
            "gone": {"train": ["imagenette"]},
        },
        "models": ["test_resnet"],
        "seeds": [0, 1],
        "limits": [1, 2],
        "tests": {"real drawings": {"dataset": "shapes", "split": "test"}},
    }

    def fail(config: Any, out: Path) -> dict[str, Any]:
        if config.data.train[0] == "imagenette":
            raise HfsynError(f"No such set: {NASTY}")
        return train(config, out)

    bench(matrix, folder, train=fail, evaluate=measured, quiet=True)
    return write_page(folder)


class Elements(HTMLParser):
    """Every start tag with its attributes; complains about tags that do not match."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_says_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    elements = Elements(text).found
    assert "77.5" in text  # real, two images a class, mean of seeds 0 and 1
    assert "cip − basic" in text
    assert text.count("No such set") == 8  # in the list of failures, and in the table
    assert "shapes-cip" in text
    assert "guidance 2.5" in text
    assert "torch 9.9" in text
    assert {row["href"] for tag, row in elements if tag == "a"} >= {"runs/cip-0/recipe.yaml", "plots/drawn-limit.png"}
    assert [tag for tag, _ in elements].count("svg") == 3
    for name in ("accuracy", "classes", "limit"):
        with Image.open(page.parent / "plots" / f"drawn-{name}.png") as picture:
            assert picture.size[0] > 600


def test_the_verdict_comes_first_then_pictures_then_tables_and_words_are_explained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = [text.index(words) for words in ("<em>arm</em>", "“cip” is better than “basic”", "<svg", "<img", "<table")]
    assert places == sorted(places)
    assert "basic</strong>, synthetic images from the prompt “a photo of {c}”" in text
    assert "would get\n50.0&nbsp;%" in text
    assert "2 images per class" in text
    assert "the axis begins" not in text  # it begins at 0 here


def test_classes_are_in_the_order_of_their_gaps(tmp_path: Path) -> None:
    rows = {
        arm: [{"name": name, "top1": value} for name, value in zip("abc", values, strict=True)]
        for arm, values in {"one": (0.9, 0.9, 0.9), "two": (0.88, 0.6, 0.8)}.items()
    }
    svg = class_plot(rows, ["one", "two"], "photographs", tmp_path / "classes.png").svg
    assert re.findall(r">([abc])</text>", svg) == ["b", "c", "a"]
    assert "the axis begins at 50 %, not at 0" in svg


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for tag, attributes in Elements(text).found:
        assert tag not in ("script", "iframe", "object", "embed")
        if tag == "link":
            assert attributes["href"] == "data:,"
        for name in ("src", "xlink:href", "href"):
            value = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(text) < 2_000_000


def test_every_text_of_a_user_is_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    titles = [row.get("title") for tag, row in Elements(text).found if tag == "img"]
    assert any(NASTY in (title or "") for title in titles)
    assert "<b>" not in text
    plots = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "&lt;b&gt;&amp;$x$</text>" in plots  # as it is, not as a formula


def test_images_and_plots_have_a_text_in_place_of_them(page: Path) -> None:
    elements = Elements(page.read_text(encoding="utf-8")).found
    images = [row for tag, row in elements if tag == "img"]
    assert len(images) == 10 * 2 * 3  # classes, real images, and real with two arms
    assert all(row["alt"] and row["title"] and row["loading"] == "lazy" for row in images)
    for row in (row for tag, row in elements if tag == "svg"):
        assert row["role"] == "img"
        assert "%" in (row["aria-label"] or "")


def test_how_informative_the_prompts_were_stands_beside_the_accuracy(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.search(r"<strong>cip</strong>.*?told beforehand: −0\.1234 ± 0\.0056</span></li>", text, re.DOTALL)
    assert text.count("told beforehand:") == 1  # of the others nothing was measured
    assert "lower the generator’s denoising loss" in text


def test_plots_follow_the_pages_colours(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "currentColor" in svg
        assert "#000000" not in svg
        assert not re.search(r"<text(?![^>]*currentColor)", svg)
    assert "prefers-color-scheme: dark" in text


def test_the_same_bench_gives_the_same_page(page: Path) -> None:
    before = page.read_bytes()
    assert write_page(page.parent).read_bytes() == before


def test_a_folder_without_a_bench_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="no bench"):
        write_page(tmp_path)


def test_a_bench_whose_images_have_gone_still_has_its_numbers(page: Path, tmp_path: Path) -> None:
    for name in ("matrix.yaml", "cells"):
        place = page.parent / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    text = (tmp_path / "matrix.yaml").read_text().replace(str(page.parent), "/gone")
    (tmp_path / "matrix.yaml").write_text(text)
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "77.5" in text
    assert "<img" not in text


def test_benches_of_one_name_have_plots_of_their_own(page: Path, tmp_path: Path) -> None:
    for folder in ("one", "a b", "a-b"):
        shutil.copytree(page.parent / "cells", tmp_path / folder / "cells")
        text = (page.parent / "matrix.yaml").read_text()
        (tmp_path / folder / "matrix.yaml").write_text(text)
    matrix = yaml.safe_load((page.parent / "matrix.yaml").read_text())
    del matrix["arms"]["gone"]
    (tmp_path / "one" / "matrix.yaml").write_text(yaml.safe_dump(matrix, sort_keys=False))
    text = write_page(tmp_path).read_text(encoding="utf-8")
    plots = [row["href"] for tag, row in Elements(text).found if tag == "a" and str(row["href"]).endswith(".png")]
    assert len(set(plots)) == len(plots) == 9
    assert {"plots/one-accuracy.png", "plots/a-b-accuracy.png", "plots/a-b-2-accuracy.png"} <= set(plots)
    assert all((tmp_path / str(place)).is_file() for place in plots)
    assert text.count("Nothing is said about “gone”, which has no result.") == 2


@needs_chromium
def test_on_a_phone_the_page_does_not_scroll_sideways_and_no_cell_is_cut(page: Path, tmp_path: Path) -> None:
    found = in_chromium(
        page,
        tmp_path,
        "{page: d.documentElement.scrollWidth, seen: d.documentElement.clientWidth, tables: "
        "[...d.querySelectorAll('.scroll')].filter(x => x.scrollWidth > x.clientWidth).length, images: "
        "[...d.images].slice(0, 3).map(i => i.naturalWidth), small: "
        "[...d.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)}",
    )
    assert found["page"] <= found["seen"] <= 360
    assert found["tables"] == 0  # nothing is cut
    assert found["images"] == [32, 32, 28] or all(found["images"])
    assert all(250 < width <= 360 for width in found["small"])  # near its own size, so that its text can be read


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_text_and_plots_stand_out_in_light_and_in_dark(page: Path, tmp_path: Path, dark: bool) -> None:
    found = in_chromium(
        page,
        tmp_path,
        "{paper: getComputedStyle(d.body).backgroundColor, ink: getComputedStyle(d.body).color, "
        "plot: getComputedStyle(d.querySelector('svg text')).fill}",
        dark=dark,
    )

    def light(colour: str) -> float:
        return sum(int(number) for number in re.findall(r"\d+", colour)[:3]) / 3

    assert (light(found["paper"]) < 60) == dark
    assert abs(light(found["paper"]) - light(found["ink"])) > 150
    assert found["plot"] == found["ink"]
