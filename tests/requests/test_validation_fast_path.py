"""What is accepted without protovalidate is what protovalidate would accept."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
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

from server.errors import FieldInvalid
from server.items import new_item_from_json
from server.requests import validation
from server.requests.validation import validate
from server.requests.validation_fast_path import FastPath
from tests.support.build import append, user_message
from tests.support.random_messages import (
    REQUEST_TYPES,
    UUID,
    VALIDATOR,
    MessageGenerator,
    is_map,
    rules_of,
    set_field,
    types_below,
    values_of,
)
from tests.support.samples import SAMPLES

ARMS = [arm.name for arm in Item.DESCRIPTOR.oneofs_by_name["body"].fields]
LEFT_TO_PROTOVALIDATE: dict[str, str] = {}  # types and their rule


def kept(message: Any) -> bool:
    """What protovalidate says."""
    return not VALIDATOR.collect_violations(message)


TYPES = [each for each in types_below(*REQUEST_TYPES) if not each.GetOptions().map_entry]


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


@pytest.mark.parametrize("request_type", REQUEST_TYPES, ids=lambda each: each.name)
def test_random_requests(request_type: Any) -> None:
    """No request is accepted that breaks a rule, and with known rules none is left to protovalidate that keeps them."""
    maker = MessageGenerator(20)
    seen = compared(maker.make(request_type, WILDNESS[each % 5]) for each in range(2000))
    accepted = request_type.full_name not in LEFT_TO_PROTOVALIDATE
    assert seen[accepted, True] > 100, seen
    assert seen[False, False] > 50 or request_type.name == "ListConversationsRequest", seen


@pytest.mark.parametrize("arm", ARMS)
def test_random_items(arm: str) -> None:
    """The same for items of each type."""
    maker = MessageGenerator(21)
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
    maker = MessageGenerator(22)
    for field in descriptor.fields:
        for value in tried(field):
            yield set_field(GetMessageClass(descriptor)(), field, value)
            yield set_field(maker.make(descriptor, 0.0), field, value)
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
    maker = MessageGenerator(23)
    forms = ("{}", "conv{}", "c{}onv", "{}conv", "{}\n", "conv{}\n", "{0}{0}")
    seen = compared(
        set_field(maker.make(field.containing_type, 0.0), field, form.format(character))
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
    "DeleteConversationsRequest": 'filter: "x"',
    "DeleteItemRequest": 'conversation_id: "conv_a" item_id: "msg_a"',
    "EraseSubjectRequest": f'principal: "a" request_id: "{UUID}"',
    "ExplainAccessRequest": 'permission {resource: "item" action: "read"}',
    "ForkConversationRequest": 'conversation_id: "conv_a"',
    "GetConversationRequest": 'conversation_id: "conv_a"',
    "GetErasureRequest": f'erasure_id: "{UUID}"',
    "GetItemRequest": 'conversation_id: "conv_a" item_id: "msg_a"',
    "ListConversationsRequest": "",
    "ListItemsRequest": 'conversation_id: "conv_a"',
    "UndeleteConversationRequest": 'conversation_id: "conv_a"',
    "RewindConversationRequest": 'conversation_id: "conv_a" sequence: 0',
    "UpdateConversationRequest": 'conversation {id: "conv_a"}',
    "WatchConversationsRequest": "include_items: true",
    "WatchItemsRequest": 'conversation_id: "conv_a"',
}


@pytest.mark.parametrize("request_type", REQUEST_TYPES, ids=lambda each: each.name)
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
        (MESSAGE, """cel { id: "a" message: "a" expression: "this.absent != ''" }"""),
        (MESSAGE, """cel { id: "a" message: "a" expression: "this.const != ''" }"""),  # a bool
        (MESSAGE, """cel { id: "a" message: "a" expression: "this.const != '' || true" }"""),
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
        return VALIDATOR.collect_violations(message)


@pytest.mark.parametrize(
    ("request_", "asked", "paths"),
    [
        (GetConversationRequest(conversation_id="conv_a"), 0, []),
        (append("conv_a", user_message("a")), 0, []),
        (UpdateConversationRequest(conversation=Conversation(id="conv_a")), 0, []),
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
