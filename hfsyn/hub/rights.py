"""What a token may do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rights:
    """What a token may do, as `whoami` says."""

    role: str  # `read`, `write`, `fineGrained` or what else the Hub says
    write: bool  # whether it may write to the owner's repositories
    more: tuple[str, ...] = ()  # rights beyond reading and writing repositories of that owner
    pulls: bool = True  # whether it may open and merge pull requests there


def rights_of(who: Mapping[str, Any], owner: str) -> Rights:
    """Rights of the token that `whoami` describes, for repositories of an owner."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    role = str(token.get("role") or "unknown")
    if role != "fineGrained":
        # A plain write token can write everywhere that its user can.
        everywhere = (f"everything of {who.get('name')} and their organisations",) if role == "write" else ()
        return Rights(role, role in ("write", "admin", "unknown"), everywhere)
    fine = token.get("fineGrained") or {}
    write, pulls, more = False, False, [str(right) for right in fine.get("global") or ()]
    for scope in fine.get("scoped") or ():
        name = str((scope.get("entity") or {}).get("name") or "")
        permissions = [str(permission) for permission in scope.get("permissions") or ()]
        mine = name == owner or name.startswith(f"{owner}/")
        write |= mine and "repo.write" in permissions
        pulls |= mine and "discussion.write" in permissions
        more += [f"{right} of {name}" for right in permissions if not mine or not right.startswith("repo.")]
    return Rights(role, write, tuple(more), pulls)
