"""Items keep the OpenAI JSON they came as, typed as far as the schema goes."""

import json
import re

import protovalidate
import pytest
from conversations.v1 import content_pb2, item_body_pb2, item_pb2, options_pb2
from conversations.v1.item_pb2 import Item
from conversations.v1.item_status_pb2 import ItemStatus
from google.api import field_behavior_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from server.items import PART_TAG, ItemJsonError, check_item, new_item_from_json, role_name, status_name, to_json
from server.items.codec import from_json
from server.items.names import item_type
from tests.support.samples import ITEM_TYPES, SAMPLES, as_stored, strictly

# The items whose typed body is not enough, and why.
NEED_JSON = {
    # the order of keys in tool definitions and other free JSON
    "any/mcp_call.error.execution",
    "any/mcp_list_tools.full",
    "in/additional_tools.all_tools",
    "in/additional_tools.code_interpreter",
    "in/additional_tools.custom",
    "in/additional_tools.file_search",
    "in/additional_tools.function",
    "in/additional_tools.mcp",
    "in/additional_tools.shell",
    "in/tool_search_output.full",
    "in/tool_search_output.minimal",
    "out/additional_tools.all_tools",
    "out/tool_search_call.full",
    "out/tool_search_output.full",
    # a key that reads always have is absent
    "in/shell_call.container",
    "in/shell_call.minimal",
    "in/shell_call_output.minimal",
    "in/tool_search_call.minimal",
    # newer than the schema
    "future/known_type_unknown_field",
    "future/unknown_enum_value",
}
ARMS = [arm for arm in Item.DESCRIPTOR.oneofs_by_name["body"].fields if arm.name != "unknown"]


def through_the_wire(item):
    """The item after protobuf has had it."""
    return Item.FromString(item.SerializeToString())


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_comes_back(name):
    """Every documented form of an item comes back as it was stored, twice as well."""
    expected = as_stored(SAMPLES[name])
    actual = to_json(through_the_wire(from_json(SAMPLES[name])))
    assert strictly(expected) == strictly(actual)
    assert strictly(expected) == strictly(to_json(from_json(json.dumps(actual))))


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_begins_with_type_id_status(name):
    """The keys everybody looks for come first."""
    actual = to_json(from_json(SAMPLES[name]))
    first = [key for key in ("type", "id", "status") if key in actual]
    if item_type(from_json(SAMPLES[name])) in ITEM_TYPES:
        assert first == list(actual)[: len(first)]


def test_samples_that_need_json():
    """The typed body alone is enough for all samples but those listed."""
    assert {name for name, item in SAMPLES.items() if from_json(item).json} == NEED_JSON


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_valid(name):
    """No rule of the schema refuses a documented item."""
    protovalidate.validate(from_json(SAMPLES[name]))


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_passes_its_check(name):
    """An item made from JSON says the same as its JSON."""
    check_item(from_json(SAMPLES[name]))


def test_every_type_is_sampled():
    """The samples reach each arm of the body."""
    assert ITEM_TYPES <= {item_type(from_json(item)) for item in SAMPLES.values()}


def test_arms_are_the_types():
    """The arms of the body are the item types of the OpenAI API, by name."""
    assert {arm.name for arm in ARMS} == ITEM_TYPES


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_arm_has_an_item_type(arm):
    """Each type says how its ids begin and which status values it takes."""
    options = arm.GetOptions()
    assert options.HasExtension(options_pb2.item_type)
    kind = options.Extensions[options_pb2.item_type]
    assert kind.id_prefix or kind.minted_id_prefix
    assert not kind.default_status or kind.default_status in kind.statuses


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_fits_its_item_type(name):
    """Documented ids and status values are among those the type takes."""
    item = from_json(SAMPLES[name])
    if item.WhichOneof("body") == "unknown":
        return
    arm = Item.DESCRIPTOR.fields_by_name[item.WhichOneof("body") or ""]
    kind = arm.GetOptions().Extensions[options_pb2.item_type]
    assert item.id.startswith(kind.id_prefix) or not item.id
    assert not item.status or item.status in kind.statuses


@pytest.mark.parametrize("file", [item_pb2, content_pb2, item_body_pb2], ids=lambda file: file.DESCRIPTOR.name)
def test_every_field_says_how_it_behaves(file):
    """Fields outside a oneof are required, optional, output only or an identifier."""
    silent = []

    def look(message):
        if message.GetOptions().map_entry:
            return
        for field in message.fields:
            oneof = field.containing_oneof
            behaves = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
            if (not oneof or oneof.name == f"_{field.name}") and not behaves:
                silent.append(field.full_name)
        for each in message.nested_types:
            look(each)

    for message in file.DESCRIPTOR.message_types_by_name.values():
        look(message)
    assert silent == []


