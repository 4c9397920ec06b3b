"""Filters of the lists: comparisons joined by AND, a part of AIP-160.

    filter     = comparison { "AND" comparison }
    comparison = name [ "." key ] operator '"' value '"'
    key        = letters, digits, "_", "-" | "`" any characters but a backtick "`"

A filter becomes plain data; `server.store` makes SQL of it, with the values as
parameters.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from server.errors import FilterInvalid
from server.policy.attributes import ATTRIBUTE_NAME
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
_AND = re.compile(r"AND\s+")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True)
class Field:
    """What a filter may compare one name with."""

    operators: tuple[str, ...]
    key: re.Pattern[str] | None = None  # of `name.key`; None: the name stands alone
    time: bool = False  # the value is an RFC 3339 time


CONVERSATION_FIELDS = {
    "owner": Field(EQUALITY),
    "create_time": Field(ORDERING, time=True),
    "metadata": Field(EQUALITY, _METADATA_KEY),
    "attributes": Field(EQUALITY, ATTRIBUTE_NAME),
    "forked_from": Field(("=",)),
}
ITEM_FIELDS = {
    "type": Field(EQUALITY),
    "role": Field(EQUALITY),
    "status": Field(EQUALITY),
    "create_time": Field(ORDERING, time=True),
}


def parse(text: str, fields: dict[str, Field]) -> tuple[Comparison, ...]:
    """Returns the comparisons of ``text``, at most `MAX_COMPARISONS`; none for a blank text.

    Args:
        text: What the caller sent.
        fields: The names that may be compared, `CONVERSATION_FIELDS` or `ITEM_FIELDS`.

    Raises:
        FilterInvalid: With the first broken rule and its position, counted in characters from 0.
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
    """Returns the time in UTC.

    Raises:
        FilterInvalid: It is not RFC 3339, or not between the years 1 and 9999 in UTC.
    """
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
