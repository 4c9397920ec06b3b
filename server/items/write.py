"""Items to JSON text: what `dumps(to_json(item))` gives, without the objects in between.

A list of twenty items takes a third of the time. One function is made for each shape, once.
"""

from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, TypeAlias

from conversations.v1.item_pb2 import Item
from conversations.v1.item_status_pb2 import ItemStatus
from google.protobuf.descriptor import FieldDescriptor

from server.items.codec import to_json
from server.items.encode import encode, encode_one
from server.items.shape import Cardinality, Field, Form, Shape, body_shapes, enum_names
from server.items.text import dumps

_Write: TypeAlias = Callable[[Any], str]
_Append: TypeAlias = Callable[[Any, list[str]], None]  # appends `,"key":value` of a message, or nothing

_STATUSES = {number: f',"status":"{name}"' for number, name in enum_names(ItemStatus.DESCRIPTOR).items()}


def write_item(item: Item) -> str:
    """Returns the item as OpenAI JSON; raises as `to_json`."""
    name = item.WhichOneof("body")
    if item.json or name is None or name == "unknown":
        return dumps(to_json(item)).decode()
    parts = [f'{{"type":"{name}"']
    if item_id := item.id:
        parts.append(f',"id":{encode_basestring(item_id)}')
    if status := item.status:
        parts.append(_STATUSES.get(status, ""))
    message = getattr(item, name)
    for append in _BODIES[name]:
        append(message, parts)
    parts.append("}")
    return "".join(parts)


def _appends(shape: Shape) -> list[_Append]:
    return [_append(field) for field in shape.fields.values()]


def _append(field: Field) -> _Append:
    name, key, write = field.name, f',"{field.name}":', _writer(field)
    unset = f"{key}null" if field.null_when_unset else ""

    def append_present(message: Any, parts: list[str]) -> None:
        if message.HasField(name):
            if text := write(getattr(message, name)):
                parts.append(key + text)
        elif unset:
            parts.append(unset)

    def append(message: Any, parts: list[str]) -> None:
        if text := write(getattr(message, name)):
            parts.append(key + text)

    return append_present if field.has_presence else append


def _writer(field: Field) -> _Write:
    """Returns what writes the value of a field; '' for an enum without a value, which has no key."""
    one = _writer_of_one(field)
    match field.cardinality:
        case Cardinality.SINGULAR:
            return one
        case Cardinality.REPEATED:
            if field.enum_names:
                one = _or_null(one)
            return lambda values: f"[{','.join([one(each) for each in values])}]" if values else "[]"
        case Cardinality.MAP:
            return lambda values: (
                f"{{{','.join([f'{encode_basestring(key)}:{one(values[key])}' for key in sorted(values)])}}}"
            )


def _or_null(write: _Write) -> _Write:
    return lambda value: write(value) or "null"


def _writer_of_one(field: Field) -> _Write:
    if field.shape:
        return _writer_of_shape(field.shape, field.type_key)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        names = {number: f'"{name}"' for number, name in field.enum_names.items()}
        return lambda value: names.get(value, "")
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not field.is_bytes:
        return encode_basestring
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return lambda value: "true" if value else "false"
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE or field.is_bytes:
        return lambda value: dumps(encode_one(field, value)).decode()
    return str


def _writer_of_shape(shape: Shape, type_key: str) -> _Write:
    match shape.form:
        case Form.RECORD:
            return _writer_of_record(shape, type_key)
        case Form.UNION:
            return _writer_of_union(shape)
        case Form.INLINE:
            (field,) = shape.fields.values()
            name, write = field.name, _writer(field)
            return lambda message: write(getattr(message, name))
    return lambda message: dumps(encode(shape, message)).decode()


def _writer_of_record(shape: Shape, type_key: str) -> _Write:
    appends = _appends(shape)
    head = f'{{"type":"{type_key}"' if type_key else "{"

    def write(message: Any) -> str:
        parts = [head]
        for append in appends:
            append(message, parts)
        if not type_key and len(parts) > 1:
            parts[1] = parts[1][1:]  # the first key has no comma in front
        parts.append("}")
        return "".join(parts)

    return write


def _writer_of_union(shape: Shape) -> _Write:
    arms: dict[str, _Write] = {}
    for name, field in shape.fields.items():
        if name in shape.by_type_key and field.shape:
            arms[name] = _writer_of_record(field.shape, name)
        else:
            arms[name] = _writer(field)
    oneof = shape.oneof

    def write(message: Any) -> str:
        name = message.WhichOneof(oneof)
        return arms[name](getattr(message, name)) if name else "{}"

    return write


_BODIES = {name: _appends(shape) for name, shape in body_shapes().items()}
