"""A fast path from JSON to items: one walk for items that the schema has a place for as a whole.

`codec` normalizes, looks for misfits, fills, and encodes again to find what was lost: four walks. Most items need none
of that, because each of their keys and values has a field. The walk here fills a message from such an item, and gives
up at the first key or value that it is not certain of; then `codec` decides. It may give up for no reason, but what it
returns is what `codec` would return.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from conversations.v1.item_pb2 import Item
from conversations.v1.item_status_pb2 import ItemStatus
from google.protobuf.descriptor import FieldDescriptor

from server.items.decode import BITS, takes_null
from server.items.free_json import EXACT
from server.items.shape import Cardinality, Field, Form, Shape, body_shapes, enum_names, has_status
from server.items.text import Json

# Puts a value into a message; False if it is not certain that nothing is lost.
_Put: TypeAlias = Callable[[Any, Any], bool]

_STATUSES = {name: number for number, name in enum_names(ItemStatus.DESCRIPTOR).items()}


def fill_plain(item: Item, document: dict[str, Json]) -> bool:
    """Makes an empty item what `codec` makes of a checked document.

    Returns:
        Whether that is certain; if it is not, the item is left as anything.
    """
    name = document.get("type")
    if name is None and "role" in document:
        name = "message"
    body = _BODIES.get(name) if isinstance(name, str) else None
    if body is None:
        return False
    message = getattr(item, str(name))
    message.SetInParent()
    return body(item, message, document)


def _put_id(item: Item, value: Json) -> bool:
    if isinstance(value, str) and value:
        item.id = value
        return True
    return value is None


def _put_status(item: Item, value: Json) -> bool:
    number = _STATUSES.get(value) if type(value) is str else None
    if number is not None:
        item.status = ItemStatus.ValueType(number)
        return True
    return value is None


def _body(name: str, shape: Shape) -> Callable[[Item, Any, dict[str, Json]], bool]:
    puts, needed, nullable = _puts(shape)
    puts["type"] = lambda _, value: bool(value == name)
    nullable.add("type")
    ours: dict[str, _Put] = {"id": _put_id}
    if has_status(name):
        ours["status"] = _put_status
    if name == "message":
        puts["content"] = _message_content(puts["content"])

    def put(item: Item, message: Any, given: dict[str, Json]) -> bool:
        if not given.keys() >= needed:
            return False
        for key, value in given.items():
            if known := puts.get(key):
                if not (key in nullable if value is None else known(message, value)):
                    return False
            elif not ((own := ours.get(key)) and own(item, value)):
                return False
        return name != "message" or given.get("role") is not None

    return put


def _message_content(parts: _Put) -> _Put:
    """Content may be text, which stands for one part: of output if the role, which comes first, is the assistant's."""

    def put(message: Any, value: Json) -> bool:
        if type(value) is not str:
            return parts(message, value)
        if message.role == _ASSISTANT:
            message.content.add().output_text.text = value
        elif message.role:
            message.content.add().input_text.text = value
        else:
            return False
        return True

    return put


def _puts(shape: Shape) -> tuple[dict[str, _Put], set[str], set[str]]:
    """Returns what puts the value of each key, the keys that have to be there, and those whose null means nothing."""
    fields = shape.fields.values()
    puts = {field.name: _put(field) for field in fields}
    needed = {field.name for field in fields if field.null_when_unset or _is_always_shown(field)}
    nullable = {field.name for field in fields if not (_is_always_shown(field) or takes_null(field))}
    return puts, needed, nullable


def _is_always_shown(field: Field) -> bool:
    return not (field.has_presence or field.cpp_type == FieldDescriptor.CPPTYPE_ENUM)


def _put(field: Field) -> _Put:
    match field.cardinality:
        case Cardinality.REPEATED:
            return _put_list(field)
        case Cardinality.MAP:
            return _put_map(field)
        case Cardinality.SINGULAR:
            return _put_message(field, field.type_key) if field.shape else _put_scalar(field)


