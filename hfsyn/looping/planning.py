"""What a policy plans, checked; and a trial of it with made-up answers, before anything is spent."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from inspect import getsourcefile, iscoroutine
from itertools import product
from typing import Any

from builders.errors import brief, did_you_mean, plural, quoted
from hfsyn.errors import HfsynError
from hfsyn.looping.policies import FORM, POLICIES, SCORES, Known, Policy, asks_of, policy_of
from hfsyn.recipes.factor_file import CLASS

SECONDS = 60.0
"""What a policy may take for all calls of its trial; it should take milliseconds."""
_KEYS = ("images", "levels", "candidates", "by", "begin")


def part_text(part: Mapping[str, Any]) -> str:
    """``60 images: heart, colour red or blue``."""
    named = [
        f"{'' if name == CLASS else f'{name} '}{' or '.join(map(str, levels))}"
        for name, levels in part["levels"].items()
    ]
    said = ", ".join(named) or "of all kinds alike"
    if part["candidates"] > 1:
        by, end = str(part["by"]).removeprefix("-"), "smallest" if str(part["by"]).startswith("-") else "largest"
        said += f", each the one of {part['candidates']} with the {end} {by}"
    if part["begin"] is not None:
        said = f"each begins from one of {plural(len(part['begin']), 'image')}"
    return f"{plural(part['images'], 'image')}: {said}"


def tried(
    label: str, levels: Mapping[str, Sequence[str]], images: int, candidates: int, rounds: int
) -> list[dict[str, Any]]:
    """What a policy plans when it is asked with made-up answers: of the first round and the last, with all, some and
    none of them right, and with and without findings. Those of the first round with some right are returned.

    A function of the user's is asked in a process of its own, too, which may take `SECONDS`, and where sets are in
    another order. Raises HfsynError as `planned`, or if that differs.
    """
    policy = policy_of(label)[0]
    asked = list(_made_up(policy, levels, candidates, rounds))
    elsewhere = None if label in POLICIES else _apart(label, asked, images)
    found = [planned(policy, label, known, images, seed=0) for known in asked]
    if elsewhere is not None:
        for mine, theirs in zip(found, elsewhere, strict=True):
            _check_same(label, mine, theirs, "in another process")
    return found[0]


def _made_up(policy: Policy, levels: Mapping[str, Sequence[str]], candidates: int, rounds: int) -> Iterator[Known]:
    """What a policy might know."""
    names = levels[CLASS]
    rate = {"value": 0.5, "low": 0.4, "high": 0.6}
    told = {"sentence": "", "what": "", "beside": "", "cost": 0.01, "n": 9, "here": rate, "elsewhere": rate}
    findings = [{**told, "levels": {CLASS: [names[0]]}}, {**told, "levels": {CLASS: list(names[-1:])}}]
    shown = {"round": 0, "early_loss": 1.0, "margin": 0.5, "forgotten": 0}
    seen = [{"id": f"{name}#0", "class": name, **shown} for name in names]
    asks = asks_of(policy)
    by_class = (lambda k: k % 3, lambda k: 0, lambda k: 3)
    for number, of, found in product((1, rounds), by_class, ((), findings) if "audit" in asks else ((),)):
        right = {name: (of(k), 3) for k, name in enumerate(names)}
        yield Known(number, levels, right, found, seen if "losses" in asks else (), candidates)


def planned(policy: Policy, label: str, known: Known, images: int, seed: int) -> list[dict[str, Any]]:
    """The parts that a policy plans, checked.

    Raises HfsynError if it fails, is not pure, changes what it is given, plans another number of images, or names what
    there is not.
    """
    once = _asked(policy, label, known, images, seed)
    _check_same(label, once, _asked(policy, label, known, images, seed), "with the same arguments")
    ids = {one["id"] for one in known.images}
    for part in once:
        for name, levels in part["levels"].items():
            there = known.levels.get(name)
            if there is None:
                said = f"The policy {label} names the factor {name!r}.{did_you_mean(str(name), known.levels)}"
                raise HfsynError(said, f"There are: {', '.join(known.levels)}.")
            if not levels or (unknown := [level for level in levels if level not in there]):
                what = f"the level {unknown[0]!r}" if levels else "no level"
                near = did_you_mean(str(unknown[0]), there) if levels else ""
                raise HfsynError(f"The policy {label} names {what} of {name}.{near}", f"Its levels: {quoted(there)}.")
        _check_way(part, label, ids)
    if (total := sum(part["images"] for part in once)) != images:
        raise HfsynError(f"The policy {label} plans {total} images, and a round has {images}.", FORM)
    return [part for part in once if part["images"]]


def _check_same(label: str, one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse a policy that is not pure."""
    one, other = ([part for part in parts if part["images"]] for parts in (one, other))
    if one != other:
        first, second = (brief("; ".join(map(part_text, parts)), 100) for parts in (one, other))
        said = f"The policy {label} is not pure: it planned {first!r}, and {where} {second!r}."
        raise HfsynError(said, "Take what is random from `rng` alone, and sort what comes from a set.")


