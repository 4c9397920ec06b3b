"""What a caller over HTTP is told of an error: one table from errors to status, code, param and wording.

The wording is that of the OpenAI API where it has been recorded. An error that the edge itself finds is a
`RequestInvalid`, which brings its `Problem` along; every other one is a `ServiceError` of the service and has a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from server import errors
from server.errors import ServiceError, Violation
from server.http.problems import Problem, RequestInvalid, clip, unknown_cursor
from server.http.request import Request
from server.http.violations import problem_of_violations


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
    errors.ErasureNotFound: Row(404),
    errors.ItemNotFound: Row(404, wording=_item_not_found),
    errors.ItemExists: Row(
        400, "item_already_in_conversation", "items", wording=lambda *_: "Item already in conversation"
    ),
    errors.ConversationExists: Row(409, "conversation_exists"),
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
    errors.NotEnabled: Row(400, "invalid_value"),  # SDKs repeat what ends with 501
    errors.NotSupported: Row(400, "invalid_value"),
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
    return problem_of_violations(violations, request) if violations else _of_row(ROWS[errors.Internal], error, request)


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
