"""Messages into JSON."""

import base64
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from . import free
from .shape import Field, Form, Many, Shape
from .text import Json, check, loads


def show(shape: Shape, message: Any) -> Json:
    """The JSON that ``message``, which is of ``shape``, stands for."""
    match shape.form:
        case Form.RECORD:
            return show_record(shape, message)
        case Form.UNION:
            return _show_union(shape, message)
        case Form.INLINE:
            return next(_show_field(each, message) for each in shape.fields.values())
        case Form.OPAQUE:
            return show_opaque(message.json)
        case Form.FREE:
            return free.show_value(message)
        case Form.FREE_OBJECT:
            return free.show_struct(message)


def show_record(shape: Shape, message: Any) -> dict[str, Json]:
    """A key per field, in the order of the schema."""
    shown: dict[str, Json] = {}
    for known in shape.fields.values():
        if not known.has_presence or message.HasField(known.name):
            value = _show_field(known, message)
            if value is not None or not known.names:  # an enum without a value has no key
                shown[known.name] = value
        elif known.null:
            shown[known.name] = None
    return shown


def show_opaque(text: bytes) -> Json:
    """The JSON in an `Opaque` or in `Item.json`; raises ItemJsonError when it is none."""
    value = loads(text)
    check(value)
    return value


def _show_union(shape: Shape, message: Any) -> Json:
    name = message.WhichOneof(shape.oneof)
    if name is None:
        return {}
    shown = _show_field(shape.fields[name], message)
    return {"type": name, **shown} if name in shape.by_type and isinstance(shown, dict) else shown


def _show_field(known: Field, message: Any) -> Json:
    value = getattr(message, known.name)
    match known.many:
        case Many.ONE:
            return _show_one(known, value)
        case Many.LIST:
            return [_show_one(known, each) for each in value]
        case Many.MAP:
            return {key: _show_one(known, value[key]) for key in sorted(value)}


def _show_one(known: Field, value: Any) -> Json:
    if known.shape:
        shown = show(known.shape, value)
        return {"type": known.type, **shown} if known.type and isinstance(shown, dict) else shown
    if known.kind == FieldDescriptor.CPPTYPE_ENUM:
        return known.names.get(value)
    if known.kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return free.show_number(value)
    shown_scalar: Json = base64.b64encode(value).decode() if known.is_bytes else value
    return shown_scalar
