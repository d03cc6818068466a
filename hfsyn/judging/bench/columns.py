"""The columns of a matrix beside its tests: attacks on each classifier, and comparisons of each arm's set with the real
one. The former are of a cell and lie in its results; the latter are of a set, which many cells may share:

OUT/sets/COLUMN-ARM-HASH.json          what a comparison found
OUT/sets/COLUMN-ARM-HASH.png           the copies that it found, beside what they are copies of
OUT/sets/COLUMN-ARM-HASH.error.json    why it failed; the next run tries it again
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.files import atomic_text, disk_error
from hfsyn.errors import HfsynError
from hfsyn.judging.bench.matrix import Cell, Matrix, cells, place, safe_name, train_split
from hfsyn.judging.bench.parts import Fidelity
from hfsyn.judging.measures.metrics import dump_result
from hfsyn.judging.sets.image_set import TRAIN
from hfsyn.judging.sets.references import kept

SETS = "sets"
"""The folder of the comparisons, within the matrix's."""
ITSELF = "the real set itself"

Attacker = Callable[..., dict[str, Any]]
"""``attack(model, members, others, members_split=..., others_split=..., limit=...)``, as `measure_membership`."""
Comparer = Callable[..., dict[str, Any]]
"""``compare(synthetic, real, split=, features=, evaluation=, limit=, sheet=)``, as `measure_fidelity`."""


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    name: str  # its head
    of: str  # the test, mean or other column of the matrix that it belongs to
    measure: str
    kind: str  # `number`; or of 0 to 1: `unit`, `percent`, or `share`, which is counted and shown as percent
    about: str  # what the number means
    better: int = 1  # 1: higher is better; -1: lower; 0: neither

    def read(self, found: Mapping[str, Any]) -> float | None:
        """Its number in a result of what it belongs to."""
        value: Any = found
        for key in self.measure.split("."):
            value = (value or {}).get(key)
        return None if value is None else float(value)


_MEMBERSHIP = (
    ("balanced accuracy", "loss.balanced_accuracy.value", "percent", "attack by the loss; 50 is guessing"),
    ("AUC", "loss.auc.value", "unit", "attack by the loss; 0.5 is guessing"),
    ("TPR at 1 % FPR", "loss.tpr_at_1_percent_fpr.value", "percent", "attack by the loss; 1 is guessing"),
)
_FIDELITY = (
    ("Fréchet distance", "frechet.value", "number", "lower is nearer", -1),
    ("precision", "precision", "unit", "share of the images that are near a real one", 1),
    ("recall", "recall", "unit", "share of real images that are near one of these", 1),
    ("density", "density", "number", "real neighbourhoods around an image, about 1 if alike", 1),
    ("coverage", "coverage", "unit", "share of real neighbourhoods with one of these images", 1),
    ("copies within", "duplicates.within.near", "share", "images that have a copy in the set", -1),
    ("copies of real", "duplicates.against_real.near", "share", "images that are copies of real ones", -1),
    ("copies of test", "duplicates.against_evaluation.near", "share", "images that are copies of test images", -1),
)


def columns(matrix: Matrix) -> list[Column]:
    """The columns of the table, tests first."""
    found = [Column(name, name, "top1", "percent", "top-1 accuracy") for name in (*matrix.tests, *matrix.means)]
    for name in matrix.membership:
        found += [Column(f"{name}: {head}", name, key, kind, about, -1) for head, key, kind, about in _MEMBERSHIP]
    for name, asked in matrix.fidelity.items():
        some = _FIDELITY if asked.evaluation else _FIDELITY[:-1]
        found += [Column(f"{name}: {head}", name, *rest) for head, *rest in some]  # type: ignore[arg-type]
    return found


def cell_attacks(matrix: Matrix, cell: Cell) -> dict[str, dict[str, Any]]:
    """The attacks on a cell's classifier by name: the words of `Attacker`."""
    choice, found = matrix.select_on, {}
    for name, asked in matrix.membership.items():
        if not asked.of(cell.arm, cell.variant):
            continue
        split = asked.members_split
        if split is None and choice is not None and choice.share is not None and asked.members == choice.dataset:
            split = kept(choice.split or "", choice.share)
        found[name] = {
            "members": place(asked.members, cell.seed, cell.variant),
            "others": place(asked.others, cell.seed, cell.variant),
            "members_split": split,
            "others_split": asked.others_split,
            "limit": asked.limit,
        }
    return found


