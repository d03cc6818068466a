"""Before a matrix is run: whether what is there is still its own, and whether all that it names can be opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfsyn.errors import HfsynError
from hfsyn.judging.bench.columns import Comparison
from hfsyn.judging.bench.costs import to_build
from hfsyn.judging.bench.matrix import Cell, Matrix
from hfsyn.judging.sets.image_set import TEST, TRAIN
from hfsyn.judging.sets.references import without_weight

Look = Callable[[str, str | None, Sequence[str], int | None], str | None]
"""``look(dataset, split, default splits, limit)``: the images' current fingerprint; None if unknown."""


def look_at(dataset: str, split: str | None, default: Sequence[str], limit: int | None) -> str | None:
    """The fingerprint of a set; None if it is gone, or the Hub cannot be reached."""
    from hfsyn.judging.sets.image_set import open_images

    try:
        return open_images(dataset, split, default=default, limit=limit).fingerprint
    except (HfsynError, OSError):
        return None


def refuse_other(folder: Path, settings: dict[str, Any], there: dict[str, Any]) -> None:
    """Refuse a cell made with other settings, ignoring columns that only one side has."""
    mine, theirs = dict(_leaves(_common(settings, there))), dict(_leaves(_common(there, settings)))
    if key := next((key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)), None):
        raise HfsynError(
            f"{folder} was made with another matrix: {key} is {theirs.get(key)!r} there, {mine.get(key)!r} here.",
            "Use another --out, or delete that folder.",
        )