def _check_way(part: Mapping[str, Any], label: str, ids: set[str]) -> None:
    """Refuse a part that is to be drawn in a way that there is not."""
    said = ""
    if part["candidates"] > 1 and str(part["by"]).removeprefix("-") not in SCORES:
        near = did_you_mean(str(part["by"]).removeprefix("-"), SCORES)
        raise HfsynError(f"The policy {label} keeps candidates by {part['by']!r}.{near}", f"Scores: {quoted(SCORES)}.")
    if part["candidates"] == 1 and part["by"] is not None:
        said = f"names the score {part['by']!r}, and no number of candidates"
    elif not 1 <= part["candidates"] <= 64:
        said = f"asks for {part['candidates']} candidates: from 2 to 64 can be drawn"
    elif part["begin"] is not None and part["levels"]:
        said = "names levels of images that begin from others, whose levels they have"
    elif part["begin"] is not None and (not part["begin"] or set(part["begin"]) - ids):
        unknown = sorted(set(part["begin"]) - ids)
        what = f"{unknown[0][:60]!r}, which is not among those it knows" if unknown else "no image"
        said = f"begins from {what}" + ("" if ids else ": it does not ask for losses")
    if said:
        raise HfsynError(f"The policy {label} {said}.", FORM)


def _asked(policy: Policy, label: str, known: Known, images: int, seed: int) -> list[dict[str, Any]]:
    """The parts of one call, with all of their keys."""
    given = copy.deepcopy(known)  # the loop draws by its own lists
    try:
        with redirect_stdout(sys.stderr):
            found = policy(given, images, random.Random(seed))
            found = list(found) if isinstance(found, Iterator) else found
    except HfsynError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises, but not Ctrl-C
        raise _failure(policy, label, error) from None
    if given != known:
        changed = next(key for key, value in vars(known).items() if vars(given)[key] != value)
        said = f"The policy {label} changes what it is given: known.{changed}."
        raise HfsynError(said, f"Work on a copy, such as sorted(...) or dict(known.{changed}).")
    if iscoroutine(found):
        found.close()
        raise HfsynError(f"The policy {label} is a coroutine.", "Write `def`, without `async`.")
    if not isinstance(found, Sequence) or isinstance(found, str):
        what = "None: is a `return` missing?" if found is None else f"{type(found).__name__}, not a list of parts."
        raise HfsynError(f"The policy {label} returns {what}", FORM)
    return [_part(part, label) for part in found]


def _failure(policy: Policy, label: str, error: BaseException) -> HfsynError:
    """What the user's function raised, with the line of its file."""
    file = getsourcefile(policy) if hasattr(policy, "__code__") else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    at = f" in line {lines[-1]}" if lines else ""
    said = f"The policy {label} fails{at}: {type(error).__name__}: {brief(error).rstrip('.')}."
    if isinstance(error, AttributeError) and isinstance(error.obj, Known):
        return HfsynError(said, f"`known` has: {', '.join(Known.__dataclass_fields__)}.")
    return HfsynError(said, FORM)


def _part(part: Any, label: str) -> dict[str, Any]:
    """A part with all of its keys. Raises HfsynError if it is not one."""
    said = ""
    if not isinstance(part, Mapping):
        said = f"returns a part that is {brief(repr(part), 60)}, not a mapping"
    elif unknown := [key for key in part if key not in _KEYS]:
        near = did_you_mean(str(unknown[0]), _KEYS)
        raise HfsynError(f"The policy {label}: a part has the key {unknown[0]!r}.{near}", f"Keys: {quoted(_KEYS)}.")
    elif "images" not in part:
        said = f"returns a part without a number of images: {brief(repr(dict(part)), 60)}"
    elif wrong := [k for k in ("images", "candidates") if type(part.get(k, 1)) is not int or part.get(k, 1) < 0]:
        said = f"returns a part whose {wrong[0]} is {part[wrong[0]]!r}, not a whole number of 0 or more"
    elif not isinstance(levels := part.get("levels", {}), Mapping):
        said = f"returns a part whose levels are {brief(repr(levels), 60)}, not a mapping"
    elif text := [name for name, some in levels.items() if isinstance(some, str)]:
        raise HfsynError(
            f"The policy {label}: the levels of {text[0]} are the text {levels[text[0]]!r}, not a list.",
            f"Write [{levels[text[0]]!r}].",
        )
    if said:
        raise HfsynError(f"The policy {label} {said}.", FORM)
    begin = None if part.get("begin") is None else list(part["begin"])
    found = {"images": part["images"], "levels": {name: list(some) for name, some in levels.items()}}
    return {**found, "candidates": part.get("candidates", 1), "by": part.get("by"), "begin": begin}


# --- in a process of its own ------------------------------------------------------------------------------------------


def _apart(label: str, asked: Sequence[Known], images: int) -> list[list[dict[str, Any]]] | None:
    """What a function of the user's plans there; None if it fails, which is told here."""
    sent = json.dumps({"label": label, "images": images, "asked": [asdict(known) for known in asked]})
    hashes = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # which decides in what order sets are
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import {answer.__name__} as answer; answer()"
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONHASHSEED": hashes}
    try:
        done = subprocess.run(command, input=sent.encode(), capture_output=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        said = f"The policy {label} takes more than {SECONDS:.0f} s."
        raise HfsynError(said, "It is asked again and again, and should take milliseconds.") from None
    if done.returncode:
        return None
    found: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return found


def answer() -> None:
    """Ask a policy, for `_apart`."""
    given = json.load(sys.stdin)
    policy = policy_of(given["label"])[0]
    found = []
    for fields in given["asked"]:
        known = Known(**fields)
        known = replace(known, right={name: (pair[0], pair[1]) for name, pair in known.right.items()})
        found.append(_asked(policy, given["label"], known, given["images"], seed=0))
    json.dump(found, sys.stdout)
