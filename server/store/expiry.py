"""When a conversation ends by itself: of a new one, and as an update changes it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

NEVER_TIME = datetime.max  # noqa: DTZ901 - without a zone, as the driver reads and writes infinity
_NO_TIME = timedelta()


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a new conversation ends.

    Attributes:
        expire_time: From then on it is not found; None for never.
        idle_ttl: Every append moves the end to so long after it; 0 if it does not.
        limit_time: The end is never later; None without a limit.
    """

    expire_time: datetime | None = None
    idle_ttl: timedelta = _NO_TIME
    limit_time: datetime | None = None

    def values(self) -> dict[str, Any]:
        """The columns of the conversation."""
        return {
            "expire_time": self.expire_time or NEVER_TIME,
            "idle_ttl": self.idle_ttl,
            "limit_time": self.limit_time or NEVER_TIME,
        }


NEVER = Expiry()


@dataclass(frozen=True, slots=True)
class ExpiryChange:
    """How an update changes when a conversation ends.

    Attributes:
        expire_time: The new end, `NEVER_TIME` for never; None if it stays.
        idle_ttl: The new one, 0 to remove it; None if it stays.
        at_most: How long after its creation it ends at the latest; None if that stays as it was at the creation.
    """

    expire_time: datetime | None
    idle_ttl: timedelta | None
    at_most: timedelta | None

    def values(self) -> dict[str, Any]:
        """The parameters of the statement `change`."""
        return {"new_expire_time": self.expire_time, "new_idle_ttl": self.idle_ttl, "at_most": self.at_most}
