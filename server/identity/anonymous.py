"""The source `none`: every caller is the same principal."""

from server.identity.principals import LOCAL_ID
from server.identity.source import Call, Idle, identity_metadata
from server.policy.principal import Principal

LOCAL = Principal(tenant="", id=LOCAL_ID)


class Anonymous(Idle):
    """No authentication: every caller is `local`.

    A call that carries credentials is refused, because its sender expects them to be checked.
    """

    name = "none"

    async def principal(self, call: Call) -> Principal:
        """Returns `LOCAL`; raises CredentialsInvalid for a call with credentials."""
        identity_metadata(call)
        return LOCAL
