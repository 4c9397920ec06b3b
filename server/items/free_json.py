"""JSON of any form, such as tool arguments, to and from `google.protobuf.Value` and `Struct`."""

from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

from server.items.text import Json

# One level of JSON objects takes three levels of messages, and protobuf parses at most 100
# levels, including the messages around the item. Deeper JSON is kept in `Item.json` alone.
_MAX_DEPTH = 24
EXACT = 2**53  # beyond which an integer may not be a double


class FreeObject(dict[str, Json]):
    """Marks an object that `json_equal` compares as text."""


class FreeList(list[Json]):
    """Marks a list that `json_equal` compares as text."""


def fill_value(value: Value, given: Json) -> None:
    """Sets ``value`` to the JSON, or to null where the JSON is nested too deeply."""
    if _fits(given, _MAX_DEPTH):
        _fill(value, given)
    else:
        value.null_value = NULL_VALUE


def fill_struct(struct: Struct, given: Json) -> None:
    """Sets ``struct`` to a JSON object; leaves it empty for other JSON and for what is nested too deeply."""
    if isinstance(given, dict) and _fits(given, _MAX_DEPTH):
        for key, child in given.items():
            _fill(struct.fields[key], child)


def encode_value(value: Value) -> Json:
    """The JSON of ``value``."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return encode_struct(value.struct_value)
        case "list_value":
            return FreeList(encode_value(each) for each in value.list_value.values)
        case "number_value":
            return encode_number(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def encode_struct(struct: Struct) -> FreeObject:
    """The JSON of ``struct``, with sorted keys, since a protobuf map has no order."""
    return FreeObject((key, encode_value(struct.fields[key])) for key in sorted(struct.fields))


def encode_number(number: float) -> int | float | None:
    """An int where the double is one exactly, within 2^53; None for infinity and NaN, which JSON lacks."""
    if number.is_integer() and abs(number) <= EXACT:
        return int(number)
    return number if abs(number) < float("inf") else None


def as_double(given: float) -> float | None:
    """The nearest double; None where it would be infinite."""
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
