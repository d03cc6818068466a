"""YAML read strictly, by the core schema of YAML 1.2, and written so that YAML 1.1 reads it equally.

`no` and `off` are texts, as are 4:4:4 and dates; 1e-3 is a number; keys are always texts. Duplicate keys, tags,
directives, several documents, numbers that are not finite, control characters, and excessive depth, bytes, digits or
aliases are refused, with line and column.
"""

import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from builders.errors import DataError, near_path

MOST_BYTES = 32 << 20  # a class map of 100,000 classes has 10 to 20 MB
MOST_DEPTH = 64
_TOO_DEEP = f"this is nested more than {MOST_DEPTH} levels deep"
MOST_DIGITS = 400  # the largest double has 309
MOST_COPIED = 100_000  # values that all aliases together may repeat

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # control characters and surrogates
_FRONT = re.compile(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?(?:\n|$)", re.DOTALL)
_MERGE = "<<"


def is_yaml_name(name: str) -> bool:
    """Whether a text is the name of a YAML file."""
    return name.endswith((".yaml", ".yml"))


def load(text: str, where: str, *, above: int | None = 0, finite: bool = True) -> Any:
    """The value of a YAML text, which may be empty; messages call it `where`.

    `above` is the number of lines above it in its file; None omits line numbers. `finite` refuses .inf and .nan. Raises
    DataError, with line and column, for invalid YAML and for what is not supported here.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    reading = _Reading(text, where, above, finite)
    try:
        return reading.document(_parser().parse(text))
    except MarkedYAMLError as error:
        said = error.problem or error.context or "it cannot be read"
        raise reading.fault(said, error.problem_mark or error.context_mark) from None
    except ReaderError as error:
        line = "" if above is None else f", line {text.count(chr(10), 0, error.position) + 1 + above}"
        raise _fault(f"{where}{line}", f"the character {error.character:#04x} is not allowed") from None
    except (YAMLError, ValueError, OverflowError, IndexError, AssertionError):  # bugs of the parser
        raise reading.fault("what follows is not YAML", reading.mark) from None


def _parser() -> Any:
    """A parser of ruamel.yaml, which is imported only when needed."""
    from ruamel.yaml import YAML
    from ruamel.yaml.scanner import Scanner, ScannerError

    class Shallow(Scanner):
        """Limits the depth of brackets early, as scanning them takes quadratic time."""

        def fetch_flow_collection_start(self, *given: Any, **named: Any) -> None:
            if self.flow_level > MOST_DEPTH:
                raise ScannerError(None, None, _TOO_DEEP, self.reader.get_mark())
            super().fetch_flow_collection_start(*given, **named)

    found = YAML(typ="safe", pure=True)
    found.Scanner = Shallow
    return found


class _Reading:
    """Converts the events of a text to values."""

    def __init__(self, text: str, where: str, above: int | None, finite: bool) -> None:
        self.text, self.where, self.above, self.finite = text, where, above, finite
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.mark: Any = None
        self.count = self.copied = 0

    def fault(self, problem: str, mark: Any) -> DataError:
        """The error at a place."""
        at = ""
        if mark is not None and self.above is not None:
            at = f", line {mark.line + 1 + self.above}, column {mark.column + 1}"
        return _fault(f"{self.where}{at}", problem)

    def document(self, events: Iterator[Any]) -> Any:
        """The one document of a stream of events."""
        from ruamel.yaml import events as kinds

        self.kinds = kinds
        next(events)  # the start of the stream
        start = next(events)
        if isinstance(start, kinds.StreamEndEvent):
            return None
        if start.explicit and re.search("^%", self.text[: start.start_mark.index], re.MULTILINE):
            raise self.fault("directives (%YAML, %TAG) are not read here: leave the line out", start.start_mark)
        value = self.value(next(events), events, 0)
        next(events)  # the end of the document
        if not isinstance(after := next(events), kinds.StreamEndEvent):
            raise self.fault("another document begins here: a file holds one", after.start_mark)
        return value

    def value(self, event: Any, events: Iterator[Any], depth: int) -> Any:
        """The value that begins with an event."""
        self.mark = event.start_mark
        if isinstance(event, self.kinds.AliasEvent):
            return self.copy(event)
        if event.tag is not None:
            raise self.fault(f"the tag {str(event.tag)[:60]!r} is not read here: leave it out", event.start_mark)
        if depth > MOST_DEPTH:
            raise self.fault(_TOO_DEEP, event.start_mark)
        before = self.count
        self.count += 1
        if isinstance(event, self.kinds.ScalarEvent):
            found = self.scalar(event)
        elif isinstance(event, self.kinds.SequenceStartEvent):
            found = []
            while not isinstance(inner := next(events), self.kinds.SequenceEndEvent):
                found.append(self.value(inner, events, depth + 1))
        else:
            found = self.mapping(events, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = (found, self.count - before)
        return found

    def mapping(self, events: Iterator[Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(key := next(events), self.kinds.MappingEndEvent):
            if not isinstance(key, self.kinds.ScalarEvent) or key.tag is not None:
                raise self.fault("a key must be a plain text", key.start_mark)
            if key.value in found or (key.value == _MERGE and merged):
                raise self.fault(f"the key {key.value!r} is defined twice", key.start_mark)
            self.check_text(key)
            value = self.value(next(events), events, depth + 1)
            if key.value == _MERGE and key.style is None:
                merged = self.merge(value, key)
            else:
                found[key.value] = value
        return {**merged, **found}

    def merge(self, value: Any, key: Any) -> dict[str, Any]:
        """The content of ``<<``: of several mappings, the first one with a key has precedence."""
        sources = value if isinstance(value, list) else [value]
        if not sources or not all(isinstance(source, dict) for source in sources):
            raise self.fault("<< takes a mapping, or a list of them", key.start_mark)
        return {name: of for source in reversed(sources) for name, of in source.items()}

    def copy(self, event: Any) -> Any:
        """A copy of an anchor's value."""
        if event.anchor not in self.anchors:
            raise self.fault(f"the alias {event.anchor!r} has no complete anchor above", event.start_mark)
        value, size = self.anchors[event.anchor]
        self.copied += size
        self.count += size
        if self.copied > MOST_COPIED:
            raise self.fault(f"aliases repeat more than {MOST_COPIED:,} values", event.start_mark)
        return deepcopy(value)

    def scalar(self, event: Any) -> Any:
        text = event.value
        if event.style is not None:
            self.check_text(event)
            return text
        if text in _WORDS:
            return _WORDS[text]
        if not (integer := _INTEGER.fullmatch(text)) and not _FLOAT.fullmatch(text):
            if self.finite and _NOT_FINITE.fullmatch(text):
                raise self.fault(f"{text} is not a finite number; put quotes around a text", event.start_mark)
            return float(text.replace(".", "", 1)) if _NOT_FINITE.fullmatch(text) else text
        if len(text) > MOST_DIGITS:
            raise self.fault(f"a number of {len(text):,} digits is too long", event.start_mark)
        if integer:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        number = float(text)
        if self.finite and not math.isfinite(number):
            raise self.fault(f"{text} is too large for a number", event.start_mark)
        return number

    def check_text(self, event: Any) -> None:
        if found := NOT_TEXT.search(event.value):  # double quotes allow escapes
            raise self.fault(f"the character {ord(found[0]):#04x} is not allowed", event.start_mark)


def _fault(place: str, problem: str) -> DataError:
    return DataError(f"{place}: {' '.join(problem.split())}.")


def load_mapping(text: str, where: str, what: str) -> dict[str, Any]:
    """The mapping in a YAML text; `what` it is for a message: ``recipe``, ``matrix``, ...

    Raises DataError as `load`, or if it is not a mapping.
    """
    found = load(text, where)
    if isinstance(found, dict):
        return found
    said = "is empty" if found is None else f"holds a {'list' if isinstance(found, list) else 'single value'}"
    raise DataError(f"{where} {said}, and a {what} is a mapping.", "It consists of lines such as `key: value`.")


def load_file(file: str | Path, what: str, hint: str) -> dict[str, Any]:
    """The mapping in a user's YAML file. Raises DataError as `read_text` and `load_mapping`."""
    return load_mapping(read_text(file, what, hint), str(file), what)


def read_text(file: str | Path, what: str, hint: str) -> str:
    """The text of a file that a user named; ``~`` is the home folder.

    Raises DataError, with `what` it should be and a `hint` how to get one, if there is no such file, or if it cannot be
    read, is too large, or is not UTF-8.
    """
    path = Path(file).expanduser()
    try:
        if path.is_dir():
            raise DataError(f"{file} is a folder, and a {what} is a file.", hint)
        if not path.is_file():
            missing = f"There is no {what} file {file}.{near_path(file)}"
            said = f"{file} is not a regular file." if path.exists() else missing
            raise DataError(said, hint)
        with path.open("rb") as handle:
            data = handle.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"The {what} {file} cannot be read: {error.strerror}.", "Name another, or allow it.") from None
    except ValueError:  # a NUL in the name
        raise DataError(f"There is no {what} file {str(file)!r}.", hint) from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{file} is larger than {MOST_BYTES >> 20} MB, the most that a {what} may have.", hint)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file} is UTF-16 text.", "Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        said = f"{file} is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}."
        raise DataError(said, "Save it as UTF-8.") from None


