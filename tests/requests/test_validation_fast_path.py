"""What is accepted without protovalidate is what protovalidate would accept."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from random import Random
from typing import Any

import pytest
from buf.validate import validate_pb2
from conversations.v1 import access_service_pb2, conversations_service_pb2
from conversations.v1.content_pb2 import ROLE_USER, Content, InputText
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    CreateItemsRequest,
    GetConversationRequest,
    UpdateConversationRequest,
)
from conversations.v1.item_body_pb2 import Message
from conversations.v1.item_pb2 import Item, NewItem
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from server.errors import FieldInvalid
from server.items import new_item_from_json
from server.requests import validation
from server.requests.validation import validate
from server.requests.validation_fast_path import FastPath
from tests.support.build import append, user_message
from tests.support.samples import SAMPLES

AUTHORITY = Validator()
REQUESTS = sorted(
    (
        method.input_type
        for file in (conversations_service_pb2, access_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ),
    key=lambda request: request.name,
)
ARMS = [arm.name for arm in Item.DESCRIPTOR.oneofs_by_name["body"].fields]
LEFT_TO_PROTOVALIDATE = {"conversations.v1.UpdateConversationRequest": "buf.validate.FieldRules.cel"}
UUID = "0f6b6fe3-5d1f-4d5c-9c58-0a3c0c4c7f11"


def kept(message: Any) -> bool:
    """What protovalidate says."""
    return not AUTHORITY.collect_violations(message)


def types_below(*tops: Any) -> list[Any]:
    """The types and all that they are made of, each once."""
    found = list(dict.fromkeys(tops))
    for each in found:
        below = dict.fromkeys(field.message_type for field in each.fields if field.message_type)
        found += [message_type for message_type in below if message_type not in found]
    return found


TYPES = [each for each in types_below(*REQUESTS) if not each.GetOptions().map_entry]


def rules_of(field: Any) -> Any:
    return field.GetOptions().Extensions[validate_pb2.field]


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
        *("conversation", "item", "policy", "create", "read", "update", "delete", "share", "explain", "item\n"),
    }
)
NUMBERS = (0, 1, -1, 2, 3, 4, 5, 8, 9, 10, 11, 99, 2**31 - 1, -(2**31))
DOUBLES = (0.0, -0.0, 1.5, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
BYTES = (b"", b"\0", b"{}", b'{"type": "x"}', b"\xff")


def values_of(field: Any) -> Iterable[Any]:
    """What one value of a scalar field is tried with."""
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
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def put(message: Any, field: Any, value: Any) -> Any:
    """The message with one value in the field, as a key of a map, or with a new message there."""
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
    """Puts a pair into a map; of a map of messages, what stands at the key."""
    pairs = getattr(message, field.name)
    if field.message_type.fields_by_name["value"].message_type:
        return pairs[key]
    pairs[key] = "" if value is None else value
    return None


@cache
def good_and_bad(field: Any, *, key: bool = False) -> tuple[list[Any], list[Any]]:
    """The values of a field that protovalidate allows, and the others: of its elements, or of a map's keys."""
    good: list[Any] = []
    bad: list[Any] = []
    of = field.message_type.fields_by_name["key" if key else "value"] if is_map(field) else field
    for value in values_of(of):
        message = GetMessageClass(field.containing_type)()
        if is_map(field) and not key:
            add_pair(message, field, "a", value)
        else:
            put(message, field, value)
        broken = AUTHORITY.collect_violations(message)
        mine = [each for each in broken if each.proto.field and each.proto.field.elements[0].field_name == field.name]
        (bad if mine else good).append(value)
    return good, bad


class Maker:
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


