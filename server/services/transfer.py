"""TransferService: the contract's methods over the store."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from conversations.v1 import transfer_service_pb2 as pb
from conversations.v1.transfer_service_pb2_grpc import TransferServiceServicer

from server.interceptors.chain import Context
from server.interceptors.concurrency import StreamLimit
from server.policy.principal import current_principal_key
from server.services.export_stream import ExportParts, ExportStream
from server.services.import_stream import ImportParts, ImportStream


class TransferServicer(TransferServiceServicer):
    """Streams whole conversations out and in.

    Args:
        exports: What exports need.
        imports: What imports need.
        limit: Of the exports at once; each holds a block of items while its caller takes its time.
    """

    def __init__(self, exports: ExportParts, imports: ImportParts, limit: StreamLimit) -> None:
        self._exports = exports
        self._imports = imports
        self._limit = limit

    async def ExportConversations(self, request: pb.ExportConversationsRequest, context: Context) -> AsyncIterator[Any]:
        """Streams conversations; see `ExportStream.respond`.

        Raises:
            Overloaded: As many exports as may be run already.
        """
        principal = current_principal_key()
        self._limit.begin(principal)
        try:
            async with aclosing(ExportStream(request, self._exports).respond(context)) as records:
                async for record in records:
                    yield record
        finally:
            self._limit.end(principal)

    def ImportConversations(
        self, request_iterator: AsyncIterator[pb.ImportConversationsRequest], context: Context
    ) -> AsyncIterator[pb.ImportConversationsResponse]:
        """Writes conversations as they were elsewhere; see `ImportStream.respond`."""
        return ImportStream(self._imports).respond(request_iterator)
