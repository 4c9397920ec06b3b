"""A request has a bound on its values, beside that on its bytes."""

from typing import Any

import pytest
from conversations.v1.conversations_service_pb2 import CreateItemsRequest
from conversations.v1.item_body_pb2 import AdditionalTools

from server.errors import FieldInvalid
from server.requests.elements import MAX_ELEMENTS, check_elements, has_at_most
from tests.support.build import append, new_item, user_message
from tests.support.problems import problem


def tools(count: int) -> CreateItemsRequest:
    """A request of one item with so many empty tools: count + 1 elements."""
    made = AdditionalTools()
    for _ in range(count):
        made.tools.add()
    return append("conv_a", new_item(additional_tools=made))


@pytest.mark.parametrize(("count", "fits"), [(0, True), (9, True), (10, False), (11, False)])
def test_elements_are_counted(count: int, fits: bool) -> None:  # noqa: FBT001
    """The elements of all lists and maps count, wherever they stand; ten fit into ten, eleven do not."""
    assert has_at_most(10, tools(count)) is fits


def test_the_limit_of_a_request() -> None:
    """100,000 elements pass, one more is refused with the limit."""
    check_elements(tools(MAX_ELEMENTS - 1))
    with pytest.raises(FieldInvalid) as refused:
        check_elements(tools(MAX_ELEMENTS))
    assert [each.reason for each in refused.value.violations] == ["request.max_elements"]


async def test_a_large_request_of_small_values(stub: Any) -> None:
    """A request of 100,001 elements is refused over the wire, one of a few large ones is not."""
    failure = await problem(stub.CreateItems(tools(MAX_ELEMENTS)))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", {"": "request.max_elements"})
    assert (await problem(stub.CreateItems(append("conv_a", user_message("x" * 200_000))))).code == "NOT_FOUND"
