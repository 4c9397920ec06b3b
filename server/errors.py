"""What a caller can be told: the class is the code, the reason and the template.

    Failure                      INTERNAL
    ├── Unauthenticated          UNAUTHENTICATED
    │   ├── CredentialsMissing
    │   └── CredentialsInvalid
    ├── IdentityUnavailable      UNAVAILABLE
    ├── ActionDenied             PERMISSION_DENIED
    ├── ConversationNotFound     NOT_FOUND
    ├── ItemNotFound             NOT_FOUND
    ├── ErasureNotFound          NOT_FOUND
    ├── FieldInvalid             INVALID_ARGUMENT
    ├── LimitExceeded            INVALID_ARGUMENT
    ├── PageTokenInvalid         INVALID_ARGUMENT
    ├── ResumeTokenInvalid       INVALID_ARGUMENT
    ├── ResumeTokenExpired       OUT_OF_RANGE
    ├── FilterInvalid            INVALID_ARGUMENT
    ├── ResponseTooLarge         RESOURCE_EXHAUSTED
    ├── Overloaded               RESOURCE_EXHAUSTED
    ├── ItemExists               ALREADY_EXISTS
    ├── ConversationExists       ALREADY_EXISTS
    ├── RequestIdReused          FAILED_PRECONDITION
    ├── ChangesNotKept           FAILED_PRECONDITION
    ├── NotSupported             UNIMPLEMENTED
    ├── EtagMismatch             ABORTED
    ├── SequenceMismatch         ABORTED
    ├── Conflict                 ABORTED
    ├── StoreUnavailable         UNAVAILABLE
    ├── OutcomeUnknown           UNAVAILABLE
    ├── ShuttingDown             UNAVAILABLE
    └── DeadlineExceeded         DEADLINE_EXCEEDED

Raise one anywhere below the Failures interceptor; it is the only place that
talks gRPC status codes. Details follow AIP-193: at most one of each kind.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from conversations.v1.error_reason_pb2 import ErrorReason
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as rpc
from google.rpc.status_pb2 import Status
from grpc import StatusCode

DOMAIN = "conversations.v1"


@dataclass(frozen=True)
class Violation:
    """One rule that one field of the request broke."""

    field: str  # path from the request, as in `items[0].item.id`
    rule: str  # a sentence about the rule; never the value
    reason: str = ""  # id of the rule, as in `string.max_len`


class ServiceError(Exception):
    """Something the caller is told about; subclasses fix the code and the reason."""

    code: ClassVar[StatusCode] = StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    retry_after_ms: ClassVar[int | None] = None  # RetryInfo when it helps to try again
    forbids_retries: ClassVar[bool] = False  # of client libraries: they could write twice

    def __init_subclass__(cls) -> None:
        assert f"ERROR_REASON_{cls.reason}" in ErrorReason.keys(), cls.reason  # noqa: SIM118 - not a dict

    def __init__(self, message: str, **metadata: str) -> None:
        """``metadata`` goes into ErrorInfo: ids and limits, never request content."""
        super().__init__(message)
        self.metadata = metadata

    def status(self) -> Status:
        """This failure as the caller receives it."""
        status = Status(code=self.code.value[0], message=str(self))
        info = rpc.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        retry = self._retry_info()
        for detail in (info, *self.details(), *retry):
            packed = Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status

    def details(self) -> Iterable[rpc.BadRequest | rpc.ResourceInfo | rpc.PreconditionFailure]:
        """What the class adds to ErrorInfo and RetryInfo."""
        return ()

    def _retry_info(self) -> list[rpc.RetryInfo]:
        if self.retry_after_ms is None:
            return []
        delay = Duration()
        delay.FromMilliseconds(self.retry_after_ms)
        return [rpc.RetryInfo(retry_delay=delay)]


class Internal(ServiceError):
    """Anything unexpected; ``incident`` finds the cause in the log."""

    def __init__(self, incident: str) -> None:
        super().__init__("Internal error.", incident=incident)


class Unauthenticated(ServiceError):
    """No credentials, or bad ones: two answers, both without a word of the call.

    Attributes:
        why: For the log, in words of ours; never sent.
    """

    code = StatusCode.UNAUTHENTICATED
    why: str = ""


class CredentialsMissing(Unauthenticated):
    """No credentials came with the call."""

    reason = "CREDENTIALS_MISSING"
    why = "none came"

    def __init__(self) -> None:
        super().__init__("Credentials are missing.")


class CredentialsInvalid(Unauthenticated):
    """Which part was wrong is not said."""

    reason = "CREDENTIALS_INVALID"

    def __init__(self, why: str) -> None:
        super().__init__("Credentials are not valid.")
        self.why = why


class IdentityUnavailable(ServiceError):
    """Credentials came, but what they are checked with is not there yet, or too old."""

    code = StatusCode.UNAVAILABLE
    reason = "IDENTITY_UNAVAILABLE"
    retry_after_ms = 1000

    def __init__(self) -> None:
        super().__init__("Credentials cannot be checked now; try again.")


class ActionDenied(ServiceError):
    """The caller may not do this, whatever the object, or may only read it."""

    code = StatusCode.PERMISSION_DENIED
    reason = "ACTION_DENIED"

    def __init__(self, resource: str, action: str) -> None:
        super().__init__(f"The caller may not {action} this {resource}.", resource=resource, action=action)

    def details(self) -> Iterable[rpc.ResourceInfo]:
        """What kind of thing it was, but not which."""
        return (rpc.ResourceInfo(resource_type=f"{DOMAIN}.{self.metadata['resource']}"),)


class _NotFound(ServiceError):
    """One answer for missing, deleted and not readable."""

    code = StatusCode.NOT_FOUND
    resource: ClassVar[str]

    def details(self) -> Iterable[rpc.ResourceInfo]:
        name = self.metadata.get("itemId", self.metadata["conversationId"])
        return (rpc.ResourceInfo(resource_type=f"{DOMAIN}.{self.resource}", resource_name=name),)


class ConversationNotFound(_NotFound):
    """Missing, deleted or not readable."""

    reason = "CONVERSATION_NOT_FOUND"
    resource = "Conversation"

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"Conversation with id '{conversation_id}' not found.", conversationId=conversation_id)


class ItemNotFound(_NotFound):
    """Missing, deleted or not readable in a conversation that is."""

    reason = "ITEM_NOT_FOUND"
    resource = "Item"

    def __init__(self, conversation_id: str, item_id: str) -> None:
        super().__init__(
            f"Item with id '{item_id}' not found in conversation.", conversationId=conversation_id, itemId=item_id
        )


class ErasureNotFound(ServiceError):
    """The tenant has none with this id, or none any more."""

    code = StatusCode.NOT_FOUND
    reason = "ERASURE_NOT_FOUND"

    def __init__(self, erasure_id: str) -> None:
        super().__init__(f"Erasure with id '{erasure_id}' not found.", erasureId=erasure_id)

    def details(self) -> Iterable[rpc.ResourceInfo]:
        """The erasure that was asked for."""
        return (rpc.ResourceInfo(resource_type=f"{DOMAIN}.Erasure", resource_name=self.metadata["erasureId"]),)


# Clients refuse trailers of 8 KiB, and report a lost stream instead of the error.
MAX_VIOLATIONS = 20
_MAX_VIOLATIONS_BYTES = 2560
_MAX_TEXT_BYTES = 128  # of a field path or a rule; keys of the request are part of a path


class _BadRequest(ServiceError):
    """INVALID_ARGUMENT with several violations at once: the first 20, and of long ones as many as clients take."""

    code = StatusCode.INVALID_ARGUMENT

    def __init__(self, message: str, violations: Iterable[Violation], **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.violations = tuple(violations)

    def details(self) -> Iterable[rpc.BadRequest]:
        sent = rpc.BadRequest()
        for each in self.violations[:MAX_VIOLATIONS]:
            sent.field_violations.add(field=clip(each.field), description=clip(each.rule), reason=clip(each.reason))
            if sent.ByteSize() > _MAX_VIOLATIONS_BYTES:
                del sent.field_violations[-1]
                break
        return (sent,)


def clip(text: str) -> str:
    """Returns ``text``, cut to what a trailer has room for."""
    encoded = text.encode()
    if len(encoded) <= _MAX_TEXT_BYTES:
        return text
    return encoded[: _MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"


class FieldInvalid(_BadRequest):
    """The request breaks rules whatever the state."""

    reason = "FIELD_INVALID"

    def __init__(self, *violations: Violation) -> None:
        message = "; ".join(f"{clip(v.field)}: {clip(v.rule)}" if v.field else clip(v.rule) for v in violations[:3])
        more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
        super().__init__(f"Invalid request: {message}{more}.", violations)


class LimitExceeded(_BadRequest):
    """The request and the stored state together are beyond a limit."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, violation: Violation, limit: int, **metadata: str) -> None:
        super().__init__(f"{violation.field}: {violation.rule}.", (violation,), limit=str(limit), **metadata)


