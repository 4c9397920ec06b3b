"""The form in which the OpenAI API stores what it is given in several."""

from collections.abc import Mapping

from .decode import arm_for, takes_null
from .errors import ItemJsonError
from .shape import Field, Form, Many, Shape, bodies
from .text import Json


def normal(given: dict[str, Json]) -> dict[str, Json]:
    """``given`` with its `type`, with parts for text, and without nulls that mean nothing.

    An item of a type that has no body here is left as it is.
    """
    if given.get("type") is None and given.get("role") is not None:
        given = {"type": "message", **{key: value for key, value in given.items() if key != "type"}}
    name = given.get("type")
    shape = bodies().get(name) if isinstance(name, str) else None
    if shape is None:
        return given
    if name == "message":
        given = _message(given)
    without = {key: value for key, value in given.items() if value is not None or key not in ("id", "status")}
    return _record(shape, without)


def _message(given: dict[str, Json]) -> dict[str, Json]:
    if given.get("role") is None:
        raise ItemJsonError("a message needs a role, such as assistant, developer, system or user")
    text = given.get("content")
    if not isinstance(text, str):
        return given
    part: dict[str, Json] = {"type": "input_text", "text": text}
    if given["role"] == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {**given, "content": [part]}


def _record(shape: Shape, given: dict[str, Json]) -> dict[str, Json]:
    return {
        key: _field(shape.fields[key], value) if key in shape.fields else value
        for key, value in given.items()
        if value is not None or _keeps_null(shape.fields, key)
    }


def _keeps_null(fields: Mapping[str, Field], key: str) -> bool:
    # Null under a key that this schema does not know may mean something.
    return key not in fields or fields[key].null or takes_null(fields[key])


def _field(known: Field, given: Json) -> Json:
    if known.shape is None:
        return given
    if known.many is Many.LIST and isinstance(given, list):
        return [_value(known.shape, each) for each in given]
    if known.many is Many.MAP and isinstance(given, dict):
        return {key: _value(known.shape, each) for key, each in given.items()}
    return _value(known.shape, given) if known.many is Many.ONE else given


def _value(shape: Shape, given: Json) -> Json:
    if shape.form is Form.RECORD and isinstance(given, dict):
        return _record(shape, given)
    if shape.form is Form.INLINE:
        return _field(next(iter(shape.fields.values())), given)
    if shape.form is Form.UNION and (arm := arm_for(shape, given)):
        return _field(arm, given)
    return given
