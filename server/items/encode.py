"""Messages to JSON."""

import base64
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from server.items import free_json
from server.items.shape import Cardinality, Field, Form, Shape
from server.items.text import Json, check, loads


def encode(shape: Shape, message: Any) -> Json:
    """The JSON of ``message``, a message of ``shape``."""
    match shape.form:
        case Form.RECORD:
            return encode_record(shape, message)
        case Form.UNION:
            return _encode_union(shape, message)
        case Form.INLINE:
            return next(_encode_field(each, message) for each in shape.fields.values())
        case Form.OPAQUE:
            return parse_opaque(message.json)
        case Form.FREE:
            return free_json.encode_value(message)
        case Form.FREE_OBJECT:
            return free_json.encode_struct(message)


def encode_record(shape: Shape, message: Any) -> dict[str, Json]:
    """An object with a key per set field, in the order of the schema."""
    encoded: dict[str, Json] = {}
    for field in shape.fields.values():
        if not field.has_presence or message.HasField(field.name):
            value = _encode_field(field, message)
            if value is not None or not field.enum_names:  # an enum without a value has no key
                encoded[field.name] = value
        elif field.null_when_unset:
            encoded[field.name] = None
    return encoded


def parse_opaque(text: bytes) -> Json:
    """The JSON value in `Opaque.json` or `Item.json`.

    Raises:
        ItemJsonError: The text is not JSON, or is JSON that `check` refuses.
    """
    value = loads(text)
    check(value)
    return value


def _encode_union(shape: Shape, message: Any) -> Json:
    name = message.WhichOneof(shape.oneof)
    if name is None:
        return {}
    encoded = _encode_field(shape.fields[name], message)
    return {"type": name, **encoded} if name in shape.by_type_key and isinstance(encoded, dict) else encoded


def _encode_field(field: Field, message: Any) -> Json:
    value = getattr(message, field.name)
    match field.cardinality:
        case Cardinality.SINGULAR:
            return encode_one(field, value)
        case Cardinality.REPEATED:
            return [encode_one(field, each) for each in value]
        case Cardinality.MAP:
            return {key: encode_one(field, value[key]) for key in sorted(value)}


def encode_one(field: Field, value: Any) -> Json:
    """The JSON of one value of a field: of an element where the field is a list or a map."""
    if field.shape:
        encoded = encode(field.shape, value)
        return {"type": field.type_key, **encoded} if field.type_key and isinstance(encoded, dict) else encoded
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return field.enum_names.get(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return free_json.encode_number(value)
    scalar: Json = base64.b64encode(value).decode() if field.is_bytes else value
    return scalar
