"""Free JSON in `google.protobuf.Value` and `Struct`, as far as those can hold it."""

from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

from .text import Json

# A JSON object costs three levels of messages and protobuf reads at most 100 of them,
# those around the item included. Deeper JSON is kept in `Item.json` alone.
_MAX_DEPTH = 24
_EXACT = 2**53


class FreeObject(dict[str, Json]):
    """An object whose order of keys counts when it is compared."""


class FreeList(list[Json]):
    """A list, compared like a `FreeObject`."""


def fill_value(value: Value, given: Json) -> None:
    """Puts ``given`` into ``value``; null where it is nested too deeply."""
    if _fits(given, _MAX_DEPTH):
        _fill(value, given)
    else:
        value.null_value = NULL_VALUE


def fill_struct(struct: Struct, given: Json) -> None:
    """Puts an object into ``struct``; leaves it empty where that can not hold it."""
    if isinstance(given, dict) and _fits(given, _MAX_DEPTH):
        for key, child in given.items():
            _fill(struct.fields[key], child)


def show_value(value: Value) -> Json:
    """The JSON in ``value``."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return show_struct(value.struct_value)
        case "list_value":
            return FreeList(show_value(each) for each in value.list_value.values)
        case "number_value":
            return show_number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def show_struct(struct: Struct) -> FreeObject:
    """The JSON in ``struct``, keys sorted: a map has no order to keep."""
    return FreeObject((key, show_value(struct.fields[key])) for key in sorted(struct.fields))


def show_number(number: float) -> int | float | None:
    """An integer where it is one exactly; null for what JSON has no number for."""
    if number.is_integer() and abs(number) <= _EXACT:
        return int(number)
    return number if abs(number) < float("inf") else None


def as_double(given: float) -> float | None:
    """The nearest double; none where there is none."""
    try:
        return float(given)
    except OverflowError:
        return None


def _fill(value: Value, given: Json) -> None:
    match given:
        case None:
            value.null_value = NULL_VALUE
        case bool():
            value.bool_value = given
        case int() | float():
            value.number_value = as_double(given) or 0.0
        case str():
            value.string_value = given
        case list():
            _fill_list(value, given)
        case dict():
            _fill_object(value, given)


def _fill_list(value: Value, given: list[Json]) -> None:
    value.list_value.SetInParent()
    for child in given:
        _fill(value.list_value.values.add(), child)


def _fill_object(value: Value, given: dict[str, Json]) -> None:
    value.struct_value.SetInParent()
    for key, child in given.items():
        _fill(value.struct_value.fields[key], child)


def _fits(given: Json, levels: int) -> bool:
    if not isinstance(given, dict | list):
        return True
    children = given.values() if isinstance(given, dict) else given
    return levels > 0 and all(_fits(child, levels - 1) for child in children)
