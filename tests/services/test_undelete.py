"""UndeleteConversation: a delete that is taken back, while the rows are there."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING, ListConversationsRequest

from server.store.purge import purge
from tests.support.build import append, create, delete, delete_item, get, list_items, sets, undelete, user_message
from tests.support.postgres import fetch
from tests.support.problems import problem
from tests.support.service import Service, before_statement, intercepted


async def test_it_brings_everything_back(stub: Any) -> None:
    """Items, places, metadata and attributes are as before, in lists too; appends go on behind the last place."""
    made = await stub.CreateConversation(
        create(user_message("a", id="msg_a"), user_message("b"), metadata={"undo": "1"}, attributes=sets(teams=["a"]))
    )
    await stub.DeleteItem(delete_item(made.id, "msg_a"))
    before, items = await stub.GetConversation(get(made.id)), await stub.ListItems(list_items(made.id))
    await stub.DeleteConversation(delete(made.id))
    assert await stub.UndeleteConversation(undelete(made.id)) == before
    assert await stub.GetConversation(get(made.id)) == before
    assert await stub.ListItems(list_items(made.id)) == items
    listed = await stub.ListConversations(ListConversationsRequest(filter='metadata.undo = "1"'))
    assert [each.id for each in listed.conversations] == [made.id]
    assert (await stub.CreateItems(append(made.id, user_message("c")))).items[0].sequence == 3
    found = await stub.ListItems(list_items(made.id, order=ORDER_ASCENDING))
    assert [item.sequence for item in found.items] == [2, 3]


async def test_what_is_refused(service: Service) -> None:
    """One that is not deleted exists; one that never was, is deleted too long or has expired, is not found."""
    stub, url = service.stub, service.url
    made = await stub.CreateConversation(create())
    living = await problem(stub.UndeleteConversation(undelete(made.id)))
    assert (living.code, living.reason) == ("ALREADY_EXISTS", "CONVERSATION_EXISTS")
    assert living.metadata == {"conversationId": made.id}
    await stub.DeleteConversation(delete(made.id))
    states = ["delete_time = now() - interval '721 h'", "delete_time = 'epoch'", "expire_time = now()"]
    for state in states:
        await fetch(
            url,
            f"UPDATE conversations SET delete_time = now(), {state} WHERE id = '{made.id}'".replace(
                "delete_time = now(), delete_time", "delete_time"
            ),
        )
        assert (await problem(stub.UndeleteConversation(undelete(made.id)))).reason == "CONVERSATION_NOT_FOUND"
    await fetch(url, f"UPDATE conversations SET expire_time = 'infinity' WHERE id = '{made.id}'")
    await fetch(url, f"UPDATE conversations SET delete_time = now() - interval '719 h' WHERE id = '{made.id}'")
    assert (await stub.UndeleteConversation(undelete(made.id))).id == made.id
    assert (await problem(stub.UndeleteConversation(undelete("conv_never")))).code == "NOT_FOUND"
    assert set((await problem(stub.UndeleteConversation(undelete("nothing", request_id="x")))).fields) == {
        "conversation_id",
        "request_id",
    }


async def test_repeats(stub: Any) -> None:
    """With a request id a repeated call succeeds, also after another delete and undelete; for another request never."""
    made, rid = await stub.CreateConversation(create()), str(uuid4())
    await stub.DeleteConversation(delete(made.id, request_id=rid))
    back = await stub.UndeleteConversation(undelete(made.id, request_id=rid))
    assert await stub.UndeleteConversation(undelete(made.id, request_id=rid.upper())) == back
    assert (await problem(stub.UndeleteConversation(undelete(made.id)))).reason == "CONVERSATION_EXISTS"
    await stub.DeleteConversation(delete(made.id))
    assert (await problem(stub.UndeleteConversation(undelete(made.id, request_id=rid)))).code == "NOT_FOUND"
    assert (await stub.UndeleteConversation(undelete(made.id))).id == made.id


async def test_a_purge_and_an_undelete_race(own_service: Service) -> None:
    """A conversation comes back whole or not at all, whatever the purge has begun."""
    stub, url = own_service.stub, own_service.url
    for _ in range(20):
        made = await stub.CreateConversation(create(user_message(), user_message(), attributes=sets(teams=["a"])))
        await stub.DeleteConversation(delete(made.id))
        purging = asyncio.ensure_future(purge(url, timedelta(0)))
        undeleting = stub.UndeleteConversation(undelete(made.id))
        back: Any = (await asyncio.gather(undeleting, purging, return_exceptions=True))[0]
        items = await fetch(url, f"SELECT FROM items WHERE conversation_id = '{made.id}'")
        values = await fetch(url, f"SELECT FROM conversation_attributes WHERE conversation_id = '{made.id}'")
        is_back = not isinstance(back, BaseException)
        assert (len(items), len(values)) == ((2, 1) if is_back else (0, 0))


async def test_two_at_once(stub: Any) -> None:
    """One of them brings it back, the others are told that it is there."""
    made = await stub.CreateConversation(create())
    await stub.DeleteConversation(delete(made.id))
    answers = await asyncio.gather(
        *(stub.UndeleteConversation(undelete(made.id)) for _ in range(8)), return_exceptions=True
    )
    assert sum(not isinstance(each, BaseException) for each in answers) == 1


@pytest.mark.parametrize("keep", [0, 1])
async def test_how_long(own_service: Service, keep: int) -> None:
    """The purge decides how long: what it has removed is gone."""
    stub = own_service.stub
    made = await stub.CreateConversation(create(user_message()))
    await stub.DeleteConversation(delete(made.id))
    await purge(own_service.url, timedelta(hours=keep))
    if keep:
        assert (await stub.UndeleteConversation(undelete(made.id))).last_sequence == 1
    else:
        assert (await problem(stub.UndeleteConversation(undelete(made.id)))).code == "NOT_FOUND"


async def test_a_delete_meanwhile(service: Service) -> None:
    """A conversation that was there when the statement ran, and is deleted when its state is read, can be brought back.

    So the answer is a conflict, and the next call succeeds.
    """
    made = await service.stub.CreateConversation(create(user_message()))

    async def delete_it() -> None:
        await fetch(service.url, f"UPDATE conversations SET delete_time = now() WHERE id = '{made.id}'")

    with intercepted(service.database, before_statement(2, delete_it)):
        raced = await problem(service.stub.UndeleteConversation(undelete(made.id)))
    assert (raced.code, raced.reason) == ("ABORTED", "CONFLICT")
    assert (await service.stub.UndeleteConversation(undelete(made.id))).id == made.id
