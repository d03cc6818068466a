"""Which of the Hub's answers pass: these are tried again, within a bound; all others end at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from builders.errors import DataError
from builders.hub import ATTEMPTS, Patience, UnreachableError, passes, patiently, said_plainly, status_of


class Answer(Exception):
    """What a client raises for an answer."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"answer {status}")
        self.response = SimpleNamespace(status_code=status, headers=headers)


PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)


@pytest.mark.parametrize("status", PASSING)
def test_what_passes_is_tried_again_until_it_has_passed(status: int) -> None:
    answers: list[Any] = [Answer(status), Answer(status), "found"]
    pauses: list[float] = []

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    patience = Patience("alice/set", "read it", say=lambda line: None, sleep=pauses.append, chance=lambda: 1.0)
    assert patiently(call, patience) == "found"
    assert pauses == [2.0, 4.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422, 501])
def test_what_does_not_pass_is_asked_once(status: int) -> None:
    assert not passes(Answer(status))


def test_a_bound_ends_the_tries_and_says_how_many_there_were() -> None:
    pauses: list[float] = []

    def call() -> None:
        raise ConnectionError("cut")

    patience = Patience("alice/set", say=lambda line: None, sleep=pauses.append, chance=lambda: 0.0)
    with pytest.raises(UnreachableError, match=rf"\({ATTEMPTS} attempts\)") as ended:
        patiently(call, patience)
    assert (ended.value.code, pauses) == (4, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert not passes(ended.value), "what was waited for in vain is not waited for again"


def test_a_hub_that_says_how_long_to_wait_is_waited_for_as_long() -> None:
    assert status_of(Answer(429, **{"Retry-After": "120"})) == (429, 120.0)
    pauses: list[float] = []
    patience = Patience("alice/set", say=lambda line: None, sleep=pauses.append, chance=lambda: 0.0)
    patience.after(Answer(503, **{"Retry-After": "120"}))
    patience.after(Answer(503, **{"Retry-After": "9000"}))
    assert pauses == [120.0, 300.0]


def test_an_error_of_ours_is_never_tried_again() -> None:
    with pytest.raises(DataError, match="not there"):
        patiently(lambda: (_ for _ in ()).throw(DataError("It is not there.", "Look.")), Patience("alice/set"))


def test_without_a_token_the_ways_to_one_are_named() -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    with pytest.raises(DataError, match=r"^There is no token\.") as refused, said_plainly("alice/shapes", None):
        raise LocalTokenNotFoundError("Token is required")
    assert refused.value.hint == "To have one, log in with: hf auth login, or set HF_TOKEN."
    assert refused.value.code == 3