def compared(messages: Iterable[Any]) -> Counter[tuple[bool, bool]]:
    """How often (accepted, kept) was; nothing that is accepted may break a rule."""
    acceptance = FastPath()
    seen: Counter[tuple[bool, bool]] = Counter()
    for message in messages:
        accepted, keeps = acceptance.certainly_valid(message), kept(message)
        assert keeps or not accepted, text_format.MessageToString(message)[:2000]
        if keeps and not accepted:
            assert any(each.full_name in LEFT_TO_PROTOVALIDATE for each in types_below(message.DESCRIPTOR)), message
        seen[accepted, keeps] += 1
    return seen


WILDNESS = (0.0, 0.0, 0.01, 0.05, 0.3)


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda each: each.name)
def test_random_requests(request_type: Any) -> None:
    """No request is accepted that breaks a rule, and with known rules none is left to protovalidate that keeps them."""
    maker = Maker(20)
    seen = compared(maker.make(request_type, WILDNESS[each % 5]) for each in range(2000))
    accepted = request_type.full_name not in LEFT_TO_PROTOVALIDATE
    assert seen[accepted, True] > 100, seen
    assert seen[False, False] > 50 or request_type.name == "ListConversationsRequest", seen


@pytest.mark.parametrize("arm", ARMS)
def test_random_items(arm: str) -> None:
    """The same for items of each type."""
    maker = Maker(21)
    seen = compared(maker.make(Item.DESCRIPTOR, WILDNESS[each % 5], arm) for each in range(500))
    assert seen[True, True] > 60, seen
    assert seen[False, False] > 20, seen


def tried(field: Any) -> Iterable[Any]:
    """What `put` is called with."""
    if not field.message_type:
        return values_of(field)
    if is_map(field):
        return values_of(field.message_type.fields_by_name["key"])
    return (None,)


def with_one_field(descriptor: Any) -> Iterator[Any]:
    """Each field with each value in a message without any other, then in one that is otherwise valid."""
    yield GetMessageClass(descriptor)()
    maker = Maker(22)
    for field in descriptor.fields:
        for value in tried(field):
            yield put(GetMessageClass(descriptor)(), field, value)
            yield put(maker.make(descriptor, 0.0), field, value)
        unset = maker.make(descriptor, 0.0)
        unset.ClearField(field.name)
        yield unset


def test_each_value_of_each_field() -> None:
    """Zero, each limit, one more, NUL, line feeds at the end: each field of each type agrees with protovalidate."""
    seen = compared(message for each in TYPES for message in with_one_field(each))
    assert min(seen[True, True], seen[False, False]) > 10_000, seen


def pattern_of(field: Any) -> str:
    rules = rules_of(field)
    pattern: str = rules.string.pattern or rules.map.keys.string.pattern or rules.repeated.items.string.pattern
    return pattern


CHARACTERS = [*map(chr, range(0x180)), *"\u2028\u2029\ud7ff\ue000\ufeff\uffff😀\U0010ffff"]
PATTERNS = {pattern_of(field): field for each in TYPES for field in each.fields if pattern_of(field)}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_character_of_each_pattern(pattern: str) -> None:
    """A pattern takes and refuses the same characters, wherever in the text, whatever engine reads it."""
    field = PATTERNS[pattern]
    maker = Maker(23)
    forms = ("{}", "conv{}", "c{}onv", "{}conv", "{}\n", "conv{}\n", "{0}{0}")
    seen = compared(
        put(maker.make(field.containing_type, 0.0), field, form.format(character))
        for character in CHARACTERS
        for form in forms
    )
    assert len(CHARACTERS) * len(forms) == seen[True, True] + seen[False, False]
    assert seen[True, True] > 50, seen
    assert seen[False, False] >= len(forms), seen


@pytest.mark.parametrize("character", ["x", "😀"])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_longest_text(character: str, more: int) -> None:
    """The longest text is counted in code points."""
    text = character * (10_485_760 + more)
    item = Item(message=Message(role=ROLE_USER, content=[Content(input_text=InputText(text=text))]))
    assert (more <= 0) == kept(item) == FastPath().certainly_valid(item)


