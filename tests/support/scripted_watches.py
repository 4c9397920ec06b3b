"""A service whose watches end as a script says, to see what clients do then."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from conversations.v1.conversations_service_pb2 import ItemChange, WatchItemsRequest, WatchItemsResponse
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode


@dataclass(frozen=True)
class Stream:
    """What a client gets: a message with this token, or a stream that ends with this status.

    Attributes:
        token: Of the message.
        is_last: Whether the message says that the conversation has been deleted.
        code: Of the status; a stream with a message ends with OK.
        reason: Of the status.
        retry_seconds: What RetryInfo says; 0: there is none.
        least_pause: Seconds until the client may come again.
    """

    token: str = ""
    is_last: bool = False
    code: StatusCode = StatusCode.OK
    reason: str = ""
    retry_seconds: float = 0.0
    least_pause: float = 0.0

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """The details of the status, as they are sent."""
        status = Status(code=self.code.value[0])
        status.details.add().Pack(ErrorInfo(reason=self.reason, domain="conversations.v1"))
        if self.retry_seconds:
            status.details.add().Pack(RetryInfo(retry_delay=Duration(nanos=round(self.retry_seconds * 1e9))))
        return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclass(frozen=True)
class Call:
    """What a client sent.

    Attributes:
        token: Behind which it goes on.
        authorization: Its credentials.
        pause: Seconds since the end of the stream before.
    """

    token: str
    authorization: str
    pause: float


@dataclass
class ScriptedWatches:
    """The service, which has no other method.

    Attributes:
        streams: What the next calls of WatchItems get, in order.
        address: Where it listens.
        calls: What those calls sent.
    """

    streams: list[Stream]
    address: str = ""
    calls: list[Call] = field(default_factory=list)
    _ended_at: float = field(default_factory=time.monotonic)

    async def watch_items(
        self, request: WatchItemsRequest, context: "grpc.aio.ServicerContext[WatchItemsRequest, WatchItemsResponse]"
    ) -> AsyncIterator[WatchItemsResponse]:
        """The next stream of the script."""
        metadata = dict(context.invocation_metadata() or ())
        pause = time.monotonic() - self._ended_at
        self.calls.append(Call(request.resume_token, str(metadata.get("authorization", "")), pause))
        stream = self.streams[len(self.calls) - 1]
        if stream.token:
            changes = [ItemChange(conversation_deleted=Empty())] if stream.is_last else []
            yield WatchItemsResponse(resume_token=stream.token, changes=changes)
        self._ended_at = time.monotonic()
        if stream.code is not StatusCode.OK:
            await context.abort(stream.code, "as scripted", stream.trailers())


@asynccontextmanager
async def scripted_watches(streams: list[Stream]) -> AsyncIterator[ScriptedWatches]:
    """The service on a free port."""
    scripted = ScriptedWatches(streams)
    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(
        scripted.watch_items,
        request_deserializer=WatchItemsRequest.FromString,
        response_serializer=WatchItemsResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("conversations.v1.ConversationsService", {"WatchItems": method})
    server.add_generic_rpc_handlers((service,))
    scripted.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield scripted
    finally:
        await server.stop(None)