def _put_scalar(field: Field) -> _Put:
    name = field.name
    if field.enum_numbers:
        numbers = field.enum_numbers

        def put_enum(message: Any, given: Any) -> bool:
            number = numbers.get(given) if type(given) is str else None
            if number is None:
                return False
            setattr(message, name, number)
            return True

        return put_enum
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not field.is_bytes:

        def put_text(message: Any, given: Any) -> bool:
            if type(given) is not str:
                return False
            setattr(message, name, given)
            return True

        return put_text
    fits = _fits(field)

    def put(message: Any, given: Any) -> bool:
        if not fits(given):
            return False
        setattr(message, name, given)
        return True

    return put


def _fits(field: Field) -> Callable[[Any], bool]:
    if field.is_bytes:
        return lambda _: False
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return lambda given: type(given) is str
        case FieldDescriptor.CPPTYPE_BOOL:
            return lambda given: type(given) is bool
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return lambda given: type(given) in {int, float} and -EXACT <= given <= EXACT
        case cpp_type if bits := BITS.get(cpp_type):
            least, beyond = -(1 << bits), 1 << bits
            return lambda given: type(given) is int and least <= given < beyond
    return lambda _: False


def _put_message(field: Field, type_key: str) -> _Put:
    """Returns what fills the message of a field; ``type_key``: as of `_fill`."""
    assert field.shape
    name, fill = field.name, _fill(field.shape, type_key)

    def put(message: Any, given: Any) -> bool:
        part = getattr(message, name)
        part.SetInParent()
        return fill(part, given)

    return put


def _put_list(field: Field) -> _Put:
    name = field.name
    if field.shape:
        fill = _fill(field.shape, field.type_key)

        def put_messages(message: Any, given: Any) -> bool:
            if type(given) is not list:
                return False
            add = getattr(message, name).add
            for each in given:  # noqa: SIM110 - `all` would make a generator for each list
                if not fill(add(), each):
                    return False
            return True

        return put_messages
    if field.enum_numbers:
        return lambda _message, _given: False
    fits = _fits(field)

    def put(message: Any, given: Any) -> bool:
        if type(given) is not list or not all(map(fits, given)):
            return False
        getattr(message, name).extend(given)
        return True

    return put


def _put_map(field: Field) -> _Put:
    if field.shape or field.enum_numbers:
        return lambda _message, _given: False
    name, fits = field.name, _fits(field)

    def put(message: Any, given: Any) -> bool:
        if type(given) is not dict or not all(map(fits, given.values())):
            return False
        getattr(message, name).update(given)
        return True

    return put


def _fill(shape: Shape, type_key: str) -> _Put:
    """Returns what fills a message of a shape; ``type_key``: the constant `type` of its object."""
    match shape.form:
        case Form.RECORD:
            return _fill_record(shape, type_key)
        case Form.INLINE:
            return _put(next(iter(shape.fields.values())))
        case Form.UNION:
            return _fill_union(shape)
    return lambda _message, _given: False  # free JSON is compared as text, and parts of unknown kinds are kept as such


def _fill_record(shape: Shape, type_key: str) -> _Put:
    puts, needed, nullable = _puts(shape)
    if type_key:
        puts["type"] = lambda _, value: bool(value == type_key)
        needed.add("type")

    def fill(message: Any, given: Any) -> bool:
        if type(given) is not dict or not given.keys() >= needed:
            return False
        for key, value in given.items():
            put = puts.get(key)
            if put is None or not (key in nullable if value is None else put(message, value)):
                return False
        return True

    return fill


def _fill_union(shape: Shape) -> _Put:
    objects = {name: _put_message(field, name) for name, field in shape.by_type_key.items()}
    others = {kind: _put(field) for kind, field in shape.by_json_type.items()}

    def fill(message: Any, given: Any) -> bool:
        if type(given) is dict:
            name = given.get("type")
            arm = objects.get(name) if type(name) is str else None
        else:
            arm = others.get(type(given))
        return arm is not None and arm(message, given)

    return fill


_ASSISTANT = body_shapes()["message"].fields["role"].enum_numbers["assistant"]
_BODIES = {name: _body(name, shape) for name, shape in body_shapes().items()}
