"""Encode: responses become bytes, and large ones are counted until their callers have taken them.

Innermost with `Decode`. gRPC holds a response that its caller does not read, and does not tell the method: the call
ends for the interceptors when the method returns.
"""

from typing import Any

import grpc
import grpc.aio

from server.interceptors.chain import Context, Handler, Interceptor, is_contract_method, is_streaming
from server.requests.large import LARGE_BYTES
from server.store.response_budget import ResponseBudget, current_room, release_room

_READS = ("Get", "List", "BatchGet", "Check")  # what the names of methods that write nothing begin with


class Encode(Interceptor):
    """Serializes the responses of the contract's methods in place of grpc.aio; a method may do so itself."""

    def __init__(self, budget: ResponseBudget) -> None:
        self._budget = budget

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` returning bytes, if it is a method of the contract."""
        if not is_contract_method(method):
            return handler
        if is_streaming(handler):
            return _pass_bytes(handler)
        writes = not method.rpartition("/")[2].startswith(_READS)
        answer: Any = handler.unary_unary
        serialize: Any = handler.response_serializer

        async def call(request: Any, context: Context) -> bytes:
            try:
                response = await answer(request, context)
                del request
                body = response if isinstance(response, bytes) else serialize(response)
                if len(body) > LARGE_BYTES:
                    await self._count(len(body), context, patient=writes)
                else:
                    release_room()
            except BaseException:
                release_room()
                raise
            return body

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, None)

    async def _count(self, size: int, context: Context, *, patient: bool) -> None:
        """Counts a response until its call has ended for gRPC too."""
        room = current_room.get() or await self._budget.hold(size, patient=patient)
        current_room.set(room)
        room.shrink(size)
        release: Any = lambda _context: room.release()  # noqa: E731 - the stubs want the callback of a client
        context.add_done_callback(release)


def _pass_bytes(handler: Handler) -> Handler:
    """Returns ``handler``, of which gRPC serializes the responses that are not serialized yet."""
    serialize: Any = handler.response_serializer
    receives = handler.request_streaming
    method: Any = handler.stream_stream if receives else handler.unary_stream
    make = grpc.stream_stream_rpc_method_handler if receives else grpc.unary_stream_rpc_method_handler
    return make(method, handler.request_deserializer, lambda body: body if isinstance(body, bytes) else serialize(body))
