"""The client of OGX against the service: `python main.py BASE_URL`, which says `ok` after each step."""

import sys
from collections.abc import Callable
from typing import Any

from ogx_client import APIStatusError, BadRequestError, NotFoundError, OgxClient

HELLO: Any = {"type": "message", "role": "user", "content": "hello"}
ITEMS: Any = [
    HELLO,
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Ulm"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look it up."}]},
]


def create(client: OgxClient) -> None:
    """Create, retrieve, update and delete return the client's objects."""
    made = client.conversations.create(metadata={"a": "b"}, items=[HELLO])
    assert ("conversation", {"a": "b"}) == (made.object, made.metadata)
    assert made == client.conversations.retrieve(made.id)
    assert {"a": "c"} == client.conversations.update(made.id, metadata={"a": "c"}).metadata
    gone = client.conversations.delete(made.id)
    assert (made.id, "conversation.deleted", True) == (gone.id, gone.object, gone.deleted)


def pages(client: OgxClient) -> None:
    """45 items are walked by sevens in both directions."""
    made = client.conversations.create()
    for start in range(0, 45, 15):
        items = [{**HELLO, "content": str(start + n)} for n in range(15)]
        client.conversations.items.create(made.id, items=items)
    for order, expected in (("asc", [*range(45)]), ("desc", [*range(44, -1, -1)])):
        found = client.conversations.items.list(made.id, limit=7, order=order)
        assert expected == [int(item.content[0].text) for item in found]


def items(client: OgxClient) -> None:
    """Items of several types are read with its classes, and one of them is deleted."""
    made = client.conversations.create()
    stored = client.conversations.items.create(made.id, items=ITEMS).data
    assert [item["type"] for item in ITEMS] == [item.type for item in stored]
    assert ("weather", "rain") == (stored[1].name, stored[2].output)
    read = client.conversations.items.get(
        stored[0].id, conversation_id=made.id, include=["reasoning.encrypted_content"]
    )
    assert stored[0].to_dict() == read.to_dict()
    assert made.id == client.conversations.items.delete(stored[0].id, conversation_id=made.id).id
    assert 3 == len(client.conversations.items.list(made.id).data)


def errors(client: OgxClient) -> None:
    """Each status is the exception of its class, with the body of the answer."""
    made = client.conversations.create()
    for call, kind, param in (
        (lambda: client.conversations.items.list(made.id, limit=1000), BadRequestError, "limit"),
        (lambda: client.conversations.items.list(made.id, after="msg_x"), NotFoundError, "after"),
        (lambda: client.conversations.retrieve("conv_x"), NotFoundError, None),
    ):
        assert (kind, param) == refused(call)


def refused(call: Callable[[], Any]) -> tuple[type[APIStatusError] | None, Any]:
    """The exception of a call that fails, and the param in the body of its answer."""
    try:
        call()
    except APIStatusError as error:
        body: Any = error.body
        return type(error), body["error"]["param"]
    return None, None


if __name__ == "__main__":
    with OgxClient(base_url=sys.argv[1].removesuffix("/v1"), api_key="unused") as ogx:
        for step in (create, pages, items, errors):
            step(ogx)
            print(step.__name__, "ok")
