"""A watch that a test reads."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc.aio
from conversations.v1.conversations_service_pb2 import WatchItemsRequest, WatchItemsResponse


class Watch:
    """A call of WatchItems.

    Attributes:
        call: The call.
        token: Of the last message.
    """

    def __init__(self, stub: Any, conversation_id: str, metadata: Sequence[tuple[str, str]] = (), **start: Any) -> None:
        """``start``: the field of the request that says where to begin."""
        request = WatchItemsRequest(conversation_id=conversation_id, **start)
        self.call = stub.WatchItems(request, metadata=metadata, timeout=60)
        self.token = ""

    async def read(self) -> WatchItemsResponse | None:
        """The next message, which comes within seconds; None at the end."""
        async with asyncio.timeout(5):
            response = await self.call.read()
        if response is grpc.aio.EOF:
            return None
        self.token = response.resume_token
        return response  # type: ignore[no-any-return]
