"""Large requests that fail: their memory is free when the budget counts them out, without a garbage collection."""

import asyncio
import weakref
from typing import Any, NoReturn

import grpc
import pytest
from conversations.v1 import conversations_service_pb2 as pb

from server.authorization.audit_log import current_request
from server.errors import ConversationNotFound, FieldInvalid, StoreUnavailable, forget_frames
from server.interceptors.decode import Decode
from tests.support.build import user_message

METHOD = "/conversations.v1.ConversationsService/CreateItems"
CONVERSATION = "conv_" + "0" * 48


class Call:
    """A context whose request is large and valid."""

    async def read(self) -> bytes:
        """The bytes of the request."""
        items = [user_message("x" * 100_000)]
        return pb.CreateItemsRequest(conversation_id=CONVERSATION, items=items).SerializeToString()

    def peer(self) -> str:
        """The connection."""
        return "ipv4:127.0.0.1:1"


class Work:
    """What a method needs memory for; it waits for a future that ends with an error, as an append does."""

    def __init__(self, error: Exception) -> None:
        self.answer = asyncio.get_running_loop().create_future()
        self.answer.set_exception(error)


async def test_a_failed_request_is_freed_at_once(without_collection: None) -> None:
    """The future holds the error, the error its frames, and a frame the future: that circle has to be cut."""
    kept: list[weakref.ref[Any]] = []

    async def fails(_request: pb.CreateItemsRequest, _context: Any) -> NoReturn:
        work = Work(ConversationNotFound(CONVERSATION))
        kept.append(weakref.ref(work))
        await work.answer
        raise AssertionError

    decode = Decode(2**20).wrap(METHOD, grpc.unary_unary_rpc_method_handler(fails, pb.CreateItemsRequest.FromString))
    token = current_request.set(None)
    with pytest.raises(ConversationNotFound):
        await decode.unary_unary(None, Call())  # type: ignore[misc, arg-type]
    current_request.reset(token)
    assert kept[0]() is None


class Body(bytes):
    """The bytes of a request; there are no weak references to bytes.

    Attributes:
        freed: How many are.
    """

    freed = 0

    def __del__(self) -> None:
        Body.freed += 1


class TooLarge(Call):
    """A context whose request is larger than a method without items takes."""

    async def read(self) -> bytes:
        """The bytes of the request."""
        return Body(100_000)


@pytest.mark.parametrize("method", ["/conversations.v1.ConversationsService/ListItems", "/grpc.health.v1.Health/Check"])
async def test_a_request_that_has_to_be_small_and_is_not_is_freed_at_once(
    without_collection: None, method: str
) -> None:
    """Its error does not keep it: a stranger would fill the process with it, through health."""
    before = Body.freed
    decode = Decode(2**20).wrap(method, grpc.unary_unary_rpc_method_handler(object, bytes))
    with pytest.raises(FieldInvalid) as caught:
        await decode.unary_unary(None, TooLarge())  # type: ignore[misc, arg-type]
    assert (Body.freed - before, caught.value.violations[0].reason) == (1, "request.max_bytes")


class Malformed(Call):
    """A context whose request is large and no message."""

    async def read(self) -> bytes:
        """The bytes of the request."""
        return Body(b"\xff" * 100_000)


async def test_a_request_that_cannot_be_parsed_is_freed_at_once(without_collection: None) -> None:
    """The parser's error, because of which the request is refused, does not keep it either."""
    before = Body.freed
    handler: Any = grpc.unary_unary_rpc_method_handler(object, pb.CreateItemsRequest.FromString)
    with pytest.raises(FieldInvalid) as caught:
        await Decode(2**20).wrap(METHOD, handler).unary_unary(None, Malformed())  # type: ignore[misc, arg-type]
    assert (Body.freed - before, caught.value.violations[0].reason) == (1, "decode")


def test_causes_are_cut_too() -> None:
    """An error that was raised because of another one keeps the frames of both."""
    with pytest.raises(StoreUnavailable) as caught:
        fail_for_a_cause()
    cause = caught.value.__cause__
    assert cause is not None
    assert cause.__traceback__ is not None
    forget_frames(caught.value)
    assert [caught.value.__traceback__, cause.__traceback__] == [None, None]


def fail_for_a_cause() -> NoReturn:
    """Fails because of another error."""
    try:
        open_nothing()
    except OSError as lost:
        raise StoreUnavailable from lost


def open_nothing() -> NoReturn:
    """Fails."""
    raise OSError