class PageTokenInvalid(_BadRequest):
    """Malformed, or made for another query or caller."""

    reason = "PAGE_TOKEN_INVALID"

    def __init__(self) -> None:
        rule = "must be the next_page_token of the same query"
        super().__init__(f"page_token: {rule}.", (Violation("page_token", rule),))


class ResumeTokenInvalid(_BadRequest):
    """Malformed, or made for another conversation or caller."""

    reason = "RESUME_TOKEN_INVALID"

    def __init__(self) -> None:
        rule = "must be a resume_token of the same conversation and caller"
        super().__init__(f"resume_token: {rule}.", (Violation("resume_token", rule),))


class ResumeTokenExpired(ServiceError):
    """What has happened since cannot be told completely any more."""

    code = StatusCode.OUT_OF_RANGE
    reason = "RESUME_TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__("Changes behind the start are no longer known; begin anew.")


class ChangesNotKept(ServiceError):
    """The log of changes is off, or that of another database."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "CHANGES_NOT_KEPT"

    def __init__(self) -> None:
        super().__init__("Changes are not kept: the operator can turn that on.")


class NotEnabled(ServiceError):
    """The operator has turned off what was asked for."""

    code = StatusCode.UNIMPLEMENTED
    reason = "NOT_ENABLED"

    def __init__(self, setting: str) -> None:
        super().__init__(
            f"Not enabled here: the operator can turn it on with the setting '{setting}'.", setting=setting
        )


class NotSupported(ServiceError):
    """What was asked for does not work on a distributed database."""

    code = StatusCode.UNIMPLEMENTED
    reason = "NOT_SUPPORTED"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} does not work on a distributed database.")


class FilterInvalid(_BadRequest):
    """The filter cannot be read; ``position`` counts characters from 0."""

    reason = "FILTER_INVALID"

    def __init__(self, rule: str, position: int) -> None:
        super().__init__(
            f"filter: {rule} at position {position}.", (Violation("filter", rule),), position=str(position)
        )


class ResponseTooLarge(ServiceError):
    """The answer would not fit into one message."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "LIMIT_EXCEEDED"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The items hold more than {limit} bytes together; ask for fewer.", limit=str(limit))


