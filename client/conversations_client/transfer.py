"""Exports and imports conversations, through everything that ends a stream before its time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from typing import TypeAlias

import grpc.aio
from conversations.v1.transfer_service_pb2 import (
    ExportConversationsRequest,
    ImportConversationsRequest,
    ImportConversationsResponse,
    Record,
)
from grpc import StatusCode

from conversations_client.recovery import Recovery, Renew, behind

_TRANSIENT = {
    StatusCode.UNAVAILABLE,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.CANCELLED,
    StatusCode.DEADLINE_EXCEEDED,  # a server ends streams after five minutes
    StatusCode.ABORTED,
}

Import: TypeAlias = "grpc.aio.StreamStreamCall[ImportConversationsRequest, ImportConversationsResponse]"
OpenImport = Callable[[AsyncIterator[ImportConversationsRequest]], Import]


async def export_conversations(
    open_stream: (
        "Callable[[ExportConversationsRequest], grpc.aio.UnaryStreamCall[ExportConversationsRequest, Record]]"
    ),
    request: ExportConversationsRequest,
    *,
    resume_token: str = "",
    renew: Renew | None = None,
) -> AsyncGenerator[Record, None]:
    """Yields the records of an export, to its end.

    A record counts as kept when the next one is asked for: what has to survive a crash is stored before that, together
    with the record's `resume_token`.

    Args:
        open_stream: `client.transfers.ExportConversations`; a partial of it if a call needs metadata.
        request: Which conversations.
        resume_token: Of the last record that was kept, if one was.
        renew: Gets new credentials for the next stream, after the server has refused the last ones.

    Raises:
        grpc.aio.AioRpcError: The export cannot go on: a conversation is missing, or the token is of another request.
    """
    recovery = Recovery(renew, _TRANSIENT)
    while True:
        call = open_stream(behind(resume_token, request))
        try:
            async for record in call:
                recovery.note_message()
                yield record
                resume_token = record.resume_token
        except grpc.aio.AioRpcError as error:
            await recovery.after_error(error)
        else:
            return
        finally:
            call.cancel()


async def import_conversations(
    open_stream: OpenImport,
    records: Callable[[Collection[str]], AsyncIterator[Record]],
    *,
    renew: Renew | None = None,
) -> AsyncGenerator[ImportConversationsResponse, None]:
    """Yields what becomes of each conversation: `imported`, or the `error` of one that was refused.

    A stream that broke is begun again with the conversations that have no answer yet.

    Args:
        open_stream: `client.transfers.ImportConversations`; a partial of it if a call needs metadata.
        records: Returns the records of all conversations but those with some ids; called for each stream.
        renew: Gets new credentials for the next stream, after the server has refused the last ones.

    Raises:
        grpc.aio.AioRpcError: The import cannot go on: the caller may not import, or a record has no conversation.
        Exception: What ``records`` raises.
    """
    recovery, answered = Recovery(renew, _TRANSIENT), set[str]()
    while True:
        stream = _ImportStream(open_stream, records(answered))
        try:
            async for answer in stream.answers():
                recovery.note_message()
                if answer.WhichOneof("result") != "stored_sequence":
                    answered.add(answer.conversation_id)
                    yield answer
        except _ErrorLost:
            await recovery.after_loss()
        except grpc.aio.AioRpcError as error:
            await recovery.after_error(error)
        else:
            return
        finally:
            stream.close()


class _ErrorLost(Exception):
    """The stream ended while a record was written, and grpc.aio has lost the error that it ended with."""


class _ImportStream:
    """One stream of an import.

    The first record goes alone, until it is answered: an error that is not lost is then seen by the next stream.
    """

    def __init__(self, open_stream: OpenImport, records: AsyncIterator[Record]) -> None:
        self._records = records
        self._problem: Exception | None = None  # of `records`
        self._goes_on = asyncio.Event()  # the first answer has come, or the stream is over
        self._is_over = False
        self._call = open_stream(self._requests())

    def close(self) -> None:
        """Ends it."""
        self._is_over = True
        self._goes_on.set()
        self._call.cancel()

    async def answers(self) -> AsyncGenerator[ImportConversationsResponse, None]:
        """Yields the answers; raises _ErrorLost, or what the records raise."""
        try:
            async for answer in self._call:
                self._goes_on.set()
                yield answer
        except grpc.aio.AioRpcError as error:
            if self._problem or error.details() != "Internal error from Core":
                raise self._problem or error from None
            raise _ErrorLost from error
        except asyncio.CancelledError:  # of the call, which is cancelled when a record cannot be written
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise self._problem or _ErrorLost from None

    async def _requests(self) -> AsyncGenerator[ImportConversationsRequest, None]:
        try:
            async for record in self._records:
                yield ImportConversationsRequest(record=record)
                await self._goes_on.wait()
                if self._is_over:
                    return
        except Exception as problem:
            self._problem = problem
            raise