MESSAGE = {"type": "message", "id": "msg_1", "status": "completed", "role": "user", "content": []}


def arguments(value):
    """A search call with free JSON in it."""
    return {"type": "tool_search_call", "call_id": None, "execution": "server", "arguments": value}


@pytest.mark.parametrize(
    "value, needs_json",
    [
        (2**53, False),
        (2**53 + 1, True),
        (12345678901234567890, True),
        (10**400, True),
        (-1, False),
        (1.5, False),
        (1e300, False),
        (True, False),
        (None, False),
        ("", False),
        ([], False),
        ({}, False),
        ({"a": 1, "b": 2}, False),
        ({"b": 1, "a": 2}, True),
        ([{"b": [{"d": 1, "c": 2}]}], True),
        ({"a": 1.0}, True),
    ],
)
def test_free_json(value, needs_json):
    """Free JSON keeps big integers, the order of keys and 1 apart from 1.0."""
    item = through_the_wire(from_json(json.dumps(arguments(value))))
    actual = to_json(item)["arguments"]
    assert json.dumps(value) == json.dumps(actual)
    assert needs_json == bool(item.json)


def nested(levels):
    """An item that is ``levels`` deep."""
    value: object = 1
    for _ in range(levels - 1):
        value = {"a": value}
    return arguments(value)


@pytest.mark.parametrize("levels", [10, 24, 25, 26, 33, 100])
def test_deep_json(levels):
    """Depth that protobuf could not read back is kept as JSON."""
    new = item_pb2.NewItem(item=from_json(nested(levels)))
    item = item_pb2.NewItem.FromString(new.SerializeToString()).item
    assert nested(levels) == to_json(item)


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "archived"},
        {"role": "narrator"},
        {"role": 5},
        {"content": {"a": 1}},
        {"content": [None, 1, "x", {"type": "input_text"}, {"type": 7}, {"type": "input_text", "text": 1}]},
        {"content": [{"type": "input_text", "text": "x", "later": None}]},
        {"content": [{"type": "output_text", "text": "x"}]},
        {"content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": [{"token": True}]}]},
        {"phase": "later"},
        {"later": None},
        {"created_by": "me"},
        {"sequence": 7, "create_time": "now", "json": "x"},
    ],
)
def test_what_the_schema_has_no_place_for(changed):
    """Newer keys, kinds and values come back, those of the envelope's names too."""
    item = through_the_wire(from_json(MESSAGE | changed))
    assert strictly(MESSAGE | changed) == strictly(to_json(item))


def test_unknown_values_are_unspecified():
    """The typed side of a newer value says that it has no name for it."""
    item = from_json(SAMPLES["future/unknown_enum_value"])
    assert (0, 0, "") == (item.status, item.message.role, role_name(item.message.role))


def test_unknown_part_is_typed_as_such():
    """A newer part costs the parts beside it nothing."""
    item = from_json(SAMPLES["future/known_type_unknown_part"])
    assert ["unknown", "input_text"] == [part.WhichOneof("part") for part in item.message.content]
    assert "input_hologram" == item.message.content[0].unknown.type
    assert b"" == item.json


@pytest.mark.parametrize("text", ["iVBORw0KGgo", "iVBORw0KGgp=", "iVBO Rw0K", "", "iVBORw0KGgo=", "é"])
def test_base64(text):
    """An image comes back in the very letters it came in."""
    item = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": text}
    assert item == to_json(through_the_wire(from_json(item)))


def test_server_assigned_id_and_status_reach_json():
    """What the server adds is seen by those who read JSON, kept or made."""
    for document in (
        {"role": "user", "content": []},
        {"role": "user", "content": [], "new": 1},
        {"type": "holo", "new": 1},
    ):
        item = from_json(document)
        item.id, item.status, item.sequence, item.created_by = (
            "x_1",
            ItemStatus.ITEM_STATUS_COMPLETED,
            4,
            "me",
        )
        actual = to_json(item)
        assert ["type", "id", "status"] == list(actual)[:3]
        assert document.items() <= actual.items()
        assert not actual.keys() & {"sequence", "create_time", "created_by"}


