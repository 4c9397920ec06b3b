"""The source `none`: whoever can connect is one and the same principal."""

from server.identity.source import Call, Idle, identity_metadata
from server.policy.principal import Principal

LOCAL = Principal(tenant="", id="local")


class Anonymous(Idle):
    """Asks nobody who they are, and refuses those who say it: they take this for a server that checks."""

    name = "none"

    async def principal(self, call: Call) -> Principal:
        """`LOCAL`."""
        identity_metadata(call)
        return LOCAL
