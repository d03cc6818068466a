"""Strategies in a file of the user's: what is checked, what is pinned, and whose code is never run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import finished_run, run_folder

from builders.variants import get_variant
from hfsyn.checks.verify import verify
from hfsyn.errors import HfsynError
from hfsyn.outlook.forecast import forecast
from hfsyn.recipes.parts import strategy_of
from hfsyn.recipes.recipe import Recipe, dump_recipe, fingerprint, load_recipe, published_recipe
from hfsyn.runs.pins import pin_prompt
from hfsyn.runs.prepare import prepare
from hfsyn.runs.run import load_run
from hfsyn.runs.stage import write_plan

GOOD = '''
import random

def looks(c, caption, rng):
    """A strategy."""
    return f"{c.name} in {rng.choice(['rain', 'snow', 'fog'])}, {caption}"

def other(c, caption, rng):
    return c.name
'''


def strategy_file(tmp_path: Path, text: str = GOOD, name: str = "mine.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def recipe_with(path: Path, function: str = "looks", *more: str) -> Recipe:
    return load_recipe("shapes-cip", [f"prompt.strategy={path}:{function}", *more])


def refusal(path: Path, function: str = "looks", *more: str) -> HfsynError:
    with pytest.raises(HfsynError) as caught:
        pin_prompt(recipe_with(path, function, *more))
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_run_has_the_prompts_that_the_function_writes(tmp_path: Path) -> None:
    path = strategy_file(tmp_path)
    run = load_run(finished_run(tmp_path, f"prompt.strategy={path}:looks"))
    rows = pq.read_table(run.folder / "plan.parquet").to_pylist()
    weather = {"rain", "snow", "fog"}
    assert len(rows) == 30
    for row in rows:
        head, _, rest = row["prompt"].partition(", ")
        name, _, word = head.rpartition(" in ")
        assert (name, rest) == (row["class_name"], row["caption"])
        assert word in weather
    assert {row["prompt"].split(",")[0].split()[-1] for row in rows} == weather
    assert (run.folder / "strategy.txt").read_text() == GOOD
    assert run.recipe.prompt.strategy == f"{path}:looks"
    assert run.recipe.prompt.strategy_sha256


def test_where_the_file_lies_is_no_part_of_the_name_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    here, there = strategy_file(tmp_path), strategy_file(tmp_path / "a", name="renamed.py")
    one, two = pin_prompt(recipe_with(here)), pin_prompt(recipe_with(there))
    assert fingerprint(one) == fingerprint(two) == fingerprint(published_recipe(one))
    assert str(tmp_path) not in dump_recipe(published_recipe(one))
    assert fingerprint(pin_prompt(recipe_with(here, "other"))) != fingerprint(one)
    here.write_text(GOOD + "\n# changed\n")
    assert fingerprint(pin_prompt(recipe_with(here))) != fingerprint(one)


def test_no_picture_of_the_run_says_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfsyn.runs import sheets

    said: list[str] = []

    draw = sheets.contact_sheet

    def seen(title: str, headings: list[str], *rest: Any) -> Any:
        said.extend([title, *headings])
        return draw(title, headings, *rest)

    monkeypatch.setattr(sheets, "contact_sheet", seen)
    path = strategy_file(tmp_path)
    run = finished_run(tmp_path, f"prompt.strategy={path}:looks")
    sheets.compare_runs([load_run(run)], title="one")
    assert any("./mine.py:looks" in text for text in said)
    assert not any(str(tmp_path) in text for text in said)


def test_a_changed_file_is_refused_where_a_run_goes_on(tmp_path: Path) -> None:
    path = strategy_file(tmp_path)
    folder = run_folder(tmp_path, f"prompt.strategy={path}:looks")
    small = ("source.limit_per_class=3", "store.shard_rows=8", "generate.batch_size=4")
    assert prepare(recipe_with(path, "looks", *small), folder).folder == folder
    path.write_text(GOOD.replace("rain", "hail"))
    with pytest.raises(HfsynError, match=r"prompt\.strategy_sha256 is '[0-9a-f]{64}' there"):
        prepare(recipe_with(path, "looks", *small), folder)
    with pytest.raises(HfsynError, match="is not the file that the recipe means"):
        strategy_of(load_run(folder).recipe.prompt)


def test_the_plan_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = forecast(load_recipe("shapes-cip", ["prompt.strategy=mine.py:looks", "source.limit_per_class=1"]))
    assert found.captions == "not made yet"
    assert found.first_prompts[0].endswith(", <caption>")


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        (GOOD, "nothing", "has no function 'nothing'. It has: looks, other"),
        ("looks = 3", "looks", "has no function 'looks'. It has no function"),
        ("def looks(c):\n    return c.name", "looks", "cannot be called with three arguments"),
        ("def looks(c, *, caption, rng):\n    return c.name", "looks", "cannot be called with three arguments"),
        ("def looks(:", "looks", "cannot be imported: SyntaxError"),
        ("import no_such_module", "looks", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "looks", "cannot be imported: SystemExit"),
        ("def looks(c, caption, rng):\n    return None", "looks", "mine.py:looks returned None for the class"),
        ("def looks(c, caption, rng):\n    return b'x'", "looks", "mine.py:looks returned b'x' for the class"),
        ("def looks(c, caption, rng):\n    return ' '", "looks", "mine.py:looks returned ' ' for the class"),
        ("def looks(c, caption, rng):\n    return caption", "looks", "returned '' for the class 'circle' and the"),
        ("def looks(c, caption, rng):\n    return c.nam", "looks", "mine.py:looks fails for the class"),
        ("def looks(c, caption, rng):\n    exit('enough')", "looks", "SystemExit: enough"),
        ("def looks(c, caption, rng):\n    return 'a \\ud83d'", "looks", "returned half of a character, '\\ud83d'"),
        (
            "import itertools\nn = itertools.count()\ndef looks(c, caption, rng):\n    return f'{c.name} {next(n)}'",
            "looks",
            "mine.py:looks is not pure",
        ),
        ("import random\ndef looks(c, caption, rng):\n    return str(random.random())", "looks", "is not pure"),
    ],
)
def test_a_function_that_is_no_strategy_is_refused(tmp_path: Path, text: str, function: str, words: str) -> None:
    problem = refusal(strategy_file(tmp_path, text), function)
    assert words in str(problem)


def test_ctrl_c_in_a_function_is_no_fault_of_it(tmp_path: Path) -> None:
    path = strategy_file(tmp_path, "def looks(c, caption, rng):\n    raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        pin_prompt(recipe_with(path))


def test_every_class_of_the_variant_is_tried(tmp_path: Path) -> None:
    last = get_variant("shapes").classes[-1].name
    path = strategy_file(tmp_path, f"def looks(c, caption, rng):\n    return '' if c.name == {last!r} else c.name")
    assert f"returned '' for the class {last!r}" in str(refusal(path))


def test_without_captions_the_function_is_given_none(tmp_path: Path) -> None:
    path = strategy_file(tmp_path, "def looks(c, caption, rng):\n    assert caption is None\n    return c.name")
    assert pin_prompt(recipe_with(path, "looks", "caption=null")).prompt.strategy_sha256
    assert "fails for the class 'circle'" in str(refusal(path))


@pytest.mark.parametrize("name", ["mine.py", "mine.py:", "no.txt:looks", "nowhere/mine.py:looks", "mine.py:not a name"])
def test_what_names_no_function_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HfsynError) as caught:
        pin_prompt(load_recipe("shapes-cip", [f"prompt.strategy={name}"]))
    assert "path/to/file.py:function" in str(caught.value)


def test_a_fault_that_a_caption_brings_is_told_in_one_line(tmp_path: Path) -> None:
    """It shows only when the captions are there: nothing is half-written then."""
    path = strategy_file(
        tmp_path, "def looks(c, caption, rng):\n    return c.name if 'mean' not in caption else caption[999]"
    )
    text = "def looks(c, caption, rng):\n    return c.name if 'mean' not in (caption or '') else caption[999]"
    path.write_text(text)
    with pytest.raises(HfsynError, match=r"mine\.py:looks fails for the class .* IndexError"):
        finished_run(tmp_path, f"prompt.strategy={path}:looks")
    assert not (tmp_path / "run" / "plan.parquet").exists()


# --- whose code is run ------------------------------------------------------------------------------------------------


def bomb(tmp_path: Path) -> tuple[str, Path]:
    """A file that leaves a trace where it is run."""
    trace = tmp_path / "it-ran"
    return f"open({str(trace)!r}, 'w')\n" + GOOD, trace


def test_nothing_of_a_run_folder_is_run(tmp_path: Path) -> None:
    text, trace = bomb(tmp_path)
    folder = finished_run(tmp_path, recipe="shapes-basic")
    (folder / "plan.parquet").unlink()
    (folder / "plan.json").unlink()
    (folder / "strategy.py").write_text(text)
    recipe = load_run(folder).recipe
    for name in (f"{folder}/strategy.py", "strategy.py", "./run/strategy.py"):
        prompt = recipe.prompt.model_copy(update={"strategy": f"{name}:looks"})
        theirs = recipe.model_copy(update={"prompt": prompt})
        (folder / "recipe.yaml").write_text(dump_recipe(theirs))
        marker = json.loads((folder / "source.json").read_text()) | {"fingerprint": fingerprint(theirs)}
        (folder / "source.json").write_text(json.dumps(marker))
        verify(str(folder), quiet=True)
        with pytest.raises(HfsynError, match="hfsyn runs no code that comes with a dataset"):
            write_plan(load_run(folder))
    assert not trace.exists()


def test_nothing_of_the_cache_of_the_hub_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    text, trace = bomb(tmp_path)
    folder = tmp_path / "cache" / "datasets--x--y" / "snapshots"
    folder.mkdir(parents=True)
    assert "lies in the cache of the Hub" in str(refusal(strategy_file(folder, text)))
    assert not trace.exists()


def test_a_published_recipe_with_such_a_function_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    path = strategy_file(tmp_path)
    folder = finished_run(tmp_path, f"prompt.strategy={path}:looks")
    found = verify(str(folder), quiet=True)
    assert not found.problems
    assert "mine.py:looks" in found.unchecked[0]
    assert "not checked: prompts" in found.text()
    assert json.loads(json.dumps(found.as_dict()))["unchecked"]
    path.unlink()
    assert not verify(str(folder), quiet=True).problems
    shutil.rmtree(folder)


def test_an_rng_of_the_plan_is_as_good_as_any(tmp_path: Path) -> None:
    """A plan's generator is made when it is first asked; what a function may do with a `random.Random` works on it."""
    path = strategy_file(
        tmp_path,
        "import random\ndef looks(c, caption, rng):\n    words = ['a', 'b', 'c', 'd']\n    rng.shuffle(words)\n"
        "    return f'{c.name} {words} {rng.random()} {rng.sample(words, 2)} {rng.gauss(0, 1)} {rng.getrandbits(8)}'\n",
    )
    lines = load_run(finished_run(tmp_path, f"prompt.strategy={path}:looks"))
    prompts = pq.read_table(lines.folder / "plan.parquet")["prompt"].to_pylist()
    assert len(set(prompts)) == len(prompts)
    assert strategy_of(pin_prompt(recipe_with(path)).prompt).write(
        get_variant("shapes").classes[0], "", Random(1)
    ) == strategy_of(pin_prompt(recipe_with(path)).prompt).write(get_variant("shapes").classes[0], "", Random(1))