class Overloaded(ServiceError):
    """As much as is allowed runs already; nothing was done."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"
    retry_after_ms = 100

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"More than {limit} {what} at once; try again.", limit=str(limit))


class ItemExists(ServiceError):
    """An item of this id is in the conversation; nothing was written."""

    code = StatusCode.ALREADY_EXISTS
    reason = "ITEM_EXISTS"

    def __init__(self, conversation_id: str, item_id: str) -> None:
        super().__init__("Item already in conversation.", conversationId=conversation_id, itemId=item_id)

    def details(self) -> Iterable[rpc.ResourceInfo]:
        """The item that is there."""
        return (rpc.ResourceInfo(resource_type=f"{DOMAIN}.Item", resource_name=self.metadata["itemId"]),)


class ConversationExists(ServiceError):
    """A conversation of this id is there; nothing was written."""

    code = StatusCode.ALREADY_EXISTS
    reason = "CONVERSATION_EXISTS"

    def __init__(self, conversation_id: str) -> None:
        super().__init__("Conversation already exists.", conversationId=conversation_id)

    def details(self) -> Iterable[rpc.ResourceInfo]:
        """The conversation that is there."""
        name = self.metadata["conversationId"]
        return (rpc.ResourceInfo(resource_type=f"{DOMAIN}.Conversation", resource_name=name),)


class RequestIdReused(ServiceError):
    """The request id was used for another request; nothing was written."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__("request_id was used for another request.", requestId=request_id)

    def details(self) -> Iterable[rpc.PreconditionFailure]:
        """What to do instead."""
        violation = rpc.PreconditionFailure.Violation(
            type=self.reason, subject=self.metadata["requestId"], description="Send a new request_id."
        )
        return (rpc.PreconditionFailure(violations=[violation]),)


