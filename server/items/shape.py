"""The JSON form of each message, derived once from the descriptors and their options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache

from conversations.v1 import content_pb2, item_pb2, options_pb2
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor


class Form(Enum):
    """How a message is written in JSON."""

    RECORD = auto()  # an object with a key per field
    UNION = auto()  # the JSON of the set arm of its oneof, with a `type` key where that is an object
    INLINE = auto()  # the JSON of its only field
    OPAQUE = auto()  # the JSON text in its field `json`
    FREE = auto()  # google.protobuf.Value: any JSON
    FREE_OBJECT = auto()  # google.protobuf.Struct: any JSON object


class Cardinality(Enum):
    """How many values a field holds."""

    SINGULAR = auto()
    REPEATED = auto()
    MAP = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message. Its name is its JSON key."""

    name: str
    cardinality: Cardinality
    cpp_type: int  # FieldDescriptor.CPPTYPE_*, of the values where the field is a map
    is_bytes: bool
    has_presence: bool
    null_when_unset: bool  # option json_null: an unset field is written as null, not left out
    type_key: str  # option json_type: the constant `type` key of the field's object; '' for none
    shape: "Shape | None"  # of a message; None for a scalar
    enum_numbers: Mapping[str, int]  # JSON value to number; empty unless the field is an enum
    enum_names: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Shape:
    """The JSON form of a message type. All but the first two fields are for unions."""

    form: Form
    fields: Mapping[str, Field]
    oneof: str = ""
    by_type_key: Mapping[str, Field] = field(default_factory=dict)  # arms that are objects, by their `type` key
    by_json_type: Mapping[type, Field] = field(default_factory=dict)  # other arms, by the Python type of their JSON
    unknown: Field | None = None  # the arm for what fits no other


_FORMS = {
    struct_pb2.Value.DESCRIPTOR.full_name: Form.FREE,
    struct_pb2.Struct.DESCRIPTOR.full_name: Form.FREE_OBJECT,
    content_pb2.Opaque.DESCRIPTOR.full_name: Form.OPAQUE,
}
_JSON_TYPES: Mapping[int, tuple[type, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: (str,),
    FieldDescriptor.CPPTYPE_DOUBLE: (int, float),
    FieldDescriptor.CPPTYPE_BOOL: (bool,),
}


@cache
def shape_of(message: Descriptor) -> Shape:
    """The shape of a message type and of those of its fields; recursive types are not supported."""
    if form := _FORMS.get(message.full_name):
        return Shape(form, {})
    fields = {each.name: _field(each) for each in message.fields}
    if message.GetOptions().Extensions[options_pb2.json_inline]:
        return Shape(Form.INLINE, fields)
    if len(message.oneofs) == 1 and len(message.oneofs[0].fields) == len(fields) and not _optional(message):
        return _union(message.oneofs[0].name, fields)
    return Shape(Form.RECORD, fields)


def body_shapes() -> Mapping[str, Shape]:
    """The shape of each typed arm of `Item.body`, by item type."""
    return _BODIES


def has_status(item_type: str) -> bool:
    """Whether the `item_type` option of this type lists any status."""
    return item_type in _WITH_STATUS


@cache
def enum_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """The JSON value of each enum number; the unspecified number has none."""
    prefix = len(enum.values[0].name) - len("UNSPECIFIED")
    return {value.number: value.name[prefix:].lower() for value in enum.values if value.number}


def _union(oneof: str, fields: Mapping[str, Field]) -> Shape:
    known = [each for name, each in fields.items() if name != "unknown"]
    objects = {each.name: each for each in known if each.shape and each.shape.form is Form.RECORD}
    json_types = {json_type: each for each in known if each.name not in objects for json_type in _json_types(each)}
    return Shape(Form.UNION, fields, oneof, objects, json_types, fields.get("unknown"))


def _json_types(arm: Field) -> tuple[type, ...]:
    return (list,) if arm.shape else _JSON_TYPES[arm.cpp_type]


def _optional(message: Descriptor) -> bool:
    # protoc represents `optional` by a synthetic oneof whose name begins with an underscore.
    return message.oneofs[0].name.startswith("_")


def _field(each: FieldDescriptor) -> Field:
    options = each.GetOptions().Extensions
    value = entry.fields_by_name["value"] if (entry := _map_entry(each)) else each
    names = enum_names(value.enum_type) if value.enum_type else {}
    return Field(
        name=each.name,
        cardinality=Cardinality.MAP if entry else Cardinality.REPEATED if each.is_repeated else Cardinality.SINGULAR,
        cpp_type=value.cpp_type,
        is_bytes=value.type == FieldDescriptor.TYPE_BYTES,
        has_presence=each.has_presence,
        null_when_unset=options[options_pb2.json_null],
        type_key=options[options_pb2.json_type],
        shape=shape_of(value.message_type) if value.message_type else None,
        enum_numbers={name: number for number, name in names.items()},
        enum_names=names,
    )


def _map_entry(each: FieldDescriptor) -> Descriptor | None:
    message = each.message_type
    return message if message and message.GetOptions().map_entry else None


_ARMS = [arm for arm in item_pb2.Item.DESCRIPTOR.oneofs_by_name["body"].fields if arm.name != "unknown"]
_BODIES = {arm.name: shape_of(arm.message_type) for arm in _ARMS}
_WITH_STATUS = {arm.name for arm in _ARMS if arm.GetOptions().Extensions[options_pb2.item_type].statuses}
