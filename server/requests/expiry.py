"""When a conversation ends, from what a caller sends and what the operator's retention file says."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from conversations.v1 import conversation_pb2

from server.errors import FieldInvalid, Violation
from server.settings.retention import LONGEST, NO_RULE, RetentionRule
from server.store.expiry import NEVER, NEVER_TIME, Expiry, ExpiryChange

FIELDS = ("expire_time", "ttl", "idle_ttl")
_NO_TIME = timedelta()
_MAX_NANOS = 999_999_999


def expiry_of(sent: conversation_pb2.Conversation, rule: RetentionRule, now: datetime) -> Expiry:
    """Returns when a conversation ends that is created at ``now``.

    Raises:
        FieldInvalid: `expire_time` does not lie ahead, or too far.
    """
    idle = _sent_duration(sent, "idle_ttl") if sent.HasField("idle_ttl") else None
    end = _sent_end(sent, now)
    if end is None and idle is None:
        if rule == NO_RULE:
            return NEVER
        idle, end = rule.idle_ttl, now + rule.ttl if rule.ttl else None
    if end is None and idle:
        end = now + idle
    limit = now + rule.at_most if rule.at_most else None
    return Expiry(min(filter(None, (end, limit)), default=None), idle or _NO_TIME, limit)


def expiry_change(
    sent: conversation_pb2.Conversation, paths: Collection[str], rule: RetentionRule, now: datetime
) -> ExpiryChange | None:
    """Returns how an update changes when a conversation ends; None if it does not.

    Args:
        sent: The values that were sent.
        paths: Which of `FIELDS` to take.
        rule: Of the caller's tenant.
        now: What `ttl` and `idle_ttl` are counted from.

    Raises:
        FieldInvalid: `expire_time` does not lie ahead, or too far.
    """
    if not paths:
        return None
    idle = end = None
    if "idle_ttl" in paths:
        idle = _sent_duration(sent, "idle_ttl")  # 0 if it is not sent
    if "expire_time" in paths or "ttl" in paths:
        end = _sent_end(sent, now) or NEVER_TIME
    elif idle:
        end = now + idle
    return ExpiryChange(end, idle, rule.at_most)


def _sent_end(sent: conversation_pb2.Conversation, now: datetime) -> datetime | None:
    """Returns when a conversation ends by `expire_time` or `ttl`; None if neither was sent."""
    match sent.WhichOneof("expiration"):
        case "ttl":
            return now + _sent_duration(sent, "ttl")
        case "expire_time":
            return _sent_time(sent, now)
    return None


def _sent_time(sent: conversation_pb2.Conversation, now: datetime) -> datetime:
    try:
        end = sent.expire_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):  # no time at all, or none of this calendar
        end = now
    if not now < end <= now + LONGEST:
        rule = "must lie ahead, by at most 100 years"
        raise FieldInvalid(Violation("conversation.expire_time", rule, "expire_time.range"))
    return end


def _sent_duration(sent: conversation_pb2.Conversation, name: str) -> timedelta:
    duration = getattr(sent, name)
    if abs(duration.nanos) > _MAX_NANOS or duration.seconds * duration.nanos < 0:
        rule = "must have nanos below a second, with the sign of the seconds"
        raise FieldInvalid(Violation(f"conversation.{name}", rule, "duration"))
    length: timedelta = duration.ToTimedelta()
    return length