class EtagMismatch(ServiceError):
    """The conversation changed since the caller read it."""

    code = StatusCode.ABORTED
    reason = "ETAG_MISMATCH"
    retry_after_ms = 0

    def __init__(self, etag: str) -> None:
        super().__init__("The conversation has another etag; read it again.", etag=etag)


class SequenceMismatch(ServiceError):
    """The conversation's last_sequence is not the expected one."""

    code = StatusCode.ABORTED
    reason = "SEQUENCE_MISMATCH"
    retry_after_ms = 0

    def __init__(self, last_sequence: int) -> None:
        super().__init__("The conversation has another last_sequence; read it again.", lastSequence=str(last_sequence))


class Conflict(ServiceError):
    """Changed under the call (40001, 40P01) more often than it was tried again."""

    code = StatusCode.ABORTED
    reason = "CONFLICT"
    retry_after_ms = 50

    def __init__(self) -> None:
        super().__init__("Too many changes at the same time; try again.")


class StoreUnavailable(ServiceError):
    """The database cannot be reached, or has no free connection."""

    code = StatusCode.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"
    retry_after_ms = 200

    def __init__(self) -> None:
        super().__init__("The store is not available; try again.")


class OutcomeUnknown(ServiceError):
    """A write without a request id was sent to the database, and no answer came: it may have been stored (ADR 19)."""

    code = StatusCode.UNAVAILABLE
    reason = "OUTCOME_UNKNOWN"
    forbids_retries = True

    def __init__(self) -> None:
        super().__init__("The write may have been stored: read before trying again, and send a request_id next time.")


class ShuttingDown(ServiceError):
    """This process takes no calls any more; another one does, or soon will."""

    code = StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"
    retry_after_ms = 400  # longer than the window in which calls are refused, or retries use themselves up in it

    def __init__(self) -> None:
        super().__init__("The server is shutting down; try again.")


class DeadlineExceeded(ServiceError):
    """The server's own limit on a call, or on a statement, has passed."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__("The call took longer than the server allows.")


class OperatorError(Exception):
    """Something an operator can mend; the text says what is wrong and what to do, and holds no secret."""


class NotReadyYet(OperatorError):
    """Something that a start waits for, as it does for a database that does not answer."""


class StartFailed(OperatorError):
    """The service cannot start; the text is for the operator."""


def cannot_listen(listen: str) -> StartFailed:
    """What to say of an address that cannot be bound."""
    return StartFailed(f"Cannot listen on {listen}: the address is taken or not allowed.")


def forget_frames(error: BaseException | None) -> None:
    """Frees what the frames keep that a raised error has passed.

    A future of such a frame often holds the error. The two then keep each other, and the request with them, until a
    garbage collection, which large requests do not bring about: it counts objects, not bytes (docs/adr/0026).
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
