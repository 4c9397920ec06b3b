"""Failures: everything raised below leaves as a google.rpc.Status.

Outside of everything that can raise. An exception that is not a Failure is
told as INTERNAL with a fixed text: grpc.aio would send its text (traps §2.1).
"""

import asyncio
import secrets
import traceback
from types import TracebackType

import grpc
import grpc.aio
import structlog

from server.errors import Internal, ServiceError
from server.interceptors.chain import Context, Guard, Interceptor

log = structlog.get_logger(__name__)


_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)  # by retry policies


class ErrorStatus(Interceptor):
    """Tells callers what went wrong, and nothing else."""

    def guard(self, method: str) -> Guard:
        """A guard that ends the call with the status of what was raised."""
        return lambda context: _StatusGuard(method, context)


class _StatusGuard:
    __slots__ = ("_context", "_method")

    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, asyncio.CancelledError | grpc.aio.AbortError | GeneratorExit):
            return
        failure = error if isinstance(error, ServiceError) else self._internal(error)
        status = failure.status()
        trailers: tuple[tuple[str, str | bytes], ...] = (("grpc-status-details-bin", status.SerializeToString()),)
        if failure.code in _RETRIED and failure.retry_after_ms is not None:
            # What a client's retry policy waits for (gRFC A6).
            trailers = (*trailers, ("grpc-retry-pushback-ms", str(failure.retry_after_ms)))
        await self._context.abort(failure.code, status.message, trailers)

    def _internal(self, error: BaseException) -> ServiceError:
        incident = secrets.token_hex(8)
        log.error("unexpected error", method=self._method, incident=incident, **_origin(error))
        return Internal(incident)


def _origin(error: BaseException) -> dict[str, object]:
    """What an exception is and where it came from; its text may hold content, so it stays unsaid."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    return {"error": type(error).__name__, "sqlstate": getattr(error, "sqlstate", None), "frames": frames[-6:]}
