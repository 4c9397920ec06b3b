"""What an error says: the `google.rpc.Status` that the service sends with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "conversations.v1"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True)
class Violation:
    """A rule that a request breaks.

    Attributes:
        field: The path of the field, such as `items[1].item.message.role`.
        rule: The id of the rule.
        description: The rule, for people.
    """

    field: str
    rule: str
    description: str


@dataclass(frozen=True)
class ErrorDetails:
    """An error of the service, or of gRPC on the way to it.

    Attributes:
        code: The status code.
        message: For people; it may change.
        reason: A name of `ErrorReason` without its prefix, which programs branch on; empty if the error is not of the
            service, but of gRPC or a proxy.
        metadata: What belongs to the reason, such as a limit.
        violations: Every rule that the request breaks, with INVALID_ARGUMENT.
        resource: Type and name of the object that the error is about; empty strings if there is none.
        retry_delay: Wait so long, then send the same request again; None if a retry changes nothing.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    violations: tuple[Violation, ...] = ()
    resource: tuple[str, str] = ("", "")
    retry_delay: timedelta | None = None


def details_of(error: grpc.RpcError | Status) -> ErrorDetails:
    """Returns what an error says: that of a call, or the `error` in a response of AppendItems."""
    status = error if isinstance(error, Status) else status_of(error)
    info, retry, resource = (_find(status, kind) for kind in (ErrorInfo, RetryInfo, ResourceInfo))
    bad = _find(status, BadRequest)
    is_ours = info is not None and info.domain == DOMAIN
    return ErrorDetails(
        code=_CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        message=status.message,
        reason=info.reason if info and is_ours else "",
        metadata=MappingProxyType(dict(info.metadata) if info and is_ours else {}),
        violations=tuple(map(_violation, bad.field_violations)) if bad else (),
        resource=(resource.resource_type, resource.resource_name) if resource else ("", ""),
        retry_delay=retry.retry_delay.ToTimedelta() if retry else None,
    )


def status_of(error: grpc.RpcError) -> Status:
    """Returns the status of a call; its details are empty if the error does not come from a server."""
    metadata: Any = error.trailing_metadata() or ()  # another type with each kind of call, all of pairs
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status(code=error.code().value[0], message=error.details() or "")


def _violation(told: BadRequest.FieldViolation) -> Violation:
    return Violation(told.field, told.reason, told.description)


def _find(status: Status, kind: type[_Detail]) -> _Detail | None:
    """The detail of this type; an error has at most one of each."""
    found = kind()
    return found if any(detail.Unpack(found) for detail in status.details) else None
