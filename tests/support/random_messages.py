"""Random requests, valid and not, and the values that a field is tried with."""

from collections.abc import Iterable
from functools import cache
from random import Random
from typing import Any

from buf.validate import validate_pb2
from conversations.v1 import access_service_pb2, conversations_service_pb2, erasure_service_pb2
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from server.requests.elements import is_duration

VALIDATOR = Validator()
REQUEST_TYPES = sorted(
    (
        method.input_type
        for file in (conversations_service_pb2, access_service_pb2, erasure_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ),
    key=lambda request: request.name,
)
UUID = "0f6b6fe3-5d1f-4d5c-9c58-0a3c0c4c7f11"
LIMITS = (1, 32, 64, 128, 256, 512, 2048)
ODD = ("\0", "\n", "\r", "é", "😀", "\u0301", "\u2028", " ", ".", "A", "-", "_", "9")
TEXTS = sorted(
    {
        "",
        *ODD,
        *(letter * (size + more) for letter in ("a", "é", "😀") for size in LIMITS for more in (-1, 0, 1)),
        *("conv" + "x" * (size - 4 + more) for size in (4, 64) for more in (-1, 0, 1) if size + more >= 4),
        *("\0" + "a" * 600, "a" * 63 + "\n", "a" * 64 + "\n", "con", "Conv_a", " conv", "\nconv", "xconv", "conv.a"),
        *(before + odd + after for odd in ODD for before in ("", "a", "conv", "conv_a") for after in ("", "a", "b9")),
        *(UUID, UUID.upper(), UUID[:-1], UUID + "0", UUID + "\n", "\n" + UUID),
        *(UUID.replace("-", ""), "g" + UUID[1:], "{" + UUID + "}"),
        *("create_time", "create_time asc", "create_time desc", "create_time  desc", "CREATE_TIME"),
        *("conversation", "item", "policy", "tenant", "item\n"),
        *("create", "read", "update", "delete", "share", "explain", "import", "erase"),
    }
)
NUMBERS = (0, 1, -1, 2, 3, 4, 5, 8, 9, 10, 11, 99, 2**31 - 1, -(2**31))
DOUBLES = (0.0, -0.0, 1.5, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
BYTES = (b"", b"\0", b"{}", b'{"type": "x"}', b"\xff")


def types_below(*tops: Any) -> list[Any]:
    """The types, and all message types that their fields have, each once."""
    found = list(dict.fromkeys(tops))
    for each in found:
        below = dict.fromkeys(field.message_type for field in each.fields if field.message_type)
        found += [message_type for message_type in below if message_type not in found]
    return found


def rules_of(field: Any) -> Any:
    """The rules of protovalidate on a field."""
    return field.GetOptions().Extensions[validate_pb2.field]


def values_of(field: Any) -> Iterable[Any]:
    """The values that a scalar field is tried with."""
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            return BYTES if field.type == field.TYPE_BYTES else TEXTS
        case field.CPPTYPE_DOUBLE | field.CPPTYPE_FLOAT:
            return DOUBLES
        case field.CPPTYPE_BOOL:
            return (False, True)
        case field.CPPTYPE_UINT32 | field.CPPTYPE_UINT64:
            return [number for number in NUMBERS if number >= 0]
    return NUMBERS


def is_map(field: Any) -> bool:
    """Whether a field is a map."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def set_field(message: Any, field: Any, value: Any) -> Any:
    """Sets a field of ``message`` to one value: an element, a key of a map, or an empty message; returns it."""
    message.ClearField(field.name)
    if is_map(field):
        add_pair(message, field, value)
    elif field.message_type and field.is_repeated:
        getattr(message, field.name).add()
    elif field.message_type:
        getattr(message, field.name).SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)
    return message


def add_pair(message: Any, field: Any, key: str, value: Any = None) -> Any:
    """Adds a pair to a map; of a map of messages, adds an empty one and returns it."""
    pairs = getattr(message, field.name)
    if field.message_type.fields_by_name["value"].message_type:
        return pairs[key]
    pairs[key] = "" if value is None else value
    return None


@cache
def good_and_bad(field: Any, *, key: bool = False) -> tuple[list[Any], list[Any]]:
    """The values that protovalidate accepts in a field, and those it refuses; of a map, values or keys."""
    good: list[Any] = []
    bad: list[Any] = []
    of = field.message_type.fields_by_name["key" if key else "value"] if is_map(field) else field
    for value in values_of(of):
        message = GetMessageClass(field.containing_type)()
        if is_map(field) and not key:
            add_pair(message, field, "a", value)
        else:
            set_field(message, field, value)
        broken = VALIDATOR.collect_violations(message)
        mine = [each for each in broken if each.proto.field and each.proto.field.elements[0].field_name == field.name]
        (bad if mine else good).append(value)
    return good, bad


class MessageGenerator:
    """Random messages of any type.

    Each choice is a wrong one with a chance of ``wild``; without it, messages are
    valid but for rules that depend on more than one field.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.wild = 0.0

    def make(self, descriptor: Any, wild: float, arm: str = "") -> Any:
        """A message; ``arm``: of an item, instead of a random one."""
        self.wild = wild
        message = GetMessageClass(descriptor)()
        self.fill(message, 0, arm)
        return message

    def odds(self, chance: float) -> bool:
        """Whether something of this chance happens."""
        return self.random.random() < chance

    def value(self, field: Any, *, key: bool = False) -> Any:
        """One scalar for the field."""
        good, bad = good_and_bad(field, key=key)
        return self.random.choice(bad if bad and (self.odds(self.wild) or not good) else good)

    def fill(self, message: Any, depth: int, arm: str = "") -> None:
        """Sets fields of an empty message."""
        for oneof in message.DESCRIPTOR.oneofs:
            named = [field for field in oneof.fields if field.name == arm]
            required = oneof.GetOptions().Extensions[validate_pb2.oneof].required
            if named or not self.odds(self.wild if required else 0.5):
                self.set(message, named[0] if named else self.random.choice(oneof.fields), depth)
        for field in message.DESCRIPTOR.fields:
            if field.containing_oneof:
                continue
            if field.is_repeated:
                self.extend(message, field, depth)
            elif not field.has_presence or not self.odds(self.wild if rules_of(field).required else 0.5):
                self.set(message, field, depth)

    def set(self, message: Any, field: Any, depth: int) -> None:
        """Sets a field that is neither a list nor a map."""
        if not field.message_type:
            setattr(message, field.name, self.value(field))
        elif is_duration(field) and not self.odds(self.wild):
            rules = rules_of(field).duration
            edge = self.random.choice((rules.gte, rules.lte))
            getattr(message, field.name).CopyFrom(edge)
        else:
            getattr(message, field.name).SetInParent()
            if depth < 9:
                self.fill(getattr(message, field.name), depth + 1)

    def size(self, field: Any, depth: int) -> int:
        """Few, or exactly at a limit."""
        rules = rules_of(field)
        least: int = rules.repeated.min_items
        most: int = rules.repeated.max_items or rules.map.max_pairs
        if self.odds(self.wild):
            return self.random.choice((0, least, most + 1 if most else 2))
        if most and self.odds(0.02 if field.message_type else 0.2):
            return most
        return max(least, self.random.choice((0, 0, 1, 2) if depth < 6 else (0,)))

    def extend(self, message: Any, field: Any, depth: int) -> None:
        """Fills a list or a map."""
        for index in range(self.size(field, depth)):
            if is_map(field):
                self.add_pair(message, field, depth, index)
            elif field.message_type:
                self.fill(getattr(message, field.name).add(), depth + 1)
            else:
                getattr(message, field.name).append(self.value(field))

    def add_pair(self, message: Any, field: Any, depth: int, index: int) -> None:
        """Adds one pair to a map."""
        key = self.value(field, key=True) if self.odds(0.5) else f"k{index}"
        inner = field.message_type.fields_by_name["value"].message_type
        made = add_pair(message, field, key, None if inner else self.value(field))
        if made is not None:
            made.SetInParent()
            self.fill(made, depth + 1)
