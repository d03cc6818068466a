"""What a token may do is read from what the Hub says of it, for the owner that is asked about and nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from hfsyn.hub.rights import rights_of


def fine_grained(*scoped: tuple[str, list[str]], everywhere: tuple[str, ...] = ()) -> dict[str, Any]:
    """The answer of ``whoami`` for a token with permissions on accounts and repositories."""
    scopes = [{"entity": {"name": name}, "permissions": permissions} for name, permissions in scoped]
    fine = {"global": [*everywhere], "scoped": scopes}
    return {"name": "alice", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": fine}}}


@pytest.mark.parametrize(("name", "may"), [("alice", True), ("alice/set", True), ("bob", False), ("alice-two", False)])
def test_a_fine_grained_token_may_write_where_it_says_and_nowhere_else(name: str, may: bool) -> None:
    found = rights_of(fine_grained((name, ["repo.content.read", "repo.write"])), "alice")
    assert (found.role, found.write) == ("fineGrained", may)
    assert bool(found.more) is not may


def test_reading_is_not_writing_and_other_rights_are_listed() -> None:
    who = fine_grained(("alice", ["repo.content.read", "inference.serverless.write"]), everywhere=("discussion.write",))
    found = rights_of(who, "alice")
    assert not found.write
    assert found.more == ("discussion.write", "inference.serverless.write of alice")


@pytest.mark.parametrize(("role", "may"), [("write", True), ("admin", True), ("read", False), (None, True)])
def test_a_plain_token_is_what_its_role_says_and_one_of_an_unknown_kind_is_tried(role: str | None, may: bool) -> None:
    found = rights_of({"name": "alice", "auth": {"accessToken": {"role": role}}}, "alice")
    assert (found.write, bool(found.more)) == (may, role == "write")
    assert rights_of({}, "alice").write
