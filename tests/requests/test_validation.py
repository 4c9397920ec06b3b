"""Validation agrees with protovalidate, and its work has a bound that no request can exceed."""

from collections.abc import Iterator
from typing import Any

import pytest
from buf.validate import validate_pb2
from conversations.v1.access_service_pb2 import CheckAccessRequest, Permission
from conversations.v1.content_pb2 import ROLE_USER, Content, InputText
from conversations.v1.conversation_pb2 import AttributeValues, Conversation
from conversations.v1.conversations_service_pb2 import BatchGetItemsRequest, UpdateConversationRequest
from conversations.v1.item_body_pb2 import Message
from conversations.v1.item_pb2 import Item, NewItem
from google.protobuf.message import Message as ProtobufMessage
from protovalidate import Validator

from server.errors import FieldInvalid
from server.requests import validation
from server.requests.elements import children
from server.requests.validation import FEW_ELEMENTS, validate
from tests.support.build import append, new_item, user_message
from tests.support.random_messages import REQUEST_TYPES, MessageGenerator, types_below

PROTOVALIDATE = Validator()
TEXT = Content(input_text=InputText(text="a"))
OK = Permission(resource="conversation", action="read")


class Recorder:
    """protovalidate, with a note of each message that it visits as a whole."""

    def __init__(self) -> None:
        self.visited: list[ProtobufMessage] = []

    def collect_violations(self, message: ProtobufMessage, *, fail_fast: bool = False) -> list[Any]:
        """Returns the violations."""
        if not fail_fast:
            self.visited.append(message)
        return PROTOVALIDATE.collect_violations(message, fail_fast=fail_fast)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records what protovalidate visits."""
    recorder = Recorder()
    monkeypatch.setattr(validation, "_validator", recorder)
    return recorder


def violations(request: Any) -> set[tuple[str, str, str]]:
    """What `validate` finds."""
    try:
        validate(request)
    except FieldInvalid as error:
        return {(each.field, each.rule, each.reason) for each in error.violations}
    return set()


def all_violations(request: Any) -> set[tuple[str, str, str]]:
    """What protovalidate finds, in the same words."""
    found = (validation._violation(each) for each in PROTOVALIDATE.collect_violations(request))
    return {(each.field, each.rule, each.reason) for each in found}


def contents(*parts: Content) -> NewItem:
    """A message of these parts."""
    return new_item(message=Message(role=ROLE_USER, content=parts))


def attributes(count: int, *names: str, request_id: str = "", id: str = "conv_a") -> UpdateConversationRequest:  # noqa: A002
    """An update with so many values of each attribute."""
    values = AttributeValues(values=[f"v{number}" for number in range(count)])
    conversation = Conversation(id=id, attributes=dict.fromkeys(names, values))
    return UpdateConversationRequest(conversation=conversation, request_id=request_id)


BATCH = BatchGetItemsRequest(conversation_id="conv_a")
LARGE: dict[str, tuple[Any, set[str]]] = {
    "ids": (BatchGetItemsRequest(conversation_id="conv_a", item_ids=[""] * 30_000), {"item_ids", "item_ids[0]"}),
    "valid ids": (BatchGetItemsRequest(conversation_id="conv_a", item_ids=["msg_1"] * 101), {"item_ids"}),
    "permissions": (CheckAccessRequest(conversation_id="conv_a", permissions=[Permission()] * 300), {"permissions"}),
    "permissions beside an id": (CheckAccessRequest(permissions=[OK] * 300), {"conversation_id", "permissions"}),
    "items": (append("conv_a", *[user_message()] * 201), {"items"}),
    "parts": (append("conv_a", contents(*[Content()] * 300)), {"items[0].item.message.content[0].part"}),
    "the last part": (
        append("conv_a", user_message(), contents(*[TEXT] * 300, Content())),
        {"items[1].item.message.content[300].part"},
    ),
    "an id beside parts": (append("x", contents(*[TEXT] * 300)), {"conversation_id"}),
    "an item beside parts": (append("conv_a", contents(*[TEXT] * 300), NewItem(item=Item())), {"items[1].item.body"}),
    "values": (attributes(257, "teams"), {'conversation.attributes["teams"].values'}),
    "a name": (attributes(250, "teams", "Teams"), {'conversation.attributes["Teams"]'}),
    "names": (attributes(20, *(f"a{number}" for number in range(17))), {"conversation.attributes"}),
    "a request id beside names": (attributes(250, "teams", "roles", request_id="x"), {"request_id"}),
    "no id beside names": (attributes(250, "teams", "roles", id=""), {"conversation"}),
    "valid": (attributes(250, "teams", "roles"), set()),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_large_request(case: str) -> None:
    """The first message that breaks a rule is found however large the request is, and told in protovalidate's words."""
    request, expected = LARGE[case]
    found = violations(request)
    assert expected <= {field for field, _, _ in found}
    assert found <= all_violations(request)
    assert bool(found) == bool(expected)


@pytest.mark.parametrize("case", LARGE)
def test_protovalidate_visits_little(case: str, recorder: Recorder) -> None:
    """Protovalidate never visits more than a few hundred elements, unless it stops at the first violation."""
    violations(LARGE[case][0])
    assert all(each.ByteSize() < 16 * 1024 for each in recorder.visited)
    assert all(elements(each) <= 257 for each in recorder.visited)


def elements(message: Any) -> int:
    """How many elements the lists and maps of a message have, all together."""
    return sum(
        (len(value) if field.is_repeated else 0) + sum(elements(child) for _, child in children(field, value))
        for field, value in message.ListFields()
    )


@pytest.mark.parametrize(("count", "found"), [(FEW_ELEMENTS, FEW_ELEMENTS), (FEW_ELEMENTS + 1, 1)])
def test_violations_of_few_elements(count: int, found: int) -> None:
    """A request of 200 elements is told all its violations, one of 201 those of the first invalid message."""
    parts = [Content()] * (count - 1)  # the item is an element too
    assert len(violations(append("conv_a", contents(*parts)))) == min(found, count - 1)


@pytest.mark.parametrize("request_type", REQUEST_TYPES, ids=lambda each: each.name)
def test_random_requests(request_type: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in the way of large requests, the violations are some of protovalidate's, and none only when it has none."""
    monkeypatch.setattr(validation, "FEW_ELEMENTS", -1)
    maker, broken = MessageGenerator(23), 0
    for number in range(400):
        request = maker.make(request_type, (0.0, 0.02, 0.1, 0.3)[number % 4])
        found, everything = violations(request), all_violations(request)
        assert found <= everything
        assert bool(found) == bool(everything)
        broken += bool(found)
    assert broken > 20


def lists_of_scalars() -> Iterator[Any]:
    """The lists of scalars of all requests."""
    for each in types_below(*REQUEST_TYPES):
        yield from (field for field in each.fields if field.is_repeated and not field.message_type)


def test_lists_with_rules_have_limits() -> None:
    """A list of scalars with a rule about its elements also has a limit: only so many elements are looked at."""
    with_rules = [
        field.full_name
        for field in lists_of_scalars()
        if (rules := field.GetOptions().Extensions[validate_pb2.field]).repeated.HasField("items")
        and not rules.repeated.max_items
    ]
    assert [] == with_rules
