"""What the descriptors say about the JSON of each message, worked out once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache

from conversations.v1 import content_pb2, item_pb2, options_pb2
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor


class Form(Enum):
    """How a message looks in JSON."""

    RECORD = auto()  # an object with a key per field
    UNION = auto()  # what its set arm looks like, with `type` where that is an object
    INLINE = auto()  # what its only field looks like
    OPAQUE = auto()  # the JSON it holds
    FREE = auto()  # any JSON
    FREE_OBJECT = auto()  # any JSON object


class Many(Enum):
    """How many values a field has."""

    ONE = auto()
    LIST = auto()
    MAP = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its name is its JSON key."""

    name: str
    many: Many
    kind: int  # FieldDescriptor.CPPTYPE_*, of the values where it is a map
    is_bytes: bool
    has_presence: bool
    null: bool  # prints null when unset
    type: str  # constant `type` key of the object
    shape: "Shape | None"  # for messages
    numbers: Mapping[str, int]  # for enums
    names: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Shape:
    """A message, as JSON knows it."""

    form: Form
    fields: Mapping[str, Field]
    oneof: str = ""
    by_type: Mapping[str, Field] = field(default_factory=dict)  # arms that are objects
    by_kind: Mapping[type, Field] = field(default_factory=dict)  # the other arms
    unknown: Field | None = None


_FORMS = {
    struct_pb2.Value.DESCRIPTOR.full_name: Form.FREE,
    struct_pb2.Struct.DESCRIPTOR.full_name: Form.FREE_OBJECT,
    content_pb2.Opaque.DESCRIPTOR.full_name: Form.OPAQUE,
}
_KINDS: Mapping[int, tuple[type, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: (str,),
    FieldDescriptor.CPPTYPE_DOUBLE: (int, float),
    FieldDescriptor.CPPTYPE_BOOL: (bool,),
}


@cache
def shape_of(message: Descriptor) -> Shape:
    """The shape of a message and of all below it; a message inside itself is not supported."""
    if form := _FORMS.get(message.full_name):
        return Shape(form, {})
    fields = {each.name: _field(each) for each in message.fields}
    if message.GetOptions().Extensions[options_pb2.json_inline]:
        return Shape(Form.INLINE, fields)
    if len(message.oneofs) == 1 and len(message.oneofs[0].fields) == len(fields) and not _optional(message):
        return _union(message.oneofs[0].name, fields)
    return Shape(Form.RECORD, fields)


def bodies() -> Mapping[str, Shape]:
    """The shape of each typed body, by item type."""
    return _BODIES


def has_status(item_type: str) -> bool:
    """Whether items of the type have a status at all."""
    return item_type in _WITH_STATUS


@cache
def enum_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """The JSON values of an enum by number; none for the unspecified one."""
    prefix = len(enum.values[0].name) - len("UNSPECIFIED")
    return {value.number: value.name[prefix:].lower() for value in enum.values if value.number}


def _union(oneof: str, fields: Mapping[str, Field]) -> Shape:
    known = [each for name, each in fields.items() if name != "unknown"]
    objects = {each.name: each for each in known if each.shape and each.shape.form is Form.RECORD}
    kinds = {kind: each for each in known if each.name not in objects for kind in _kinds(each)}
    return Shape(Form.UNION, fields, oneof, objects, kinds, fields.get("unknown"))


def _kinds(arm: Field) -> tuple[type, ...]:
    return (list,) if arm.shape else _KINDS[arm.kind]


def _optional(message: Descriptor) -> bool:
    # A single `optional` field is a oneof too, one that protoc made up.
    return message.oneofs[0].name.startswith("_")


def _field(each: FieldDescriptor) -> Field:
    options = each.GetOptions().Extensions
    value = entry.fields_by_name["value"] if (entry := _map_entry(each)) else each
    names = enum_names(value.enum_type) if value.enum_type else {}
    return Field(
        name=each.name,
        many=Many.MAP if entry else Many.LIST if each.is_repeated else Many.ONE,
        kind=value.cpp_type,
        is_bytes=value.type == FieldDescriptor.TYPE_BYTES,
        has_presence=each.has_presence,
        null=options[options_pb2.json_null],
        type=options[options_pb2.json_type],
        shape=shape_of(value.message_type) if value.message_type else None,
        numbers={name: number for number, name in names.items()},
        names=names,
    )


def _map_entry(each: FieldDescriptor) -> Descriptor | None:
    message = each.message_type
    return message if message and message.GetOptions().map_entry else None


_ARMS = [arm for arm in item_pb2.Item.DESCRIPTOR.oneofs_by_name["body"].fields if arm.name != "unknown"]
_BODIES = {arm.name: shape_of(arm.message_type) for arm in _ARMS}
_WITH_STATUS = {arm.name for arm in _ARMS if arm.GetOptions().Extensions[options_pb2.item_type].statuses}
