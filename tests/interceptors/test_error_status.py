"""What a client with default limits receives of an error."""

from typing import Any, cast

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.rpc.status_pb2 import Status
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # its stub is empty
from structlog.testing import capture_logs

from server.errors import MAX_VIOLATIONS, ConversationNotFound, FieldInvalid, Violation, clip
from server.interceptors.error_status import ErrorStatus
from tests.support.build import append, batch_get, update, user_message
from tests.support.problems import problem
from tests.support.service import Service

FOUR_KIB = 4096


def ids(count: int) -> Any:
    """A request with so many violations."""
    return "BatchGetItems", batch_get("conv_a", *["?"] * count)


@pytest.mark.parametrize(("count", "sent"), [(1, 1), (20, 20), (21, 20), (100, 20)])
async def test_twenty_violations_are_sent(service: Service, count: int, sent: int) -> None:
    """Of more than 20 violations the first 20 are sent, and the message tells how many there are."""
    method, request = ids(count)
    async with grpc.aio.insecure_channel(service.address) as channel:
        failure = await problem(getattr(ConversationsServiceStub(channel), method)(request))
    assert failure.code == "INVALID_ARGUMENT"
    assert list(failure.fields) == [f"item_ids[{index}]" for index in range(sent)]
    assert MAX_VIOLATIONS == 20
    assert (f"(and {count - 3} more)" in failure.message) == (count > 3)


LONG = "😀" * 4000
REQUESTS = {
    "a long key": ("UpdateConversation", update("conv_a", metadata={LONG: "x"})),
    "long keys": ("UpdateConversation", update("conv_a", metadata={f"{n}{LONG[:900]}": "x" for n in range(16)})),
    "a long name": ("UpdateConversation", update("conv_a", "attributes." + "x" * 60_000)),
    "many items": ("CreateItems", append("conv_a", *[user_message(id="x", status=9)] * 20)),
    "JSON keys": ("CreateItems", append("conv_a", *[user_message(json=b'{"' + b"k" * 9000 + b'": 1}')] * 20)),
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_trailers_are_small(service: Service, case: str) -> None:
    """However long the keys of a request are, the status has at most 4 KiB and reaches a client with default limits."""
    method, request = REQUESTS[case]
    async with grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(ConversationsServiceStub(channel), method)(request)
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(details) <= FOUR_KIB
    assert Status.FromString(details).message == caught.value.details()


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_text_is_cut_between_characters(letter: str) -> None:
    """128 bytes of a path are sent whole; a longer one is cut after a whole character, and ends with an ellipsis."""
    whole = letter * (128 // len(letter.encode()))
    assert clip(whole) == whole
    cut = clip(whole + letter)
    assert cut.endswith("…")
    assert whole.startswith(cut[:-1])
    assert 120 <= len(cut.encode()) <= 128


@pytest.mark.parametrize("count", [1, 20, 100_000])
def test_the_longest_violations(count: int) -> None:
    """Of violations with texts of any length at least one is sent, and no more than fit into 4 KiB."""
    error = FieldInvalid(*[Violation(LONG, LONG, LONG)] * count)
    (sent,) = error.details()
    assert 1 <= len(sent.field_violations) <= count
    assert error.status().ByteSize() <= FOUR_KIB


class _GoneCaller:
    """The context of a call whose caller has just left: gRPC can send nothing any more."""

    def __init__(self) -> None:
        self.aborted = 0

    async def abort(self, *_status: Any) -> None:
        """As grpc.aio's."""
        self.aborted += 1
        raise cygrpc.ExecuteBatchError("Failed grpc_call_start_batch")


@pytest.mark.parametrize(
    ("error", "aborted"), [(ConversationNotFound("conv_a"), 1), (cygrpc.ExecuteBatchError("of another abort"), 0)]
)
async def test_a_caller_that_has_left_is_no_error(error: Exception, aborted: int) -> None:
    """A status that cannot be sent is not reported as a defect, and no other one is sent instead."""
    guard = ErrorStatus().guard("/conversations.v1.ConversationsService/GetConversation")
    context = _GoneCaller()
    with capture_logs() as lines, pytest.raises(cygrpc.ExecuteBatchError):
        async with guard(cast("Any", context)):
            raise error
    assert ([], aborted) == (lines, context.aborted)