def front_matter(card: str, where: str) -> dict[str, Any]:
    """The front matter of a card (README.md), if it has any. Raises DataError as `load_mapping`."""
    found = _FRONT.match(card)
    value = load(found[1], where, above=card.count("\n", 0, found.start(1)), finite=False) if found else None
    if value is not None and not isinstance(value, dict):
        raise DataError(f"The front matter of {where} is not a mapping.", "It consists of lines such as `key: value`.")
    return value or {}


def compose(text: str) -> Any:
    """The nodes of a text that `load` has accepted, with their positions."""
    return _parser().compose(text)


_PLAIN = re.compile(r"""(?:[^\W_](?:[^:#?,\[\]{}"]|:(?=[^\s,\[\]{}])|(?<! )\#)*|[./_~][\w./~-]*)(?<! )""")
"""Texts that need no quotes, unless they match `_OTHERWISE`."""
_OTHERWISE = re.compile(
    r"[-+]?[\d_]*(\.[\d_]*)?(e[-+]?\d+)?|[-+]?0[xob][\da-f_]*|[-+]?\d[\d_]*(:[\d_]+)+(\.[\d_]*)?|\d{4}-\d\d?-\d\d?.*"
    r"|[-+]?\.(inf|nan)|y|n|yes|no|on|off|true|false|null|none|~",
    re.IGNORECASE,
)
"""Numbers, dates, true, false and null in YAML 1.1 or 1.2."""
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def dump(value: Any) -> str:
    """A mapping or a list as YAML, one value per line, in the order of the keys."""
    return "".join(f"{line}\n" for line in _lines(value))


def dump_flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_scalar(str(key))}: {dump_flow(of)}' for key, of in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(dump_flow, value))}]"
    return _scalar(value)


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, of in value.items():
            name, nested = _scalar(str(key)), isinstance(of, Mapping | list | tuple) and of
            if not nested:
                yield f"{name}: {dump_flow(of)}"
            else:
                yield f"{name}:"
                yield from (f"  {line}" if isinstance(of, Mapping) else line for line in _lines(of))
    elif isinstance(value, list | tuple) and value:
        for item in value:
            yield from (f"{'- ' if not number else '  '}{line}" for number, line in enumerate(_lines(item)))
    else:
        yield dump_flow(value)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML 1.1 asks for the dot
    if isinstance(value, int):
        return repr(value)
    text = str(value)
    if text.isprintable() and _PLAIN.fullmatch(text) and not _OTHERWISE.fullmatch(text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else _escape(c)) for c in text) + '"'


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