def test_status_of_a_type_without_one():
    """Real items of such types have a status; it is kept, and none is claimed."""
    given = {"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "", "status": "completed"}
    item = from_json(given)
    assert 0 == item.status
    assert given == to_json(item)


@pytest.mark.parametrize(
    "given, path, rule",
    [
        ("", "", "is not valid JSON"),
        ("{", "", "is not valid JSON"),
        (b"\xff", "", "is not UTF-8"),
        ("[]", "", "is not a JSON object"),
        ("null", "", "is not a JSON object"),
        ('{"a": NaN}', "", "has a number that is not finite"),
        ('{"a": [1e999]}', "a[0]", "has a number that is not finite"),
        ({"a": {"b c": float("inf")}}, "a.*", "has a number that is not finite"),
        ('{"a": ' + "9" * 5000 + "}", "", "has a number that is too long"),
        ({"a": 10**5000}, "a", "has a number that is too long"),
        ({"role": "user", "content": [{"text": "\ud800"}]}, "content[0].text", "has a lone surrogate"),
        ('{"a": "\\ud800"}', "a", "has a lone surrogate"),
        ({"a": {"\ud800": 1}}, "a", "has a lone surrogate"),
        ({"a": {1: 1}}, "a", "has a key that is not a string"),
        ({"a": [b""]}, "a[0]", "is not a JSON value"),
        ("[" * 50_000, "", "is nested deeper than 100"),
        ({"type": "message", "content": "x"}, "", "a message needs a role"),
        pytest.param({"type": "message", "role": None}, "", "a message needs a role", id="null role"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) and value.isascii() else "",
)
def test_refused(given, path, rule):
    """What can not be kept is refused with the place and the rule, without content."""
    with pytest.raises(ItemJsonError, match=re.escape(rule)) as caught:
        from_json(given)
    assert path == caught.value.path


def test_refused_for_depth():
    """One level more than can be kept is refused."""
    with pytest.raises(ItemJsonError, match="nested deeper than 100"):
        from_json(nested(101))


def test_references():
    """Only a reference that names the conversation becomes one."""
    for bare in ({"id": "msg_1"}, {"type": None, "id": "msg_1"}, {"type": "item_reference", "id": "msg_1"}):
        unresolved = new_item_from_json(bare)
        assert ("unknown", "item_reference") == (
            unresolved.item.WhichOneof("body"),
            item_type(unresolved.item),
        )
        named = new_item_from_json(bare | {"conversation_id": "conv_1"}).reference
        assert ("msg_1", "conv_1") == (named.item_id, named.conversation_id)
    with pytest.raises(ItemJsonError) as caught:
        new_item_from_json({"type": "item_reference", "id": 5, "conversation_id": "conv_1"})
    assert "id" == caught.value.path


def test_conversation_id_elsewhere_means_nothing():
    """An item that is no reference keeps the key as any other."""
    given = MESSAGE | {"conversation_id": "conv_1"}
    assert given == to_json(new_item_from_json(given).item)


def test_words():
    """Type, role and status have the names that JSON has for them."""
    assert "message" == item_type(from_json(MESSAGE))
    assert "hologram_call" == item_type(from_json({"type": "hologram_call"}))
    assert ("", "") == (item_type(Item()), item_type(from_json({"a": 1})))
    assert ["", "user", "developer"] == [role_name(content_pb2.Role.ValueType(number)) for number in (0, 2, 7)]
    assert ["", "in_progress", "calling"] == [status_name(ItemStatus.ValueType(number)) for number in (0, 1, 8)]


def message(json_text, **fields):
    """A message from a user, with JSON beside it."""
    return Item(message=from_json(MESSAGE).message, json=json_text, **fields)


def unknown(json_text, type_="holo", **fields):
    """An item of a type that the schema does not have."""
    return Item(unknown=content_pb2.Opaque(type=type_, json=json_text), **fields)


def part(json_text, type_="holo"):
    """A message with a part of a kind that the schema does not have."""
    content = content_pb2.Content(unknown=content_pb2.Opaque(type=type_, json=json_text))
    return Item(message=item_body_pb2.Message(role=content_pb2.ROLE_USER, content=[content]))


def citation(json_text):
    """A message whose text has an annotation of a kind that the schema does not have."""
    annotation = content_pb2.Annotation(unknown=content_pb2.Opaque(json=json_text))
    text = content_pb2.OutputText(text="", annotations=[annotation])
    content = [content_pb2.Content(refusal=content_pb2.Refusal(refusal="")), content_pb2.Content(output_text=text)]
    return Item(message=item_body_pb2.Message(role=content_pb2.ROLE_ASSISTANT, content=content))


def tag(json_text):
    """A search result with a tag of a kind that the schema does not have."""
    result = item_body_pb2.FileSearchCall.Result()
    result.attributes.values["colour"].unknown.json = json_text
    return Item(
        file_search_call=item_body_pb2.FileSearchCall(results=item_body_pb2.FileSearchCall.Results(values=[result]))
    )


COMPLETED, FAILED = ItemStatus.ITEM_STATUS_COMPLETED, ItemStatus.ITEM_STATUS_FAILED
TWICE, ITS_BODY = "is twice in one object", "is not the JSON of the item's body"
CONTRADICTIONS = [
    (message(b'{"role":"system","content":[]}'), "json", ITS_BODY),
    (message(b'{"type":"reasoning","summary":[]}'), "json", ITS_BODY),
    (message(b'{"type":"holo","role":"user","content":[]}'), "json", ITS_BODY),
    (message(b"{"), "json", "is not valid JSON"),
    (message(b"[]"), "json", "is not a JSON object"),
    (message(b'{"role":"system","role":"user","content":[]}'), "json.role", TWICE),
    (message(b'{"role":"user","content":[],"new":[{"a":{"b":1,"b":1}}]}'), "json.b", TWICE),
    (message(b'{"role":"user","content":[],"r\\u006fle":"user"}'), "json.role", TWICE),
    (message(b'{"role":"user","content":[],"id":"msg_1"}'), "json.id", "is not the id of the item"),
    (message(b'{"role":"user","content":[],"id":"msg_1"}', id="msg_2"), "json.id", "is not the id of the item"),
    (message(b'{"role":"user","content":[],"id":7}'), "json.id", "is not the id of the item"),
    (message(b'{"role":"user","content":[],"status":"failed"}'), "json.status", "is not the status of the item"),
    (
        message(b'{"role":"user","content":[],"status":"failed"}', status=COMPLETED),
        "json.status",
        "is not the status of the item",
    ),
    (
        message(b'{"role":"user","content":[],"status":"later"}', status=COMPLETED),
        "json.status",
        "is not the status of the item",
    ),
    (unknown(b"{}"), "unknown.json.type", "is not the type of the item"),
    (unknown(json.dumps(MESSAGE).encode()), "unknown.json.type", "is not the type of the item"),
    (unknown(json.dumps(MESSAGE).encode(), "message"), "unknown.json.type", "is not the type of the item"),
    (unknown(b'{"role":"user","content":[]}', ""), "unknown.json.type", "is not the type of the item"),
    (unknown(b"[]"), "unknown.json", "is not a JSON object"),
    (unknown(b"\xff"), "unknown.json", "is not UTF-8"),
    (unknown(b'{"type":"holo","type":"holo"}'), "unknown.json.type", TWICE),
    (unknown(b'{"type":"holo","a":[{"b":1,"b":2}]}'), "unknown.json.b", TWICE),
    (unknown(b'{"type":"holo","id":"h_1"}', id="h_2"), "unknown.json.id", "is not the id of the item"),
    (unknown(b'{"type":"holo","status":"failed"}'), "unknown.json.status", "is not the status of the item"),
    (
        unknown(b'{"type":"holo","status":"completed"}', status=FAILED),
        "unknown.json.status",
        "is not the status of the item",
    ),
    (part(b"{"), "message.content[0].unknown.json", "is not valid JSON"),
    (part(b'{"type":"other"}'), "message.content[0].unknown.json.type", "is not the type of the part"),
    (part(b'"holo"'), "message.content[0].unknown.json.type", "is not the type of the part"),
    (part(b'{"type":"holo","a":{"b":1,"b":1}}'), "message.content[0].unknown.json.b", TWICE),
    (citation(b"NaN"), "message.content[1].output_text.annotations[0].unknown.json", "has a number that is not finite"),
    (tag(b""), "file_search_call.results.values[0].attributes.values.colour.unknown.json", "is not valid JSON"),
]


@pytest.mark.parametrize("item, path, rule", CONTRADICTIONS)
def test_json_says_one_thing(item, path, rule):
    """JSON that is invalid, has a key twice or contradicts the item is refused with the place and the rule."""
    with pytest.raises(ItemJsonError) as caught:
        check_item(item)
    assert (path, rule) == (caught.value.path, caught.value.rule)


@pytest.mark.parametrize(
    "item",
    [
        message(b'{"role":"user","content":[],"id":"msg_1","status":"completed"}', id="msg_1", status=COMPLETED),
        message(b'{"role":"user","content":[]}', id="msg_1", status=COMPLETED),
        message(b'{"role":"user","content":[],"id":null,"status":null}', id="msg_1", status=COMPLETED),
        message(b'{"role":"user","content":[],"status":"later"}'),
        message(b'{"role":"user","content":[],"sequence":7,"create_time":"now","created_by":"me"}'),
        message(b'{"role":"user","content":[],"a":{"b":1},"c":{"b":1}}'),
        unknown(b'{"type": "holo", "id": "h_1", "status": "failed"}', id="h_1", status=FAILED),
        unknown(b'{"a":1}', "", id="x_1"),
        unknown(b'{"type":"holo","status":"later"}'),
        unknown(b'{"type":["message"],"status":"later"}', ""),
        part(b'{"type": "holo"}'),
        part(b"[1, 2]", ""),
        citation(b'{"type":7}'),
        tag(b'[{"a": 1}]'),
    ],
)
def test_json_that_agrees(item):
    """JSON that says what the item says, or what the item has no field for, is accepted."""
    check_item(item)


def test_parts_of_unknown_kind_have_one_tag():
    """A serialized item without the byte `PART_TAG` has no part of an unknown kind."""
    seen = set()

    def look(message):
        if message.full_name in seen:
            return
        seen.add(message.full_name)
        for field in message.fields:
            if field.message_type is content_pb2.Opaque.DESCRIPTOR:
                assert (15, "unknown", False) == (field.number, field.name, field.is_repeated), field.full_name
            elif field.message_type:
                look(field.message_type)

    for arm in ARMS:
        look(arm.message_type)
    assert len(seen) > len(ARMS)
    for item in (part(b"1", ""), citation(b"1"), tag(b"1")):
        assert PART_TAG in item.SerializeToString()


def test_a_key_twice_in_text():
    """Text with a key twice in one object is no item, wherever it is read from."""
    for text in ('{"role":"system","role":"user"}', '{"a":[{"the key":1,"the key":1}]}'):
        with pytest.raises(ItemJsonError, match="is twice in one object"):
            new_item_from_json(text)


@pytest.mark.parametrize(
    "item, rule",
    [
        (Item(), "required"),
        (Item(message=item_body_pb2.Message(role=content_pb2.Role.ValueType(99))), "enum.defined_only"),
        (Item(function_call=item_body_pb2.FunctionCall(name="n")), "string.min_len"),
        (Item(shell_call_output=item_body_pb2.ShellCallOutput(call_id="c" * 65)), "string.max_len"),
        (Item(computer_call_output=item_body_pb2.ComputerCallOutput(call_id="c")), "required"),
        (from_json({"type": "function_call_output", "output": "", "namespace": "a b"}), "string.pattern"),
        (from_json({"type": "function_call_output", "output": "", "name": ""}), "string.min_len"),
        (from_json({"role": "user", "content": "x" * 10_485_761}), "string.max_len"),
        (from_json({"role": "user", "content": [], "id": "no spaces"}), "string.pattern"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits(item, rule):
    """The documented limits are rules of the schema."""
    with pytest.raises(protovalidate.ValidationError) as caught:
        protovalidate.validate(item)
    assert rule in {violation.proto.rule_id for violation in caught.value.violations}


def names_below(message, seen):
    if message.full_name not in seen:
        seen.add(message.full_name)
        for field in message.fields:
            yield field.name
            if field.message_type:
                yield from names_below(field.message_type, seen)


NAMES = sorted({*names_below(Item.DESCRIPTOR, set()), "later", "type", "status"})
WORDS = sorted({*NAMES, *ITEM_TYPES, "user", "assistant", "completed", "high", "url", "exec", "", "é", "iVBORw0KGgo="})
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
values = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES), below, max_size=5),
    max_leaves=20,
)


@st.composite
def documents(draw):
    """Any JSON object, or a documented item with something about it changed."""
    item = draw(st.just({}) | st.sampled_from(list(SAMPLES.values())))
    item = item | draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=6))
    if draw(st.booleans()):
        item["type"] = draw(st.sampled_from([*sorted(ITEM_TYPES), "hologram_call", "item_reference"]))
    if item.get("type") in ("message", None) and item.get("role") is None:
        item["role"] = "user"
    return item


def no_nulls(value):
    """The value without any null in an object, wherever it stands."""
    if isinstance(value, list):
        return [no_nulls(each) for each in value]
    if isinstance(value, dict):
        return {key: no_nulls(child) for key, child in value.items() if child is not None}
    return value


@settings(max_examples=500, deadline=None)
@given(documents())
def test_any_object_comes_back(document):
    """No JSON object loses anything but nulls, and what is stored never changes again."""
    actual = to_json(through_the_wire(from_json(document)))
    assert strictly(no_nulls(as_stored(document))) == strictly(no_nulls(actual))
    assert json.dumps(actual) == json.dumps(to_json(through_the_wire(from_json(actual))))
