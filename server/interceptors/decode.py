"""Decode: bytes become a request that keeps every rule of the contract.

Innermost, behind Access: nobody makes the server parse what they may not send.
grpc.aio would decode first and tell a malformed body as UNKNOWN with the
exception's text (traps §2.2).
"""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from server.audit import current_request
from server.errors import FieldInvalid, Violation
from server.interceptors.around import Context, Handler, Link
from server.validation import validate


class Decode(Link):
    """Replaces grpc's decoding of unary requests."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` taking bytes, for the methods of this package."""
        if not method.startswith("/conversations.") or handler.request_streaming or handler.response_streaming:
            return handler
        parse: Any = handler.request_deserializer
        call: Any = handler.unary_unary

        async def decoded(body: bytes, context: Context) -> Any:
            try:
                request = parse(body)
            except DecodeError:
                raise FieldInvalid(Violation("", "the request is not a message of its type", "decode")) from None
            validate(request)
            current_request.set(request)
            return await call(request, context)

        return grpc.unary_unary_rpc_method_handler(decoded, None, handler.response_serializer)
