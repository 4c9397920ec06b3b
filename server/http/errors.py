"""What a caller over HTTP is told: one table from errors to status, code, param and wording.

The wording is that of the OpenAI API where it has been recorded. An error that the edge itself finds is a
`RequestInvalid`, which brings its `Problem` along; every other one is a `ServiceError` of the service and has a row.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeAlias

from server import errors
from server.errors import FieldInvalid, ServiceError, Violation
from server.http.paths import Step, json_steps, lookup, shown
from server.http.request import Request
from server.items.text import Json, dumps

_MAX_SHOWN = 128  # characters of what a caller sent, in a message
_MAX_MORE = 2  # further violations in a message
_NUMBER = re.compile(r"\d+")


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


class Retry(Enum):
    """Whether a request that failed may be sent again."""

    NEVER = auto()  # it would fail again
    SAFE = auto()  # nothing was written
    REPEATABLE = auto()  # it may have been done, so only if doing it twice is the same


Wording: TypeAlias = Callable[[ServiceError, Request], str]


@dataclass(frozen=True, slots=True)
class Row:
    """What one class of errors becomes; ``wording`` of None is the text that callers over gRPC get."""

    status: int
    code: str | None = None
    param: str | None = None
    retry: Retry = Retry.NEVER
    wording: Wording | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _item_not_found(error: ServiceError, request: Request) -> str:
    where = "" if request.verb == "POST" else " in conversation"  # a POST refers to an item of another one
    return f"Item with id '{clip(error.metadata['itemId'])}' not found{where}."


_BEARER = {"WWW-Authenticate": "Bearer"}

ROWS: Mapping[type[ServiceError], Row] = {
    errors.ConversationNotFound: Row(404),
    errors.ItemNotFound: Row(404, wording=_item_not_found),
    errors.ItemExists: Row(
        400, "item_already_in_conversation", "items", wording=lambda *_: "Item already in conversation"
    ),
    errors.CredentialsMissing: Row(401, "invalid_api_key", headers=_BEARER),
    errors.CredentialsInvalid: Row(401, "invalid_api_key", headers=_BEARER),
    errors.ActionDenied: Row(403, "insufficient_permissions"),
    errors.EtagMismatch: Row(412, "etag_mismatch"),
    errors.SequenceMismatch: Row(409, "conflict"),
    errors.Conflict: Row(409, "conflict", retry=Retry.SAFE),
    errors.RequestIdReused: Row(
        422, "idempotency_key_reused", wording=lambda *_: "The Idempotency-Key was used for another request."
    ),
    errors.Overloaded: Row(429, "rate_limit_exceeded", retry=Retry.SAFE),
    errors.ResponseTooLarge: Row(400, "response_too_large", "limit"),
    errors.Internal: Row(
        500, retry=Retry.REPEATABLE, wording=lambda error, _: f"Internal error, incident {error.metadata['incident']}."
    ),
    errors.OutcomeUnknown: Row(
        503,
        retry=Retry.REPEATABLE,
        wording=lambda *_: "The write may have been stored: read before trying again, and send an Idempotency-Key.",
    ),
    errors.StoreUnavailable: Row(503, retry=Retry.SAFE),
    errors.ShuttingDown: Row(503, retry=Retry.SAFE),
    errors.IdentityUnavailable: Row(503, retry=Retry.SAFE),
    errors.DeadlineExceeded: Row(504, retry=Retry.REPEATABLE),
    errors.PageTokenInvalid: Row(400, "invalid_value"),
    errors.ResumeTokenInvalid: Row(400, "invalid_value"),
    errors.ResumeTokenExpired: Row(400, "invalid_value"),
    errors.ChangesNotKept: Row(400, "invalid_value"),
}


def problem_of(error: ServiceError, request: Request) -> Problem:
    """Returns what the caller of ``request`` is told of ``error``."""
    if isinstance(error, RequestInvalid):
        return error.problem
    if isinstance(error, errors.ConversationNotFound) and "conversation_id" not in request.path:
        return unknown_cursor("conversation", error.metadata["conversationId"])  # it was named by `after`
    if (row := ROWS.get(type(error))) is not None:
        return _of_row(row, error, request)
    violations: tuple[Violation, ...] = getattr(error, "violations", ())
    return _of_violations(violations, request) if violations else _of_row(ROWS[errors.Internal], error, request)


def _of_row(row: Row, error: ServiceError, request: Request) -> Problem:
    return Problem(
        row.status,
        row.wording(error, request) if row.wording else str(error),
        row.code,
        row.param,
        retry=row.retry is Retry.SAFE or (row.retry is Retry.REPEATABLE and request.is_repeatable),
        retry_after_ms=error.retry_after_ms,
        headers=row.headers,
    )


# The rest words what breaks a rule of the contract.

_Words: TypeAlias = Callable[[str, object, Violation], Problem]  # of a path, the value there, and the rule


def _of_violations(violations: tuple[Violation, ...], request: Request) -> Problem:
    """Returns the answer of the first violation, with the next ones in its message."""
    first, *others = violations
    problem = _of_violation(first, request)
    if not others or problem.status != 400:
        return problem
    more = [f"{shown(json_steps(each.field))} {each.rule}" for each in others[:_MAX_MORE]]
    rest = f" and {len(others) - _MAX_MORE} more" if len(others) > _MAX_MORE else ""
    return replace(problem, message=f"{problem.message} (also: {'; '.join(map(clip, more))}{rest})")


def _of_violation(violation: Violation, request: Request) -> Problem:
    if by_field := _FIELDS.get(violation.field):
        return by_field(request)
    steps = json_steps(violation.field)
    words = _RULES.get(violation.reason, _other)
    return words(shown(steps), _sent(steps, request), violation)


def _sent(steps: list[Step], request: Request) -> object:
    return lookup(request.document, steps)


def _bad_conversation_id(request: Request) -> Problem:
    found = clip(request.path.get("conversation_id", ""))
    if found.startswith("conv"):
        return Problem(404, f"Conversation with id '{found}' not found.")
    message = f"Invalid 'conversation_id': '{found}'. Expected an ID that begins with 'conv'."
    return Problem(400, message, "invalid_value", "conversation_id")


def _bad_item_id(request: Request) -> Problem:
    return Problem(404, f"Item with id '{clip(request.path.get('item_id', ''))}' not found in conversation.")


def _bad_cursor(request: Request) -> Problem:
    return unknown_cursor("item", request.query.get("after", ""))


def unknown_cursor(what: str, identifier: str) -> Problem:
    """Returns the answer to a cursor that is not there."""
    return Problem(404, f"No {what} found with id '{clip(identifier)}'", param="after")


_FIELDS: Mapping[str, Callable[[Request], Problem]] = {
    "conversation_id": _bad_conversation_id,
    "conversation.id": _bad_conversation_id,
    "item_id": _bad_item_id,
    "after": _bad_cursor,
}


def _wrong_prefix(path: str, value: object, violation: Violation) -> Problem:
    prefix = violation.rule.rpartition(" ")[2]
    found = f": '{clip(value)}'" if isinstance(value, str) else ""
    message = f"Invalid '{path}'{found}. Expected an ID that begins with {prefix}."
    return Problem(400, message, "invalid_value", path)


def _too_many_elements(path: str, value: object, violation: Violation) -> Problem:
    limit, length = _limit(violation), _length(value)
    message = (
        f"Invalid '{path}': array too long. Expected an array with maximum length {limit}, "
        f"but got an array with length {length} instead."
    )
    return Problem(400, message, "array_above_max_length", path)


def _too_many_pairs(path: str, value: object, violation: Violation) -> Problem:
    limit, length = _limit(violation), _length(value)
    message = (
        f"Invalid '{path}': too many properties. Expected an object with at most {limit} properties, "
        f"but got an object with {length} properties instead."
    )
    return Problem(400, message, "object_above_max_properties", path)


def _too_long(path: str, value: object, violation: Violation) -> Problem:
    limit, (parent, _, key) = _limit(violation), path.partition(".")
    if parent == "metadata" and len(key) > limit:
        message = (
            f"Invalid property name in '{parent}': '{clip(key)}' is too long. Expected a string with maximum "
            f"length {limit}, but got a string with length {len(key)} instead."
        )
        return Problem(400, message, "property_name_above_max_length", clip(path))
    message = (
        f"Invalid '{path}': string too long. Expected a string with maximum length {limit}, "
        f"but got a string with length {_length(value)} instead."
    )
    return Problem(400, message, "string_above_max_length", path)


def _too_large(_path: str, _value: object, violation: Violation) -> Problem:
    return too_large(_limit(violation))


def _other(path: str, _value: object, violation: Violation) -> Problem:
    return Problem(400, f"Invalid '{clip(path)}': {violation.rule}.", "invalid_value", clip(path) or None)


_RULES: Mapping[str, _Words] = {
    "item.id_prefix": _wrong_prefix,
    "repeated.max_items": _too_many_elements,
    "map.max_pairs": _too_many_pairs,
    "string.max_len": _too_long,
    "request.max_bytes": _too_large,
}


def _limit(violation: Violation) -> int:
    """Returns the number in a rule."""
    match = _NUMBER.search(violation.rule)
    return int(match[0]) if match else 0


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | list | dict) else 0


def clip(text: str) -> str:
    """Returns ``text``, cut to what a message has room for."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


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
