"""HttpContext: what the interceptors and the sources of identity see of a request, in place of gRPC's context."""

import re
import time
from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeAlias

import grpc
import grpc.aio
from aiohttp import web

from server.errors import ServiceError
from server.http.connection import Connection
from server.http.errors import problem_of
from server.http.problems import Problem, invalid
from server.http.request import Request

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

_TIMEOUTS = ("x-stainless-timeout", "x-stainless-read-timeout")  # seconds that an SDK waits; some send both
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,4}", re.ASCII)
# SDKs cannot leave the bearer out. One of this form is meant to be checked, and refused by sources that cannot.
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


class HttpContext:
    """One call over HTTP, from the arrival of its head to its answer.

    Attributes:
        request: What the caller asks for.
        status: The status of the answer, as far as it is known: 200 until something else is.
        problem: The answer to a call that has failed.
    """

    __slots__ = ("_code", "_deadline", "_metadata", "_raw", "connection", "problem", "request", "status")

    def __init__(self, raw: web.BaseRequest, connection: Connection, request: Request, *, checks_tokens: bool) -> None:
        """``checks_tokens``: whether a bearer is a credential of the configured source of identity."""
        self.connection = connection
        self.request = request
        self.status = 200
        self.problem: Problem | None = None
        self._raw = raw
        self._code: grpc.StatusCode | None = None
        self._metadata = _metadata_of(raw, checks_tokens=checks_tokens)
        seconds = _seconds_of(raw)
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def header(self, name: str) -> str | None:
        """Returns the value of a header; None if there is none.

        Raises:
            RequestInvalid: It came more than once.
        """
        values = self._raw.headers.getall(name, ())
        if len(values) > 1:
            raise invalid(f"Duplicate header: '{name}'.", "invalid_value", name)
        return values[0] if values else None

    @property
    def query(self) -> str:
        """The query as it came."""
        return self._raw.rel_url.raw_query_string

    @property
    def retry_count(self) -> int:
        """How often an SDK says that it has sent the request before."""
        text = self._raw.headers.get("x-stainless-retry-count", "")
        return int(text) if _COUNT.fullmatch(text) else 0

    def invocation_metadata(self) -> Metadata:
        """Returns the headers with lower-case names; a value that gRPC could not carry as text is bytes."""
        return self._metadata

    def peer(self) -> str:
        """Returns the other end of the connection as gRPC writes it."""
        return self.connection.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Returns what TLS has verified of the other end, under gRPC's names."""
        return self.connection.auth_context

    def time_remaining(self) -> float | None:
        """Returns the seconds that the caller still waits; None if it does not say."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def code(self) -> grpc.StatusCode | None:
        """Returns the code of the error that the call has ended with; None if there is none."""
        return self._code

    def fail(self, error: ServiceError) -> NoReturn:
        """Ends the call with ``error``.

        Raises:
            grpc.aio.AbortError: Always, as gRPC does.
        """
        self._code = error.code
        self.problem = problem_of(error, self.request)
        self.status = self.problem.status
        raise grpc.aio.AbortError


def _metadata_of(raw: web.BaseRequest, *, checks_tokens: bool) -> Metadata:
    pairs = ((name.lower(), value) for name, value in raw.headers.items())
    return tuple(
        (name, value if value.isascii() else value.encode(errors="surrogateescape"))
        for name, value in pairs
        if checks_tokens or name != "authorization" or _is_credential(value)
    )


def _is_credential(authorization: str) -> bool:
    """Whether the header is more than the key that an SDK sends because it has to send one."""
    scheme, _, token = authorization.partition(" ")
    return scheme.lower() != "bearer" or _JWT.fullmatch(token.strip()) is not None


def _seconds_of(raw: web.BaseRequest) -> float | None:
    sent = (raw.headers.get(name, "") for name in _TIMEOUTS)
    seconds = [float(each) for each in sent if _SECONDS.fullmatch(each)]
    return min((each for each in seconds if each > 0), default=None)
