"""JSON as text: read, checked and written."""

import json
import math
from collections.abc import Iterable
from typing import NoReturn, TypeAlias

from .errors import ItemJsonError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

MAX_DEPTH = 100
# Python prints integers of at most 4300 digits; 14,000 bits are fewer.
_MAX_BITS = 14_000


def loads(text: bytes | str) -> Json:
    """The value of a JSON text; not yet checked, see `check`."""
    try:
        value: Json = json.loads(_decoded(text), parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        raise ItemJsonError("is not valid JSON") from None
    except RecursionError:
        raise ItemJsonError(f"is nested deeper than {MAX_DEPTH}") from None
    except ItemJsonError:
        raise
    except ValueError:  # int() beyond 4300 digits
        raise ItemJsonError("has a number that is too long") from None
    return value


def dumps(value: Json) -> bytes:
    """Compact UTF-8 with the keys in the order they have."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def check(value: object, depth: int = 1) -> None:
    """Refuses what JSON text, protobuf or a reader further on could not carry."""
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


def _refuse_constant(_: str) -> NoReturn:
    raise ItemJsonError("has a number that is not finite")
