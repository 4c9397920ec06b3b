"""The status of failed calls, with its details taken apart."""

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status


@dataclass(frozen=True)
class Problem:
    """The status of a failed call: code, message and the google.rpc details."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]  # field of BadRequest to id of the broken rule
    details: tuple[str, ...]  # names of the detail messages


def problem_of(error: grpc.aio.AioRpcError) -> Problem:
    """The problem in a gRPC error."""
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(bad)
    return Problem(
        code=error.code().name,
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        fields={violation.field: violation.reason for violation in bad.field_violations},
        details=tuple(detail.type_url.rpartition(".")[2] for detail in status.details),
    )


async def problem(call: Any) -> Problem:
    """The problem that ``call`` fails with; the test fails if it succeeds, or fails with UNKNOWN."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN, caught.value
    return problem_of(caught.value)