@pytest.mark.parametrize(
    ("type_name", "field", "limit"),
    [("InputImage", "image_url", 20_971_520), ("InputFile", "file_data", 73_400_320)],
)
def test_longest_data(type_name: str, field: str, limit: int) -> None:
    """Likewise the longest data URL."""
    (descriptor,) = [each for each in TYPES if each.name == type_name]
    for more in (0, 1):
        message = GetMessageClass(descriptor)(**{field: "x" * (limit + more)})
        assert (not more) == kept(message) == FastPath().certainly_valid(message)


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_accepted(name: str) -> None:
    """No documented item needs protovalidate."""
    item = new_item_from_json(json.dumps(SAMPLES[name]))
    assert FastPath().certainly_valid(append("conv_a", item))


MINIMAL = {
    "AppendItemsRequest": "items {item {reasoning {}}}",
    "BatchGetItemsRequest": 'conversation_id: "conv_a" item_ids: "msg_a"',
    "CheckAccessRequest": 'conversation_id: "conv_a" permissions {resource: "item" action: "read"}',
    "CreateConversationRequest": "",
    "CreateItemsRequest": 'conversation_id: "conv_a" items {item {reasoning {}}}',
    "DeleteConversationRequest": 'conversation_id: "conv_a"',
    "DeleteItemRequest": 'conversation_id: "conv_a" item_id: "msg_a"',
    "ExplainAccessRequest": 'permission {resource: "item" action: "read"}',
    "GetConversationRequest": 'conversation_id: "conv_a"',
    "GetItemRequest": 'conversation_id: "conv_a" item_id: "msg_a"',
    "ListConversationsRequest": "",
    "ListItemsRequest": 'conversation_id: "conv_a"',
    "UpdateConversationRequest": 'conversation {id: "conv_a"}',
}


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda each: each.name)
def test_least_request_is_accepted(request_type: Any) -> None:
    """The least that each method takes does not need protovalidate, with the exceptions that are listed."""
    request = text_format.Parse(MINIMAL[request_type.name], GetMessageClass(request_type)())
    assert kept(request)
    known = request_type.full_name not in LEFT_TO_PROTOVALIDATE
    assert known == FastPath().certainly_valid(request)


def test_rules_left_to_protovalidate() -> None:
    """A rule of a new kind in the contract is a decision: teach it to the check, or list its type here."""
    acceptance = FastPath()
    for each in TYPES:
        acceptance.certainly_valid(GetMessageClass(each)())
    assert LEFT_TO_PROTOVALIDATE == acceptance.unknown


STRING = "label: LABEL_OPTIONAL type: TYPE_STRING"
STRINGS = "label: LABEL_REPEATED type: TYPE_STRING"
INT32 = "label: LABEL_OPTIONAL type: TYPE_INT32"
MESSAGE = 'label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".buf.validate.BoolRules"'


@cache
def probe(body: str) -> Any:
    """The class of message M of a file that is made of ``body``."""
    package = f"probe{probe.cache_info().misses}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3", dependency=["buf/validate/validate.proto"]
    )
    text_format.Merge(body, file)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{package}.M"))


