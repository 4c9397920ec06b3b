"""The history of a run: what callers sent, what they were told, and when."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

MARKER = "marker:"  # every text that callers store begins with it, and then with the tenant: nothing else does
# Codes and reasons that promise that the call has written nothing.
REFUSALS = frozenset(
    (
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
    )
)


ABANDONED = "ABANDONED"  # no code: the caller waited no longer for the answer to a message of a stream


class Outcome(StrEnum):
    """What a caller may conclude from an answer."""

    OK = "ok"
    REFUSED = "refused"  # nothing was written
    UNKNOWN = "unknown"  # it may have been written


@dataclass(slots=True)
class Attempt:
    """One call, from its start to its end; times are seconds of a monotonic clock."""

    method: str
    deadline: float
    began: float
    ended: float = 0.0
    outcome: Outcome = Outcome.UNKNOWN
    code: str = "CANCELLED"
    reason: str = ""


@dataclass(slots=True)
class Placement:
    """Where a write says that its items are."""

    first_sequence: int | None  # None over HTTP, whose answers do not tell it
    item_ids: tuple[str, ...]
    answer: bytes  # all of it, to compare with the answer to a repeated call


@dataclass(slots=True)
class Append:
    """Items that belong together; attempts after the first repeat the same request."""

    caller: str
    tenant: str
    conversation_id: str
    markers: tuple[str, ...]
    request_id: str = ""
    expected: int | None = None  # last_sequence
    attempts: list[Attempt] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)

    @property
    def began(self) -> float:
        """When it was sent first."""
        return self.attempts[0].began

    @property
    def acknowledged(self) -> float:
        """When it was acknowledged first; infinity if it never was."""
        return min((each.ended for each in self.attempts if each.outcome is Outcome.OK), default=float("inf"))

    @property
    def was_refused(self) -> bool:
        """Whether every attempt promised that nothing was written."""
        return all(each.outcome is Outcome.REFUSED for each in self.attempts)


@dataclass(slots=True)
class Creation:
    """A conversation that was asked for; its marker is in its metadata."""

    tenant: str
    marker: str
    request_id: str
    attempts: list[Attempt] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Deletion:
    """An item that was to be deleted."""

    tenant: str
    conversation_id: str
    item_id: str
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class Rewinding:
    """A place behind which all items were to be deleted."""

    tenant: str
    conversation_id: str
    sequence: int
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def began(self) -> float:
        """When it was sent first."""
        return self.attempts[0].began

    @property
    def is_acknowledged(self) -> bool:
        """Whether it was acknowledged."""
        return any(each.outcome is Outcome.OK for each in self.attempts)


class End(StrEnum):
    """What becomes of a conversation."""

    DELETED = "deleted"
    BACK = "brought back"
    EXPIRED = "expired"
    LATER = "to expire later"


@dataclass(slots=True)
class Life:
    """A conversation that was deleted, brought back, or told when to end, in turn; its marker is in its metadata."""

    tenant: str
    marker: str
    markers: tuple[str, ...]  # of its items
    created: list[Attempt] = field(default_factory=list)
    turns: list[tuple[End, list[Attempt]]] = field(default_factory=list)

    def possible(self) -> set[bool]:
        """Whether it may be there, and whether it may be gone."""
        found = {True} if _is_done(self.created) else {True, False}
        for end, attempts in self.turns:
            after = end in {End.BACK, End.LATER}
            found = {after} if _is_done(attempts) else {*found, after}
        return found


def _is_done(attempts: list[Attempt]) -> bool:
    return any(each.outcome is Outcome.OK for each in attempts)


@dataclass(slots=True)
class Increment:
    """A number in a conversation's metadata, raised by one under an etag."""

    tenant: str
    conversation_id: str
    to: int
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class Read:
    """A page of the newest items."""

    tenant: str
    conversation_id: str
    attempt: Attempt
    sequences: tuple[int, ...]  # newest first
    markers: tuple[str, ...]


@dataclass
class Watch:
    """What a caller was told that followed a conversation through many streams."""

    tenant: str
    conversation_id: str
    told: list[tuple[int, str]] = field(default_factory=list)  # sequence and id of each item, as they came
    gone: list[int] = field(default_factory=list)  # the sequences of deletions, as they came
    last_began: float = float("-inf")  # when the last stream began, if that was told everything


@dataclass
class History:
    """All of a run."""

    attempts: list[Attempt] = field(default_factory=list)
    appends: list[Append] = field(default_factory=list)
    creations: list[Creation] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    rewindings: list[Rewinding] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    increments: list[Increment] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    own_lag: float = 0.0  # seconds by which this process was late itself, at most
    leaks: list[str] = field(default_factory=list)  # answers that held a marker of another tenant

    async def call(
        self, method: str, tenant: str, deadline: float, send: Callable[[], Awaitable[Any]]
    ) -> tuple[Attempt, Any]:
        """Sends one call and records how it ended; its answer, or None."""
        attempt = self.begin(method, deadline)
        try:
            answer = await send()
        except grpc.aio.AioRpcError as error:
            self.end(attempt, code_of(error), reason_of(error))
            return attempt, None
        except asyncio.CancelledError:
            self.end(attempt, "CANCELLED")
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return attempt, None
        self.end(attempt, "OK")
        self.look_for_leaks(tenant, method, answer.SerializeToString())
        return attempt, answer

    def begin(self, method: str, deadline: float) -> Attempt:
        """Records that a call begins now."""
        attempt = Attempt(method, deadline, time.monotonic())
        self.attempts.append(attempt)
        return attempt

    def end(self, attempt: Attempt, code: str, reason: str = "") -> None:
        """Records that it ended."""
        attempt.ended = time.monotonic()
        attempt.code, attempt.reason = code, reason
        attempt.outcome = outcome_of(code, reason)

    def look_for_leaks(self, tenant: str, method: str, body: bytes) -> None:
        """Notes an answer that holds a marker of somebody else's tenant."""
        if body.count(MARKER.encode()) != body.count(f"{MARKER}{tenant}:".encode()):
            self.leaks.append(f"{method} answered {tenant} with a marker of another tenant")

    def codes(self) -> Counter[str]:
        """How the calls ended."""
        return Counter(each.code for each in self.attempts)


def outcome_of(code: str, reason: str) -> Outcome:
    """What an answer promises about a write."""
    if code == "OK":
        return Outcome.OK
    return Outcome.REFUSED if code in REFUSALS or reason == "SHUTTING_DOWN" else Outcome.UNKNOWN


def code_of(error: grpc.aio.AioRpcError) -> str:
    """The code that the server sent; `ABANDONED` where grpc.aio made one up.

    It does so for a write to a stream that has just ended, and what the server had sent is lost.
    """
    return ABANDONED if error.details() == "Internal error from Core" else error.code().name


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's details; '' when it has none."""
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")
