"""The one form that the OpenAI API stores items in, from the several that it accepts."""

from collections.abc import Mapping

from server.items.decode import arm_for, takes_null
from server.items.errors import RoleMissing
from server.items.shape import Cardinality, Field, Form, Shape, body_shapes
from server.items.text import Json

EMPTY_IF_ABSENT = ("annotations", "logprobs")  # the API fills these in


def normalize(given: dict[str, Json]) -> dict[str, Json]:
    """The item with its `type`, with content parts instead of text, and without nulls that mean "absent".

    An item whose type has no typed body is returned unchanged.

    Raises:
        RoleMissing: A message without a role.
    """
    if given.get("type") is None and given.get("role") is not None:
        given = {"type": "message", **{key: value for key, value in given.items() if key != "type"}}
    name = given.get("type")
    shape = body_shapes().get(name) if isinstance(name, str) else None
    if shape is None:
        return given
    if name == "message":
        given = _normalize_message(given)
    present = {key: value for key, value in given.items() if value is not None or key not in ("id", "status")}
    return _normalize_record(shape, present)


def _normalize_message(given: dict[str, Json]) -> dict[str, Json]:
    if given.get("role") is None:
        raise RoleMissing("a message needs a role, such as assistant, developer, system or user")
    text = given.get("content")
    if not isinstance(text, str):
        return given
    part: dict[str, Json] = {"type": "input_text", "text": text}
    if given["role"] == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {**given, "content": [part]}


def with_empty_lists(given: dict[str, Json]) -> dict[str, Json]:
    """The normalized item with the lists that the OpenAI API fills into parts of messages which lack them."""
    content = given.get("content")
    if given.get("type") != "message" or not isinstance(content, list):
        return given
    return {**given, "content": [_with_empty_lists_of_part(part) for part in content]}


def _with_empty_lists_of_part(part: Json) -> Json:
    if not isinstance(part, dict) or part.get("type") != "output_text":
        return part
    absent: dict[str, Json] = {key: [] for key in EMPTY_IF_ABSENT if part.get(key) is None}
    return {**part, **absent} if absent else part


def _normalize_record(shape: Shape, given: dict[str, Json]) -> dict[str, Json]:
    return {
        key: _normalize_field(shape.fields[key], value) if key in shape.fields else value
        for key, value in given.items()
        if value is not None or _keeps_null(shape.fields, key)
    }


def _keeps_null(fields: Mapping[str, Field], key: str) -> bool:
    # The schema cannot say what null means under a key that it does not have.
    return key not in fields or fields[key].null_when_unset or takes_null(fields[key])


def _normalize_field(field: Field, given: Json) -> Json:
    if field.shape is None:
        return given
    if field.cardinality is Cardinality.REPEATED and isinstance(given, list):
        return [_normalize_value(field.shape, each) for each in given]
    if field.cardinality is Cardinality.MAP and isinstance(given, dict):
        return {key: _normalize_value(field.shape, each) for key, each in given.items()}
    return _normalize_value(field.shape, given) if field.cardinality is Cardinality.SINGULAR else given


def _normalize_value(shape: Shape, given: Json) -> Json:
    if shape.form is Form.RECORD and isinstance(given, dict):
        return _normalize_record(shape, given)
    if shape.form is Form.INLINE:
        return _normalize_field(next(iter(shape.fields.values())), given)
    if shape.form is Form.UNION and (arm := arm_for(shape, given)):
        return _normalize_field(arm, given)
    return given