@pytest.mark.parametrize(
    ("field", "rules"),
    [
        (STRING, 'cel { id: "a" message: "a" expression: "this == \'\'" }'),
        (STRING, "required: true"),
        (STRING, "ignore: IGNORE_ALWAYS"),
        (STRING, "string { email: true }"),
        (STRING, "string { uuid: false }"),
        (STRING, 'string { const: "a" }'),
        (STRING, 'string { not_in: "a" }'),
        (STRING, 'string { pattern: "^a|b$" }'),
        (STRING, 'string { pattern: "a" }'),
        (STRING, 'string { pattern: "^(a|b)$" }'),
        (STRING, 'string { pattern: "^(?i)a$" }'),
        (STRING, 'string { pattern: "^\\\\d$" }'),
        (STRING, 'string { pattern: "^.$" }'),
        (STRING, 'string { pattern: "^(a*)*$" }'),
        (STRING, 'string { pattern: "^(a*){3}$" }'),
        (STRING, 'string { pattern: "^[a--b]$" }'),
        (STRING, 'string { pattern: "^a*?$" }'),
        (STRING, 'string { pattern: "^a++$" }'),
        (STRINGS, "repeated { unique: true }"),
        (STRINGS, "required: true"),
        (STRINGS, 'repeated { items { string { prefix: "a" } } }'),
        (STRINGS, "repeated { items { ignore: IGNORE_IF_ZERO_VALUE string { min_len: 1 } } }"),
        (INT32, "int32 { gt: 0 }"),
        (INT32, "int32 { gte: 5 lt: 1 }"),
        (INT32, "int32 { gte: 1 } ignore: IGNORE_IF_ZERO_VALUE"),
        (MESSAGE, 'cel { id: "a" message: "a" expression: "false" }'),
    ],
)
def test_unknown_rule_is_left(field: str, rules: str) -> None:
    """What is not known for certain is not accepted, and is told."""
    field = f'name: "f" number: 1 {field} options {{ [buf.validate.field] {{ {rules} }} }}'
    made = probe(f'message_type {{ name: "M" field {{ {field} }} }}')
    acceptance = FastPath()
    assert not acceptance.certainly_valid(made())
    assert [made.DESCRIPTOR.full_name] == [*acceptance.unknown]


@pytest.mark.parametrize(
    "body",
    [
        """message_type { name: "M" options { [buf.validate.message] {
               cel { id: "a" message: "a" expression: "false" } } } }""",
        """message_type { name: "M" options { [buf.validate.message] {
               oneof { fields: "f" required: true } } }
               field { name: "f" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING } }""",
    ],
)
def test_unknown_rule_of_a_message_is_left(body: str) -> None:
    """Rules of a whole message are not known."""
    made = probe(body)
    acceptance = FastPath()
    assert not kept(made())
    assert not acceptance.certainly_valid(made())
    assert {made.DESCRIPTOR.full_name: "buf.validate.message"} == acceptance.unknown


def test_type_inside_itself() -> None:
    """A rule holds at every depth of a type that is part of itself."""
    made = probe("""message_type { name: "M"
        field { name: "text" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING
                options { [buf.validate.field] { string { max_len: 1 } } } }
        field { name: "one" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: "M" }
        field { name: "many" number: 3 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "M" } }""")
    for text in ("a", "ab"):
        message = made(text=text)
        for _ in range(20):
            message = made(one=message, many=[made(), message]) if message.ByteSize() < 1000 else made(one=message)
        assert (text == "a") == kept(message) == FastPath().certainly_valid(message)


class Counting:
    """protovalidate, counted."""

    def __init__(self) -> None:
        self.asked = 0

    def collect_violations(self, message: Any) -> Any:
        """What protovalidate says."""
        self.asked += 1
        return AUTHORITY.collect_violations(message)


@pytest.mark.parametrize(
    ("request_", "asked", "paths"),
    [
        (GetConversationRequest(conversation_id="conv_a"), 0, []),
        (append("conv_a", user_message("a")), 0, []),
        (UpdateConversationRequest(conversation=Conversation(id="conv_a")), 1, []),
        (UpdateConversationRequest(), 1, ["conversation"]),
        (GetConversationRequest(), 1, ["conversation_id"]),
        (
            CreateItemsRequest(items=[NewItem(), NewItem(item=Item())]),
            1,
            ["conversation_id", "items[0].source", "items[1].item.body"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_protovalidate_is_asked(monkeypatch: pytest.MonkeyPatch, request_: Any, asked: int, paths: list[str]) -> None:
    """Only what is not certain is asked of protovalidate, which tells all that is wrong."""
    counting = Counting()
    monkeypatch.setattr(validation, "_validator", counting)
    told = []
    try:
        validate(request_)
    except FieldInvalid as failure:
        told = [violation.field for violation in failure.violations]
    assert asked == counting.asked
    assert paths == told
