"""Conditions of selections: what they may say, and what a wrong or hostile one is told."""

from __future__ import annotations

import pyarrow as pa
import pytest

import hfsyn.runs.condition
from builders.errors import HfsynError
from hfsyn.runs.condition import judged
from hfsyn.runs.selection_rule import Rule, apply

ROWS = pa.table(
    {
        "sample_id": [f"a/{n // 2}#{n % 2}" for n in range(8)],
        "source_id": [f"a/{n // 2}" for n in range(8)],
        "wnid": ["n1", "n1", "n1", "n1", "n2", "n2", "n2", "n2"],
        "prompt": ["a photo of a fish"] * 7 + ["it's a cat"],
        "p_label": [0.1, 0.2, 0.9, None, 0.5, 0.6, 0.7, 0.8],
        "copy": [False, False, True, False, False, False, False, True],
    }
)


def test_a_condition_keeps_what_it_is_true_for_and_says_which_part_the_others_fail() -> None:
    found = judged("p_label >= .5 AND NOT copy", ROWS)
    assert [number for number, kept in enumerate(found.kept) if kept] == [4, 5, 6]
    assert found.parts == ["p_label >= .5", 'NOT "copy"']
    assert found.failing == [0, 0, 1, 0, None, None, None, 1]
    assert [number for number, unknown in enumerate(found.unknown) if unknown] == [3]
    assert found.columns == ["p_label", "copy"]


def test_text_functions_and_cases_are_conditions_too() -> None:
    assert judged("prompt LIKE '%it''s%' OR lower(wnid) = 'n1' AND sample_id NOT IN ('a/0#0')", ROWS).kept == [
        *(False, True, True, True),
        *(False, False, False, True),
    ]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("p_lable > 1", "Did you mean 'p_label'?"),
        ('prompt = "fish"', "A text stands in single quotes"),
        ("p_label", "neither true nor false"),
        ("", "empty"),
        ("p_label > .5)", "syntax error"),
        ("true; DROP TABLE rows", "more than an expression"),
        ("true UNION SELECT 1", "more than an expression"),
        ("true LIMIT 3", "more than an expression"),
        ("true USING SAMPLE 3", "more than an expression"),
        ("sample_id IN (SELECT content FROM read_text('/etc/passwd'))", "a subquery"),
        ("read_text('/etc/passwd') = 'a'", "does not say something of a single row"),
        ("COPY rows TO 'stolen.csv'", "syntax error"),
        ("ATTACH 'other.db'", "cannot be evaluated"),
        ("INSTALL httpfs", "syntax error"),
        ("SET memory_limit = '9GB'", "syntax error"),
        ("random() < .5", "random() gives something else each time"),
        ("now() > '2020-01-01'", "now() gives something else"),
        ("current_setting('threads') = '1'", "gives something else"),
        ("count(*) > 1", "single row"),
        ("row_number() OVER () > 1", "a window function"),
        ("p_label = $1", "a parameter"),
        ("nothing(p_label) > 1", "There is no function 'nothing'"),
        ("prompt > 5", "cannot be evaluated"),
    ],
)
def test_a_wrong_or_hostile_condition_is_told_in_one_line(where: str, words: str) -> None:
    with pytest.raises(HfsynError) as error:
        judged(where, ROWS)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_condition_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hfsyn.runs.condition, "SECONDS", 1.5)
    with pytest.raises(HfsynError, match=r"takes more than 2 s"):
        judged("levenshtein(repeat(prompt, 20000), repeat(prompt, 20001)) > 1", ROWS)


def test_a_condition_gets_no_more_memory_than_it_is_given() -> None:
    """DuckDB's own limit of memory does not bound what a function makes."""
    with pytest.raises(HfsynError, match=r"[Mm]emory"):
        judged("len(repeat(prompt, 200000000)) > 1", ROWS)


def test_a_class_takes_the_best_of_each_real_image_before_second_ones() -> None:
    two = apply(Rule(None, 2, "p_label"), ROWS).reasons
    assert [number for number, reason in enumerate(two) if reason is None] == [1, 2, 5, 7]  # and not 6, the second best
    found = apply(Rule(None, 3, "p_label"), ROWS)
    kept = [number for number, reason in enumerate(found.reasons) if reason is None]
    # Of n2: the best of a/3 (.8) and of a/2 (.6), then the better one of the others; n1 likewise, without a value last.
    assert kept == [0, 1, 2, 5, 6, 7]
    assert {number for number in kept if found.spare[number]} == {0, 6}
    assert set(found.reasons) - {None} == {"at most 3 of each class, by the largest p_label"}


def test_the_smallest_values_can_go_first() -> None:
    found = apply(Rule(None, 1, "-p_label"), ROWS)
    assert [number for number, reason in enumerate(found.reasons) if reason is None] == [0, 4]


@pytest.mark.parametrize(("by", "words"), [("p_lable", "Did you mean 'p_label'"), ("prompt", "is not a number")])
def test_what_cannot_order_is_refused(by: str, words: str) -> None:
    with pytest.raises(HfsynError, match=words):
        apply(Rule(None, 1, by), ROWS)