@dataclass(frozen=True)
class Comparison:
    """One arm's set and what it is compared with: a file of `SETS`."""

    column: str
    arm: str
    words: dict[str, Any]  # of `Comparer`
    problem: str = ""  # why it is not made

    @property
    def file(self) -> str:
        """Its name, without the ending."""
        text = json.dumps(self.words, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{safe_name(self.column)}-{safe_name(self.arm)}-{key}"

    @property
    def is_real(self) -> bool:
        """Whether the set is the real one."""
        return bool(self.words["synthetic"] == self.words["real"])


def comparison(matrix: Matrix, name: str, cell: Cell) -> Comparison | None:
    """The comparison of a column that a cell's set belongs to; None if it is not asked of it."""
    asked: Fidelity = matrix.fidelity[name]
    if cell.arm not in matrix.arms or not asked.of(cell.arm, cell.variant):
        return None
    train = [place(text, cell.seed, cell.variant) for text in matrix.arms[cell.arm].train]
    words = {
        "synthetic": train[0],
        "real": place(asked.real, cell.seed, cell.variant),
        "split": train_split(matrix, cell.arm),
        "features": asked.features,
        "evaluation": asked.evaluation and place(asked.evaluation, cell.seed, cell.variant),
        "limit": asked.limit,
    }
    problem = f"trained on {len(train)} sets" if len(train) > 1 else ""
    return Comparison(name, cell.arm, words, problem)


def comparisons(matrix: Matrix) -> dict[str, Comparison]:
    """Every comparison of sets that the matrix asks for, by the name of its file; none of the real set with itself."""
    found = {}
    for name in matrix.fidelity:
        for cell in cells(matrix):
            one = comparison(matrix, name, cell)
            if one is not None and not one.problem and one.file not in found and not one.is_real:
                found[one.file] = one
    return found


def read_comparison(folder: Path, one: Comparison) -> tuple[dict[str, Any] | None, str | None]:
    """What a comparison found, and else why there is nothing."""
    if one.problem:
        return None, one.problem
    if one.is_real:
        return None, ITSELF
    found, why = made_in(folder / SETS / one.file)
    return found, why if found is None else None


def made_in(place: Path) -> tuple[dict[str, Any] | None, str]:
    """What `make` wrote at a path, and else why there is nothing."""
    found, failed = (_read(place.with_name(f"{place.name}{end}")) for end in (".json", ".error.json"))
    return found, f"failed: {failed['error']}" if failed else "not run"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def missing_comparisons(matrix: Matrix, folder: Path, look: Callable[..., str | None] | None) -> list[Comparison]:
    """Those that are not there yet, or whose images have changed since."""
    found = []
    for one in comparisons(matrix).values():
        made, _ = read_comparison(folder, one)
        if made is None or (look is not None and _changed(one, made, look)):
            found.append(one)
    return found


def _changed(one: Comparison, made: dict[str, Any], look: Callable[..., str | None]) -> bool:
    words, sets = one.words, made.get("sets", {})
    for name, split in (("synthetic", words["split"]), ("real", None)):
        then = sets.get(name, {}).get("fingerprint")
        if then is not None and look(words[name], split, TRAIN, words["limit"]) not in (None, then):
            return True
    return False


def run_comparison(folder: Path, one: Comparison, compare: Comparer) -> str:
    """Make a comparison, and write what it found or why it failed; return a one-line summary."""
    place_of = folder / SETS / one.file
    found, why = make(place_of, compare, **one.words, sheet=place_of.with_name(f"{one.file}.png"))
    if found is None:
        return why
    copies = found["duplicates"]["against_real"]["near"]
    return f"Fréchet distance {found['frechet']['value']:.4g}, {copies} copies of real images"


def make(place: Path, work: Callable[..., dict[str, Any]], *arguments: Any, **words: Any) -> Any:
    """What the work returns, written to a path with ``.json``; or None and why it failed, written beside it."""
    failed = place.with_name(f"{place.name}.error.json")
    try:
        found = work(*arguments, **words)
    except HfsynError as error:
        atomic_text(failed, _error(error.message, error.hint))
        return None, f"failed: {error.message}"
    except Exception as error:  # as of cells: the others go on
        if disk_error(error) is not None:
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        atomic_text(failed, _error(said, trace=traceback.format_exc()))
        return None, f"failed: {said}"
    found = {name: value for name, value in found.items() if name != "nearest_real"}
    atomic_text(place.with_name(f"{place.name}.json"), dump_result(found))
    failed.unlink(missing_ok=True)
    return found, ""


def _error(message: str, hint: str = "", trace: str = "") -> str:
    return json.dumps({"error": message, "hint": hint, "traceback": trace}, indent=1, ensure_ascii=False) + "\n"


def attack(model: Path, members: str, others: str, *, device: str | None = None, **words: Any) -> dict[str, Any]:
    """`measure_membership` of a cell's classifier."""
    from hfsyn.judging.measures.membership import measure_membership

    limit = words.pop("limit")
    return measure_membership(model, members, others, limit_per_class=limit, device=device, **words)


def compare(synthetic: str, real: str, *, device: str | None = None, **words: Any) -> dict[str, Any]:
    """`measure_fidelity` of an arm's set."""
    from hfsyn.judging.measures.fidelity import measure_fidelity
    from hfsyn.workers import pick_device

    limit = words.pop("limit")
    return measure_fidelity(synthetic, real, limit_per_class=limit, device=pick_device(device), quiet=True, **words)