def _common(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The settings of a cell with those of its columns alone that the other has, too."""
    asked = {
        kind: {name: value for name, value in one.get(kind, {}).items() if name in other.get(kind, {})}
        for kind in ("tests", "membership")
    }
    return {**one, **{kind: found for kind, found in asked.items() if found or (kind in one and kind in other)}}


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Values in nested mappings, by dotted key."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]


def refuse_changed(folder: Path, config: Any, result: dict[str, Any], look: Look) -> None:
    """Refuse a finished cell whose images have since changed: its numbers can no longer be checked.

    If a set is gone or the Hub unreachable, nothing can be compared: the numbers stand.
    """
    data = config.data
    sets = result["training"].get("training", {}).get("sets", [])
    known: list[tuple[str, str | None, Sequence[str], int | None, dict[str, Any]]] = [
        (text, data.train_split, TRAIN, limit, facts)
        for text, limit, facts in zip(data.train, data.limit_of_each, sets, strict=False)
    ]
    for name, test in result["tests"].items():
        known.append((*result["cell"]["tests"][name], TEST, None, test.get("dataset", {})))
    for text, split, default, limit, facts in known:
        then = facts.get("fingerprint")
        if then is None or "part_of" in facts:  # a stream; or the classes that the network has
            continue
        if look(text, split, default, limit) not in (None, then):
            raise HfsynError(
                f"The images of {text} have changed since {folder} was finished ({facts.get('images')} images then).",
                "Use another --out, or delete that folder; or restore the files.",
            )


class _Faults:
    """Faults of checks that are each tried once, and what the checks returned."""

    def __init__(self) -> None:
        self.found: dict[str, HfsynError] = {}
        self._done: dict[tuple[Any, ...], Any] = {}

    def tried(self, check: Callable[..., Any], key: Any, *arguments: Any, **words: Any) -> Any:
        """What the check returns; None if it raises, now or the first time that it had this key."""
        if (check, key) not in self._done:
            try:
                self._done[check, key] = check(*arguments, **words)
            except HfsynError as error:
                self._done[check, key] = None
                self.found[str(error)] = error
        return self._done[check, key]

    def refuse(self) -> None:
        """Raise them as one, each said once."""
        if len(self.found) == 1:
            raise next(iter(self.found.values()))
        if self.found:
            said = " ".join(f"({number}) {error.message}" for number, error in enumerate(self.found.values(), 1))
            raise HfsynError(f"{len(self.found)} faults, and nothing was trained: {said}", "Change the matrix.")


def refuse_faults(
    matrix: Matrix, jobs: Mapping[Cell, Any], sets: Sequence[Comparison], *, unbuilt: bool = False
) -> dict[Any, int | None]:
    """Open every set and look up every network and optimizer; report what is wrong, each fault once. Returned is how
    many images there are to train on, by the data part of the training recipe, and to test on, by that and the test, or
    by dataset and split.

    Args:
        matrix: the matrix.
        jobs, sets: what is left to do of its cells and comparisons.
        unbuilt: pass over run folders that are not there, if the arm names the recipe that makes them.

    Raises:
        HfsynError: there are faults.
    """
    faults, found = _Faults(), dict[Any, int | None]()
    absent = to_build(matrix, jobs)
    if absent and not unbuilt:
        first = absent[0]
        raise HfsynError(
            f"{len(absent)} run{'s' * (len(absent) > 1)} of the matrix {'are' if len(absent) > 1 else 'is'} not made "
            f"yet, the first: {first.place}.",
            f"`hfsyn bench MATRIX --dry-run` lists the commands. The first: {first.command}",
        )
    places = {one.place for one in absent}
    for job in jobs.values():
        _check_cell(job, faults, places, found)
    for name in matrix.baselines:
        _check_name(name, faults)
    for one in sets:
        for text, split, default in _sets_of(one):
            if text not in places:
                faults.tried(_opened, (text, split, default), text, split, default)
        _check_name(one.words["features"], faults)
    faults.refuse()
    return found


def _sets_of(one: Comparison) -> Iterator[tuple[str, str | None, Sequence[str]]]:
    words = one.words
    yield words["synthetic"], words["split"], TRAIN
    yield words["real"], None, TRAIN
    if words["evaluation"]:
        yield words["evaluation"], None, TEST


def _check_cell(job: Any, faults: _Faults, absent: set[str], found: dict[Any, int | None]) -> None:
    from hfsyn.judging.classifier import check_model_name
    from hfsyn.judging.measures.evaluate import check_counts
    from hfsyn.judging.sets.shared import testable
    from hfsyn.judging.train.loop import total_steps
    from hfsyn.judging.train.timm_parts import check_optimizer

    config, tried = job.config, faults.tried
    data, name, optimizer = config.data.model_dump_json(), config.model.name, config.optimise.optimizer
    tried(check_model_name, name, name)
    tried(check_optimizer, optimizer, optimizer)
    tested = {test: tried(_opened, (*test, TEST), *test, TEST) for test in job.tests.values() if test[0] not in absent}
    for words in job.attacks.values():
        for whose, default in (("members", TRAIN), ("others", TEST)):
            asked = (words[whose], words[f"{whose}_split"], default)
            if asked[0] not in absent and (opened := tried(_opened, asked, *asked)) is not None:
                found[asked[:2]] = min(len(opened), len(opened.classes) * (words["limit"] or len(opened)))
    found |= {test: len(images) for test, images in tested.items() if images is not None}
    if absent & set(map(without_weight, config.data.train)):
        return
    feed = tried(_trained_on, data, config)
    if feed is None:
        return
    budget, classes, found[data] = feed
    tried(total_steps, (data, config.optimise.model_dump_json()), config, budget)
    for test, images in tested.items():
        if images is not None:
            tried(check_counts, test, images)
            part = tried(testable, (data, test), classes, images, "the training set")
            found[data, test] = None if part is None else len(part)


def _opened(dataset: str, split: str | None, default: Sequence[str]) -> Any:
    from hfsyn.judging.sets.image_set import open_images

    return open_images(dataset, split, default=default)


def _trained_on(config: Any) -> tuple[int, dict[str, str], int | None]:
    from hfsyn.judging.train.feeds import open_feed

    feed = open_feed(config)
    return feed.budget, {wnid: feed.names[wnid] for wnid in feed.classes}, feed.images


def _check_name(name: str, faults: _Faults) -> None:
    from hfsyn.judging.classifier import check_model_name

    if not Path(name).exists():  # else the folder of a training
        faults.tried(check_model_name, name, name.removeprefix("random:"))
