"""JSON into messages: as much as they have places for, and never an error.

What did not find a place shows when the message is encoded again; see `codec`.
"""

import base64
import binascii
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from . import free
from .shape import Field, Form, Many, Shape
from .text import Json, dumps

_BITS = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}


def fill(shape: Shape, message: Any, given: Json) -> None:
    """Puts into ``message``, which is of ``shape``, what it can hold of ``given``."""
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
            free.fill_value(message, given)
        case Form.FREE_OBJECT:
            free.fill_struct(message, given)


def fill_record(shape: Shape, message: Message, given: Json) -> None:
    """The object's known keys into the fields of the same names."""
    if not isinstance(given, dict):
        return
    for key, value in given.items():
        known = shape.fields.get(key)
        if known and (value is not None or takes_null(known)):
            _fill_field(known, message, value)


def fill_opaque(message: Any, given: Json, name: str = "") -> None:
    """``given`` as it is, under its own `type` or else under ``name``."""
    own = given.get("type") if isinstance(given, dict) else None
    message.type = own if isinstance(own, str) else name
    message.json = dumps(given)


def takes_null(known: Field) -> bool:
    """Whether null is a value of the field, and not another way of leaving it out."""
    return known.shape is not None and known.shape.form is Form.FREE


def arm_for(shape: Shape, given: Json) -> Field | None:
    """The arm of a union that ``given`` belongs to."""
    if not isinstance(given, dict):
        return shape.by_kind.get(type(given))
    name = given.get("type")
    return shape.by_type.get(name) if isinstance(name, str) else None


def _fill_union(shape: Shape, message: Message, given: Json) -> None:
    arm = arm_for(shape, given)
    if arm is None or (arm.shape is None and _scalar(arm, given) is None):
        arm = shape.unknown
    if arm:
        _fill_field(arm, message, given)


def _fill_field(known: Field, message: Message, given: Json) -> None:
    match known.many:
        case Many.ONE if known.shape:
            part = getattr(message, known.name)
            part.SetInParent()
            fill(known.shape, part, given)
        case Many.ONE:
            value = _scalar(known, given)
            if value is not None:
                setattr(message, known.name, value)
        case Many.LIST if isinstance(given, list):
            _fill_list(known, getattr(message, known.name), given)
        case Many.MAP if isinstance(given, dict):
            _fill_map(known, getattr(message, known.name), given)


def _fill_list(known: Field, values: Any, given: list[Json]) -> None:
    for child in given:
        if known.shape:
            fill(known.shape, values.add(), child)
        elif (value := _scalar(known, child)) is not None:
            values.append(value)


def _fill_map(known: Field, values: Any, given: dict[str, Json]) -> None:
    for key, child in given.items():
        if known.shape:
            fill(known.shape, values[key], child)
        elif (value := _scalar(known, child)) is not None:
            values[key] = value


def _scalar(known: Field, given: Json) -> object:
    """What the field would be set to; none where the JSON is of another kind."""
    match given:
        case str() if known.names:
            return known.numbers.get(given)
        case str() if known.is_bytes:
            return _base64(given)
        case str() if known.kind == FieldDescriptor.CPPTYPE_STRING:
            return given
        case bool():
            return given if known.kind == FieldDescriptor.CPPTYPE_BOOL else None
        case int() | float():
            return _number(known.kind, given)
        case _:
            return None


def _number(kind: int, given: float) -> int | float | None:
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return free.as_double(given)
    bits = _BITS.get(kind, 0)
    return given if isinstance(given, int) and bits and -(1 << bits) <= given < 1 << bits else None


def _base64(given: str) -> bytes | None:
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        return None
