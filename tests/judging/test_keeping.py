"""The axis `keep` of a matrix: the best images by a score beside as many at random."""

from __future__ import annotations

from typing import Any

import pytest

from builders.errors import HfsynError
from hfsyn.judging.bench.matrix import cell_config, cells, load_matrix

MATRIX: dict[str, Any] = {
    "name": "keep",
    "config": "shapes",
    "arms": {"cip": {"train": ["runs/cip-{seed}"]}},
    "keep": {"by": "-entropy", "shares": [0.5, 1.0]},
    "seeds": [0, 1],
    "budgets": [64],
    "tests": {"shapes": {"dataset": "shapes"}},
}


@pytest.fixture(autouse=True)
def _runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_arm_is_trained_on_the_same_share_by_score_and_at_random() -> None:
    matrix = load_matrix(MATRIX)
    found = [(cell.arm, cell.keep, cell.seed, cell_config(matrix, cell).data.keep) for cell in cells(matrix)]
    assert found == [
        (arm, share, seed, f"{order}:{share:g}")
        for share in (0.5, 1.0)
        for seed in (0, 1)
        for arm, order in (("cip at random", "random"), ("cip by -entropy", "-entropy"))
    ]
    assert len({cell.folder for cell in cells(matrix)}) == len(found)


def test_a_matrix_that_was_written_down_is_read_again_as_it_is() -> None:
    matrix = load_matrix(MATRIX)
    assert load_matrix(matrix.model_dump(mode="json")) == matrix


@pytest.mark.parametrize("keep", [{"by": "a b", "shares": [0.5]}, {"by": "margin", "shares": [0]}, {"by": "margin"}])
def test_a_share_or_a_column_that_is_none_is_refused(keep: dict[str, object]) -> None:
    with pytest.raises(HfsynError, match="keep"):
        load_matrix(MATRIX | {"keep": keep})
