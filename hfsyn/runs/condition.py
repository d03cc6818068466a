"""A condition on rows, as SQL's WHERE has it, evaluated by DuckDB where it can do no harm.

The condition is parsed as exactly one expression of columns, constants, operators and functions whose result follows
from their arguments: DuckDB's own catalogue says which do. It is evaluated in a process of its own that reads no file,
opens no connection, changes no setting, and has a limit of time and memory which the system keeps: DuckDB's own
`memory_limit` does not bound what a function makes.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from builders.errors import brief, did_you_mean, quoted
from hfsyn.errors import HfsynError

SECONDS = 60.0
"""Of computing, for any number of rows: a million rows take less than one."""
_MEMORY = 2 * 2**30  # bytes, beside eight times those of the rows
_LONGEST = 10_000
_PLAIN = frozenset({"COMPARISON", "CONJUNCTION", "CONSTANT", "COLUMN_REF", "FUNCTION", "OPERATOR", "BETWEEN", "CASE"})
_PLAIN |= {"CAST", "TYPE", "COLLATE"}
_WORDS = {"SUBQUERY": "a subquery", "WINDOW": "a window function", "PARAMETER": "a parameter", "STAR": "a star"}
_WORDS |= {"LAMBDA": "a lambda"}
_BEFORE = "SELECT 1 FROM rows WHERE "
_FORM = 'One expression that is true for the rows to keep, as after WHERE: --where "p_label >= 0.5 and not copy".'


@dataclass(frozen=True)
class Judged:
    """What a condition says of each row."""

    kept: Sequence[bool]
    parts: Sequence[str]
    """What is joined by AND, as SQL."""
    failing: Sequence[int | None]
    """Of each row the first part that is not true."""
    unknown: Sequence[bool]
    """Whether that part is neither true nor false, since a value is missing."""
    columns: Sequence[str]
    """The columns that the condition looks at."""


def judged(where: str, rows: pa.Table) -> Judged:
    """Evaluate a condition on all rows.

    Raises HfsynError if it is not one expression, names a column that is not there, asks for more than columns and
    pure functions give, fails, or takes too long or too much memory.
    """
    if len(where) > _LONGEST:
        raise HfsynError(f"The condition has {len(where):,} characters, and at most {_LONGEST:,} are read.", _FORM)
    sent = io.BytesIO()
    with pa.ipc.new_stream(sent, rows.schema.with_metadata({"where": where})) as stream:
        stream.write_table(rows.replace_schema_metadata({"where": where}))
    alone = dict(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    where_it_is = f"from {answer.__module__} import {answer.__name__} as answer"
    program = f"import sys; sys.path[:] = {sys.path!r}; {where_it_is}; sys.exit(answer())"
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, input=sent.getvalue(), capture_output=True, timeout=SECONDS, env=alone)
    except subprocess.TimeoutExpired:
        raise HfsynError(f"The condition {_shown(where)} takes more than {SECONDS:.0f} s.", "Simplify it.") from None
    if done.returncode == 0:
        table = pa.ipc.open_stream(done.stdout).read_all()
        told = json.loads(table.schema.metadata[b"told"])
        return Judged(**table.to_pydict(), **told)
    if done.returncode == 2 and done.stdout:
        raise HfsynError(*json.loads(done.stdout))
    raise HfsynError(f"The condition {_shown(where)} takes more memory than there is for it.", "Simplify it.")


def _shown(where: str) -> str:
    return f"'{brief(where, 120)}'"


# --- in the process of its own ----------------------------------------------------------------------------------------


def _evaluated(where: str, rows: pa.Table) -> pa.Table:
    import duckdb

    connection = duckdb.connect(config={"threads": 1, "autoload_known_extensions": False})
    connection.execute("SET python_enable_replacements = false")
    connection.register("given", rows)
    connection.execute("CREATE TABLE rows AS SELECT * FROM given")
    connection.unregister("given")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    tree = _parsed(connection, where)
    columns = _checked(connection, tree, where, rows.column_names)
    parts = [_as_sql(connection, part) for part in _joined_by_and(tree)]
    one_by_one = ", ".join(f"({part}) AS part{number}" for number, part in enumerate(parts))
    try:
        found: pa.Table = connection.execute(f"SELECT {one_by_one} FROM rows").to_arrow_table()  # noqa: S608  # checked above
    except duckdb.Error as error:
        said = brief(str(error).partition("LINE 1")[0].partition("\n\n")[0], 200).rstrip(".!")
        raise HfsynError(f"The condition {_shown(where)} cannot be evaluated: {said}.", _FORM) from None
    if odd := [part for part, field in zip(parts, found.schema, strict=True) if not pa.types.is_boolean(field.type)]:
        raise HfsynError(f"{_shown(odd[0])} is neither true nor false.", f"Compare it with something. {_FORM}")
    values = [column.to_pylist() for column in found.columns]
    failing: list[int | None] = []
    for row in zip(*values, strict=True):
        failing.append(next((number for number, value in enumerate(row) if value is not True), None))
    unknown = [n is not None and values[n][row] is None for row, n in enumerate(failing)]
    columns_of = {
        "kept": pa.array([n is None for n in failing], pa.bool_()),
        "failing": pa.array(failing, pa.int32()),
        "unknown": pa.array(unknown, pa.bool_()),
    }
    told = json.dumps({"parts": parts, "columns": columns})
    return pa.table(columns_of).replace_schema_metadata({"told": told})


def _parsed(connection: Any, where: str) -> dict[str, Any]:
    """The tree of the one expression."""
    if not where.strip():
        raise HfsynError("The condition is empty.", _FORM)
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [_BEFORE + where]).fetchone()
    found = json.loads(text)
    if found["error"]:
        said = brief(found["error_message"], 160).rstrip(".!")
        said = "it is more than an expression" if "SELECT" in said else said
        raise HfsynError(f"{_shown(where)} is not a condition: {said}.", _FORM)
    nodes = [statement["node"] for statement in found["statements"]]
    plain: dict[str, Any] = {
        "type": "SELECT_NODE",
        "modifiers": [],
        "cte_map": {"map": []},
        "group_expressions": [],
        "group_sets": [],
    }
    plain |= {"having": None, "sample": None, "qualify": None}
    if len(nodes) != 1 or any(nodes[0].get(key) != value for key, value in plain.items()):
        raise HfsynError(f"{_shown(where)} is not a condition: it is more than an expression.", _FORM)
    tree: dict[str, Any] = nodes[0]["where_clause"]
    return tree


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every expression in a tree."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _checked(connection: Any, tree: Mapping[str, Any], where: str, known: Sequence[str]) -> list[str]:
    """The columns that a tree names; raises HfsynError for what a condition may not have."""
    small = {name.lower(): name for name in known}
    found: dict[str, None] = {}
    for node in _nodes(tree):
        kind = node["class"]
        if kind not in _PLAIN:
            what = _WORDS.get(kind, kind.lower())
            raise HfsynError(f"The condition {_shown(where)} has {what}, which a condition cannot have.", _FORM)
        if kind == "COLUMN_REF":
            name = ".".join(node["column_names"])
            if name.lower() not in small:
                said = f"There is no column {name[:80]!r}.{did_you_mean(name, known)}"
                raise HfsynError(said, f"There are: {quoted(known, 40)}. A text stands in single quotes.")
            found[small[name.lower()]] = None
        if kind == "FUNCTION":
            _check_function(connection, node)
    return list(found)


def _check_function(connection: Any, node: Mapping[str, Any]) -> None:
    """Refuse a function whose result does not follow from its arguments alone, or that is not of single rows."""
    name = node["function_name"]
    asked = "SELECT function_type, stability FROM duckdb_functions() WHERE lower(function_name) = lower(?)"
    kinds = set(connection.execute(asked, [name]).fetchall())
    if node["schema"] or node["catalog"] or not kinds:
        raise HfsynError(f"There is no function {name[:80]!r}.", "Functions are those of DuckDB.")
    if ("scalar", "VOLATILE") in kinds or (("scalar", "CONSISTENT") not in kinds and ("scalar" in dict(kinds))):
        said = f"{name}() gives something else each time or at each place, and a rule must keep the same rows always."
        raise HfsynError(said, "Leave it out.")
    if ("scalar", "CONSISTENT") not in kinds:
        raise HfsynError(f"{name}() does not say something of a single row.", _FORM)


def _joined_by_and(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if tree["type"] == "CONJUNCTION_AND":
        for child in tree["children"]:
            yield from _joined_by_and(child)
    else:
        yield tree


def _as_sql(connection: Any, part: Mapping[str, Any]) -> str:
    """One part of a condition as text."""
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"{_BEFORE}true"]).fetchone()
    whole = json.loads(text)
    whole["statements"][0]["node"]["where_clause"] = part
    (text,) = connection.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(whole)]).fetchone()
    found: str = text.partition(" WHERE ")[2]
    return found[1:-1] if found.startswith("(") and found.endswith(")") and _is_one(found) else found


def _is_one(text: str) -> bool:
    """Whether the first bracket of a text is closed by its last."""
    depth, quote = 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return place == len(text) - 1
    return False


def answer() -> int:
    """What the process of its own does: rows come in, and what the condition says of them goes out."""
    rows = pa.ipc.open_stream(sys.stdin.buffer.read()).read_all()
    where = rows.schema.metadata[b"where"].decode()
    if sys.platform == "linux":
        import resource

        import duckdb  # noqa: F401  # loaded before the limit, which is on addresses

        with open("/proc/self/statm") as statm:  # noqa: PTH123
            there = int(statm.read().split()[0]) * resource.getpagesize()
        most = there + _MEMORY + 8 * rows.nbytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        found = _evaluated(where, rows)
    except HfsynError as error:
        sys.stdout.write(json.dumps([error.message, error.hint]))
        return 2
    with pa.ipc.new_stream(sys.stdout.buffer, found.schema) as stream:
        stream.write_table(found)
    return 0
