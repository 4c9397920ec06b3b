"""JSON to messages. Never fails: JSON that has no field in the schema is left out.

`codec` finds what was left out by encoding the message again and comparing.
"""

import base64
import binascii
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from server.items import free_json
from server.items.shape import Cardinality, Field, Form, Shape
from server.items.text import Json, dumps

BITS = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}  # of an integer, without its sign


def fill(shape: Shape, message: Any, given: Json) -> None:
    """Sets the fields of ``message``, a message of ``shape``, from JSON."""
    match shape.form:
        case Form.RECORD:
            fill_record(shape, message, given)
        case Form.UNION:
            _fill_union(shape, message, given)
        case Form.INLINE:
            for each in shape.fields.values():
                _fill_field(each, message, given)
        case Form.OPAQUE:
            fill_opaque(message, given)
        case Form.FREE:
            free_json.fill_value(message, given)
        case Form.FREE_OBJECT:
            free_json.fill_struct(message, given)


def fill_record(shape: Shape, message: Message, given: Json) -> None:
    """Sets the field of the same name for each key of an object; ignores other keys."""
    if not isinstance(given, dict):
        return
    for key, value in given.items():
        field = shape.fields.get(key)
        if field and (value is not None or takes_null(field)):
            _fill_field(field, message, value)


def fill_opaque(message: Any, given: Json) -> None:
    """Stores the JSON as text, with its type beside it."""
    message.type, message.json = type_key(given), dumps(given)


def type_key(given: Json) -> str:
    """The `type` key of an object; '' where there is none."""
    if not isinstance(given, dict):
        return ""
    name = given.get("type")
    return name if isinstance(name, str) else ""


def takes_null(field: Field) -> bool:
    """Whether null is a value of this field; in other fields null means that the key is absent."""
    return field.shape is not None and field.shape.form is Form.FREE


def arm_for(shape: Shape, given: Json) -> Field | None:
    """The arm of a union that the JSON selects, by its `type` key or its JSON type; None for an unknown one."""
    if not isinstance(given, dict):
        return shape.by_json_type.get(type(given))
    name = given.get("type")
    return shape.by_type_key.get(name) if isinstance(name, str) else None


def _fill_union(shape: Shape, message: Message, given: Json) -> None:
    arm = arm_for(shape, given)
    if arm is None or (arm.shape is None and _scalar(arm, given) is None):
        arm = shape.unknown
    if arm:
        _fill_field(arm, message, given)


def _fill_field(field: Field, message: Message, given: Json) -> None:
    match field.cardinality:
        case Cardinality.SINGULAR if field.shape:
            part = getattr(message, field.name)
            part.SetInParent()
            fill(field.shape, part, given)
        case Cardinality.SINGULAR:
            value = _scalar(field, given)
            if value is not None:
                setattr(message, field.name, value)
        case Cardinality.REPEATED if isinstance(given, list):
            _fill_list(field, getattr(message, field.name), given)
        case Cardinality.MAP if isinstance(given, dict):
            _fill_map(field, getattr(message, field.name), given)


def _fill_list(field: Field, values: Any, given: list[Json]) -> None:
    for child in given:
        if field.shape:
            fill(field.shape, values.add(), child)
        elif (value := _scalar(field, child)) is not None:
            values.append(value)


def _fill_map(field: Field, values: Any, given: dict[str, Json]) -> None:
    for key, child in given.items():
        if field.shape:
            fill(field.shape, values[key], child)
        elif (value := _scalar(field, child)) is not None:
            values[key] = value


def _scalar(field: Field, given: Json) -> object:
    """The value to set a scalar field to; None where the JSON has another type than the field."""
    match given:
        case str() if field.enum_names:
            return field.enum_numbers.get(given)
        case str() if field.is_bytes:
            return _base64(given)
        case str() if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return given
        case bool():
            return given if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else None
        case int() | float():
            return _number(field.cpp_type, given)
        case _:
            return None


def _number(cpp_type: int, given: float) -> int | float | None:
    if cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return free_json.as_double(given)
    bits = BITS.get(cpp_type, 0)
    return given if isinstance(given, int) and bits and -(1 << bits) <= given < 1 << bits else None


def _base64(given: str) -> bytes | None:
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        return None
