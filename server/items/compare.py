"""Equality of JSON values."""

from server.items.free_json import FreeList, FreeObject
from server.items.text import Json, dumps


def json_equal(given: Json, encoded: Json) -> bool:
    """Whether ``encoded``, a result of `encode`, loses nothing of ``given``.

    Free JSON is compared as text: the order of keys counts, and 1 differs from 1.0. In
    typed JSON the order of keys does not count and numbers are compared by value.
    """
    match encoded:
        case FreeObject() | FreeList():
            return dumps(given) == dumps(encoded)
        case dict():
            return isinstance(given, dict) and _equal_objects(given, encoded)
        case list():
            return isinstance(given, list) and _equal_lists(given, encoded)
        case bool():
            return given is encoded
        case _:
            return not isinstance(given, bool) and given == encoded


def _equal_objects(given: dict[str, Json], encoded: dict[str, Json]) -> bool:
    return given.keys() == encoded.keys() and all(json_equal(given[key], value) for key, value in encoded.items())


def _equal_lists(given: list[Json], encoded: list[Json]) -> bool:
    return len(given) == len(encoded) and all(map(json_equal, given, encoded))
