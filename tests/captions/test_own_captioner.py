"""A captioner of the user's own: a class in a Python file."""

from __future__ import annotations

from pathlib import Path

import pytest

import hfsyn
from hfsyn.errors import HfsynError
from hfsyn.recipes.recipe import load_recipe, published_recipe
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import Run, load_run
from hfsyn.runs.stage import read_captions

PLAIN = """
class Sizes:
    def __init__(self, part, device):
        self.words = part.max_new_tokens

    def caption(self, images):
        return [f"  {image.width} wide,\\n {self.words} words" for image in images]
"""
DRAWING = """
class Drawing:
    def __init__(self, part, device):
        pass

    def caption(self, images):
        raise AssertionError

    def look(self, image, info):
        return info.name

    def ask(self, views, seeds):
        return lambda: [f"{view} {seed}" for view, seed in zip(views, seeds)]
"""


def prepared(tmp_path: Path, code: str, name: str, *changes: str, out: str = "run", limit: int = 1) -> Run:
    (tmp_path / "own.py").write_text(code)
    own = [f"caption.model={tmp_path / 'own.py'}:{name}", f"source.limit_per_class={limit}", *changes]
    return prepare(load_recipe("shapes-cip", own), tmp_path / out)


def captioned(tmp_path: Path, code: str, name: str, *changes: str, out: str = "run", limit: int = 1) -> list[str]:
    """What a class says of the first drawings."""
    hfsyn.caption(prepared(tmp_path, code, name, *changes, out=out, limit=limit), quiet=True)
    return [str(one.text) for one in read_captions(load_run(tmp_path / out).caption_shards())]


def test_a_class_of_the_users_captions_the_images_of_a_run(tmp_path: Path) -> None:
    texts = captioned(tmp_path, PLAIN, "Sizes", "caption.max_new_tokens=7")
    assert texts == ["32 wide, 7 words"] * 10


def test_one_that_looks_ahead_is_given_each_images_class_and_seed(tmp_path: Path) -> None:
    texts = captioned(tmp_path, DRAWING, "Drawing", "caption.temperature=0.7", limit=2)
    assert len(texts) == len({text.split()[1] for text in texts}) == 20
    assert len({text.split()[0] for text in texts}) == 10
    assert texts == captioned(tmp_path, DRAWING, "Drawing", "caption.temperature=0.7", out="again", limit=2)
    assert texts != captioned(tmp_path, DRAWING, "Drawing", "caption.temperature=0.7", "seed=5", out="other", limit=2)


def test_a_run_pins_the_file_and_refuses_another(tmp_path: Path) -> None:
    run = prepared(tmp_path, PLAIN, "Sizes")
    assert run.recipe.caption is not None
    assert str(run.recipe.caption.revision).startswith("sha256:")
    (tmp_path / "own.py").write_text(PLAIN + "\n")
    with pytest.raises(HfsynError, match=r"caption\.revision"):
        hfsyn.caption(run, quiet=True)


def test_its_path_is_not_published_and_a_published_one_is_not_run(tmp_path: Path) -> None:
    captioned(tmp_path, PLAIN, "Sizes")
    public = published_recipe(load_run(tmp_path / "run").recipe)
    assert public.caption is not None
    assert public.caption.model == "./own.py:Sizes"
    from hfsyn.recipes.recipe import _refuse_local

    fields = {"caption": {"model": public.caption.model}}
    with pytest.raises(HfsynError, match="runs no code of others"):
        _refuse_local(fields, "hf://datasets/alice/set", set())
    _refuse_local(fields, "hf://datasets/alice/set", {"caption.model"})


@pytest.mark.parametrize(
    ("code", "name", "change", "said"),
    [
        (PLAIN, "Other", "seed=0", "has no function 'Other'"),
        (PLAIN, "Sizes", "caption.temperature=1", "does not take"),
        (PLAIN.replace("return [", "return 3 or ["), "Sizes", "seed=0", "said 3 of"),
        (PLAIN.replace("self.words =", "self.words = 1 / 0 #"), "Sizes", "seed=0", "cannot be made: ZeroDivisionError"),
        (PLAIN.replace("def caption", "def tell"), "Sizes", "seed=0", "no method caption"),
        (PLAIN.replace("(self, part, device)", "(self)"), "Sizes", "seed=0", "two arguments"),
        ("import nothing_there", "Sizes", "seed=0", "cannot be imported"),
    ],
)
def test_what_is_not_a_captioner_is_refused_in_one_line(
    code: str, name: str, change: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(HfsynError, match=said) as refused:
        captioned(tmp_path, code, name, change)
    assert "\n" not in refused.value.message


def test_a_file_that_is_gone_or_names_no_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HfsynError, match="There is no file"):
        prepare(load_recipe("shapes-cip", [f"caption.model={tmp_path}/gone.py:Sizes"]), tmp_path / "run")
    with pytest.raises(HfsynError, match="names no class"):
        prepare(load_recipe("shapes-cip", ["caption.model=own.py"]), tmp_path / "run")
