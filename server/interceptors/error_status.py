"""ErrorStatus: whatever is raised below leaves as a google.rpc.Status.

Outside of everything that can raise. An exception that is not a `ServiceError` becomes
INTERNAL with a fixed text: grpc.aio would send the exception's own text.
"""

import asyncio
import secrets
import traceback
from types import TracebackType
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog

from server.errors import Internal, ServiceError
from server.interceptors.chain import Context, Guard, Handler, Interceptor

log = structlog.get_logger(__name__)

# After these there is nothing to send: the call was cancelled or has its status, or gRPC could not send it that
# because its caller has left (InternalError, for which grpc.aio has one line that `logs` leaves out).
_ENDS = (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit, grpc.aio.InternalError)

Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]

# Codes that retry policies of clients wait for; others get no pushback.
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class ErrorStatus(Interceptor):
    """Ends a failed call with code, message and details of its error, and nothing else."""

    def guard(self, method: str) -> Guard:
        """Returns a guard that aborts the call with the status of what was raised."""
        return lambda context: _StatusGuard(self, method, context)

    async def end(self, context: Context, error: ServiceError) -> None:
        """Ends a call with ``error``; raises what tells gRPC that it has ended."""
        await context.abort(error.code, str(error), trailers_of(error))


class _StatusGuard:
    __slots__ = ("_context", "_method", "_statuses")

    def __init__(self, statuses: ErrorStatus, method: str, context: Context) -> None:
        self._statuses = statuses
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, _ENDS):
            return
        reported = error if isinstance(error, ServiceError) else self._internal(error)
        await self._statuses.end(self._context, reported)

    def _internal(self, error: BaseException) -> ServiceError:
        """Logs an unexpected exception, and returns the error that names its log line."""
        incident = secrets.token_hex(8)
        log.error("unexpected error", method=self._method, incident=incident, **_origin(error))
        return Internal(incident)


def abort_with(error: ServiceError) -> Handler:
    """Returns a handler that ends each call with ``error``, whose status is serialized once."""
    code, message, trailers = error.code, str(error), trailers_of(error)

    async def abort(_request: Any, context: Context) -> None:
        await context.abort(code, message, trailers)

    return grpc.unary_unary_rpc_method_handler(abort)


def trailers_of(error: ServiceError) -> Trailers:
    """Returns the trailing metadata of a call that ends with ``error``."""
    details: Trailers = (("grpc-status-details-bin", error.status().SerializeToString()),)
    pushback = _pushback(error)
    return (*details, ("grpc-retry-pushback-ms", pushback)) if pushback else details


def _pushback(error: ServiceError) -> str:
    """Returns how long a retry policy must wait, in milliseconds; a negative number forbids retries (gRFC A6)."""
    if error.forbids_retries:
        return "-1"
    return str(error.retry_after_ms) if error.code in _RETRIED and error.retry_after_ms is not None else ""


def _origin(error: BaseException) -> dict[str, object]:
    """Returns what an exception is and where it came from, without its text, which may hold content."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"error": type(error).__name__, "sqlstate": getattr(error, "sqlstate", None), "frames": frames[-6:]}
