"""Problems: the answers that are no success, and those that need to know nothing of the caller."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.errors import FieldInvalid, Violation
from server.items.text import Json, dumps

_MAX_SHOWN = 128  # characters of what a caller sent, in a message


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is no success.

    Attributes:
        retry: Whether the same request may be sent again: False also where it may have been done.
        retry_after_ms: How long to wait before.
        closes: Whether the connection ends with the answer.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry: bool = False
    retry_after_ms: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False

    def body(self) -> bytes:
        """Returns the JSON of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error: dict[str, Json] = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return dumps({"error": error})

    def all_headers(self) -> dict[str, str]:
        """Returns the headers of the answer; SDKs obey the three about retries."""
        found = {**self.headers, "x-should-retry": "true" if self.retry else "false"}
        if self.retry and self.retry_after_ms is not None:
            found["retry-after-ms"] = str(self.retry_after_ms)
            found["Retry-After"] = str(max(1, round(self.retry_after_ms / 1000)))
        return found


class RequestInvalid(FieldInvalid):
    """A request that the edge refuses; over gRPC there is no such request, or it is INVALID_ARGUMENT."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(Violation(problem.param or "", "is not valid", problem.code or ""))
        self.problem = problem


def invalid(message: str, code: str | None, param: str | None = None) -> RequestInvalid:
    """Returns the error of a request that breaks a rule whatever the state."""
    return RequestInvalid(Problem(400, message, code, param))


def invalid_type(path: str, expected: str, given: str) -> RequestInvalid:
    """Returns the error of JSON of the wrong kind; the kinds have their articles."""
    message = f"Invalid type for '{path}': expected {expected}, but got {given} instead."
    return invalid(message, "invalid_type", path)


def too_many_elements(path: str, limit: int, length: int) -> Problem:
    """Returns the answer to an array of ``length`` elements where ``limit`` may be."""
    message = (
        f"Invalid '{path}': array too long. Expected an array with maximum length {limit}, "
        f"but got an array with length {length} instead."
    )
    return Problem(400, message, "array_above_max_length", path)


def clip(text: str) -> str:
    """Returns ``text``, cut to what a message has room for."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def unknown_cursor(what: str, identifier: str) -> Problem:
    """Returns the answer to a cursor that is not there."""
    return Problem(404, f"No {what} found with id '{clip(identifier)}'", param="after")


# What is refused before anybody is authenticated.


def too_large(limit: int) -> Problem:
    """Returns the answer to a body of more than ``limit`` bytes, also when decompressed."""
    return Problem(413, f"The request body must have at most {limit} bytes.", "request_too_large", closes=True)


def invalid_url(verb: str, path: str) -> Problem:
    """Returns the answer to a path that is not served."""
    return Problem(404, f"Invalid URL ({clip(verb)} {clip(path)})")


def wrong_method(verb: str, path: str, allowed: str) -> Problem:
    """Returns the answer to a method that a path does not have."""
    return Problem(405, f"Invalid URL ({clip(verb)} {clip(path)})", headers={"Allow": allowed})


UNSUPPORTED_MEDIA_TYPE = Problem(
    415, "The request body must have the header Content-Type: application/json.", "unsupported_media_type"
)
UNSUPPORTED_ENCODING = Problem(
    415, "Compressed request bodies are not accepted; send it without Content-Encoding.", "unsupported_media_type"
)
ORIGIN_REFUSED = Problem(403, "Requests of web pages are not accepted.")
MISDIRECTED = Problem(421, "This name in the header Host is not served.", closes=True)
SLOW_BODY = Problem(408, "The request body did not arrive in time.", retry=True, closes=True)
BROKEN_BODY = Problem(400, "Invalid body: it could not be read.", closes=True)
BAD_EXPECTATION = Problem(417, "The header Expect may only be 100-continue.")
NOT_HTTP = Problem(400, "The request is not valid HTTP.", closes=True)
HEAD_TOO_LARGE = Problem(431, "The headers of the request are too large.", closes=True)
TOO_MANY_CONNECTIONS = Problem(
    503, "There are too many connections; try again.", retry=True, retry_after_ms=1000, closes=True
)
UNEXPECTED = Problem(500, "Internal error.", closes=True)
