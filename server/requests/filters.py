"""The filter language of the lists: comparisons joined by AND (AIP-160, a part of it).

    filter     = comparison { "AND" comparison }
    comparison = name [ "." key ] operator '"' value '"'
    key        = letters, digits, "_", "-" | "`" any characters but a backtick "`"

A filter is read into plain data; `server.store` makes SQL of it, with values as
parameters only.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from server.errors import FilterInvalid
from server.store.comparison import Comparison

MAX_COMPARISONS = 8
EQUALITY = ("=", "!=")
ORDERING = ("<", "<=", ">", ">=")

_TOKEN = re.compile(
    r"""(?:
        (?P<name>[a-z_]+)(?:\.(?:(?P<key>[A-Za-z0-9_-]+)|`(?P<quoted>[^`]+)`))?
        \s*(?P<operator>!=|<=|>=|=|<|>)
        \s*"(?P<value>(?:[^"\\]|\\["\\])*)"
    )\s*""",
    re.VERBOSE,
)
_METADATA_KEY = re.compile(r".+", re.DOTALL)
_ATTRIBUTE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # as in the contract; "=" would end it in the store
_AND = re.compile(r"AND\s+")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True)
class Field:
    """What a filter may say of one name."""

    operators: tuple[str, ...]
    key: re.Pattern[str] | None = None  # of `name.key`; None: the name stands alone
    time: bool = False  # the value is an RFC 3339 time


CONVERSATION_FIELDS = {
    "owner": Field(EQUALITY),
    "create_time": Field(ORDERING, time=True),
    "metadata": Field(EQUALITY, _METADATA_KEY),
    "attributes": Field(EQUALITY, _ATTRIBUTE_NAME),
}
ITEM_FIELDS = {
    "type": Field(EQUALITY),
    "role": Field(EQUALITY),
    "status": Field(EQUALITY),
    "create_time": Field(ORDERING, time=True),
}


def parse(text: str, fields: dict[str, Field]) -> tuple[Comparison, ...]:
    """The comparisons of ``text``; none for a blank one.

    Raises:
        FilterInvalid: Names the rule and the position.
    """
    comparisons: list[Comparison] = []
    position = len(text) - len(text.lstrip())
    while position < len(text):
        comparison, position = _comparison(text, position, fields)
        comparisons.append(comparison)
        if len(comparisons) > MAX_COMPARISONS:
            raise FilterInvalid(f"holds more than {MAX_COMPARISONS} comparisons", position)
        position = _conjunction(text, position)
    return tuple(comparisons)


def _comparison(text: str, position: int, fields: dict[str, Field]) -> tuple[Comparison, int]:
    match = _TOKEN.match(text, position)
    if not match:
        raise FilterInvalid('expected `name operator "value"`', position)
    name, operator = match["name"], match["operator"]
    key = match["key"] or match["quoted"] or ""
    field = fields.get(name)
    if field is None or not _fits(key, field.key):
        known = ", ".join(f"{name}.<key>" if f.key else name for name, f in fields.items())
        raise FilterInvalid(f"expected one of {known}", position)
    if operator not in field.operators:
        raise FilterInvalid(f"{name} takes {', '.join(field.operators)}", match.start("operator"))
    value = re.sub(r"\\(.)", r"\1", match["value"])
    if "\0" in value or "\0" in key:
        raise FilterInvalid("holds U+0000", match.start("value"))
    return Comparison(name, operator, key, _time(value, match.start("value")) if field.time else value), match.end()


def _fits(key: str, pattern: re.Pattern[str] | None) -> bool:
    return bool(pattern.fullmatch(key)) if pattern else not key


def _time(value: str, position: int) -> datetime:
    """The instant, in UTC; OverflowError is one that only its own offset keeps within the calendar."""
    if _RFC_3339.fullmatch(value):
        with suppress(ValueError, OverflowError):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    raise FilterInvalid("expected an RFC 3339 time with an offset", position)


def _conjunction(text: str, position: int) -> int:
    if position == len(text):
        return position
    match = _AND.match(text, position)
    if not match or not text[match.end() :].strip():
        raise FilterInvalid("expected AND and another comparison", position)
    return match.end()
