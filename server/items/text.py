"""JSON text: parsed, checked and written."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import NoReturn, TypeAlias, cast

from server.items.errors import ItemJsonError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

MAX_DEPTH = 100
MAX_VALUES = 100_000  # in one JSON text: bytes do not bound the work that small values make
_SMALL_BYTES = 16 * 1024  # too few for many values
# A string, closed or not, or a sign that a value follows. Possessive: no text is tried twice.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{,]', re.DOTALL)
# Python converts integers of at most 4300 decimal digits to text; 14,000 bits stay below that.
_MAX_BITS = 14_000
_SPACED_COLONS = (b" :", b"\t:", b"\n:", b"\r:")
_SMALL_NUMBER = 1e18
_SIMPLE = frozenset((str, bool, type(None)))


def loads(text: bytes | str) -> Json:
    """Parses JSON text. The value is not checked yet: see `check`.

    Raises:
        ItemJsonError: Not UTF-8, not JSON, a key twice in one object, more than `MAX_VALUES` values, or JSON that
            Python cannot parse.
    """
    _check_values(text)
    return _parse(text)


def _parse(text: bytes | str) -> Json:
    """Parses JSON text whose values have been counted; raises as `loads`."""
    try:
        value: Json = json.loads(_decoded(text), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        raise ItemJsonError("is not valid JSON") from None
    except RecursionError:
        raise ItemJsonError(f"is nested deeper than {MAX_DEPTH}") from None
    except ItemJsonError:
        raise
    except ValueError:  # int() beyond 4300 digits
        raise ItemJsonError("has a number that is too long") from None
    return value


def _check_values(text: bytes | str) -> None:
    """Checks how many values a text has, before any is made of it; stops counting at the limit.

    Raises:
        ItemJsonError: There are more than `MAX_VALUES`.
    """
    if len(text) <= _SMALL_BYTES:
        return
    text = text.encode() if isinstance(text, str) else text
    if sum(map(text.count, (b"[", b"{", b","))) < MAX_VALUES:
        return  # though some of them may stand inside of strings
    signs = (1 for match in _STRUCTURE.finditer(text) if match[0][0] != ord('"'))
    if next(islice(signs, MAX_VALUES - 1, None), None):
        raise ItemJsonError(f"has more than {MAX_VALUES} values")


def loads_checked(text: bytes) -> Json:
    """Parses JSON text and checks the value, as `loads` and `check` do; text without any oddity in one short walk.

    Raises:
        ItemJsonError: As they do.
    """
    _check_values(text)
    try:
        return _parse_plain(text)
    except _NotPlainError:
        value = _parse(text)
        check(value)
        return value


class _NotPlainError(Exception):
    """Text that is not certainly right."""


def _parse_plain(text: bytes) -> Json:
    """Parses text in which every key is followed by `":`, so that counting those tells whether one is repeated.

    Raises:
        _NotPlainError: It may be wrong.
    """
    if b"\\u" in text or any(map(text.__contains__, _SPACED_COLONS)):
        raise _NotPlainError
    try:
        value: Json = _DECODER.decode(text.decode())
    except (ValueError, RecursionError):
        raise _NotPlainError from None
    # In a string, `":` would be another one: then there are more than keys.
    if _count_keys(value) != text.count(b'":'):
        raise _NotPlainError
    return value


def _count_keys(value: Json) -> int:
    """Returns how many keys all objects in ``value`` have; goes down level by level, which takes no call for each.

    Raises:
        _NotPlainError: It is nested deeply, or has a number that is not small.
    """
    count, level = 0, [value]
    for _ in range(MAX_DEPTH):
        children: list[Json] = []
        for each in level:
            if type(each) is dict:
                count += len(each)
                children += each.values()
            elif type(each) is list:
                children += each
            elif type(each) not in _SIMPLE and not -_SMALL_NUMBER < cast("float", each) < _SMALL_NUMBER:
                raise _NotPlainError
        level = [child for child in children if type(child) not in _SIMPLE]
        if not level:
            return count
    raise _NotPlainError


def dumps(value: Json) -> bytes:
    """Compact JSON text in UTF-8, with the keys in the order of the dict."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def check(value: object, depth: int = 1) -> None:
    """Checks that JSON text, protobuf and other JSON parsers can carry the value.

    Raises:
        ItemJsonError: Nested deeper than `MAX_DEPTH`, lone surrogates, numbers that are not
            finite or have more digits than Python converts, or a Python type that JSON lacks.
    """
    match value:
        case str():
            _check_string(value)
        case None | bool():
            pass
        case int() | float():
            _check_number(value)
        case dict():
            for key in value:
                _check_key(key)
            _check_children(value.items(), depth)
        case list():
            _check_children(enumerate(value), depth)
        case _:
            raise ItemJsonError("is not a JSON value")


def _check_children(children: Iterable[tuple[str | int, object]], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ItemJsonError(f"is nested deeper than {MAX_DEPTH}")
    for step, child in children:
        try:
            check(child, depth + 1)
        except ItemJsonError as error:
            raise error.inside(step) from None


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise ItemJsonError("has a key that is not a string")
    _check_string(key)


def _check_number(value: float) -> None:
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise ItemJsonError("has a number that is too long")
    elif not math.isfinite(value):
        raise ItemJsonError("has a number that is not finite")


def _check_string(value: str) -> None:
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ItemJsonError("has a lone surrogate") from None


def _decoded(text: bytes | str) -> str:
    try:
        return text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError:
        raise ItemJsonError("is not UTF-8") from None


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """The object with these keys; JSON parsers disagree about which value a repeated key has (RFC 8259, section 4)."""
    value = dict(pairs)
    if len(value) < len(pairs):
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ItemJsonError("is twice in one object").inside(repeated)
    return value


def _refuse_constant(_: str) -> NoReturn:
    raise ItemJsonError("has a number that is not finite")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
