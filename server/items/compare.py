"""Whether two JSON values are the same."""

from .free import FreeList, FreeObject
from .text import Json, dumps


def same(given: Json, shown: Json) -> bool:
    """Whether ``shown``, which `encode` made, says what ``given`` says.

    Free JSON must be the same text, with its order of keys and 1 apart from 1.0; in
    the rest order means nothing, and numbers are equal when their values are.
    """
    match shown:
        case FreeObject() | FreeList():
            return dumps(given) == dumps(shown)
        case dict():
            return isinstance(given, dict) and _same_objects(given, shown)
        case list():
            return isinstance(given, list) and _same_lists(given, shown)
        case bool():
            return given is shown
        case _:
            return not isinstance(given, bool) and given == shown


def _same_objects(given: dict[str, Json], shown: dict[str, Json]) -> bool:
    return given.keys() == shown.keys() and all(same(given[key], value) for key, value in shown.items())


def _same_lists(given: list[Json], shown: list[Json]) -> bool:
    return len(given) == len(shown) and all(map(same, given, shown))
