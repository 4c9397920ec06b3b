"""What a source of identity is, and the metadata that speaks of identity."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from server.errors import CredentialsInvalid, OperatorError
from server.observability.stats import JwksStats
from server.policy.principal import Principal

_NAMES = ("authorization", "x-principal", "x-tenant", "x-attributes", "x-forwarded-client-cert")
# gRPC takes `-bin` for another key with bytes as its value.
_IDENTITY = frozenset(_NAMES) | {f"{name}-bin" for name in _NAMES}


class IdentityConfigError(OperatorError):
    """A file that identity is configured with cannot be used; the text is for the operator."""


class Call(Protocol):
    """What a source sees of a call; a `grpc.aio.ServicerContext` is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """All pairs, in the order they came."""

    def peer(self) -> str:
        """The other end, as `ipv4:…`, `ipv6:…` or `unix:…`."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS proved of the other end."""


class Source(Protocol):
    """The one place that principals come from; open while the server serves."""

    name: str

    @property
    def jwks(self) -> JwksStats | None:
        """Counts of the fetches of an issuer's keys; None for a source that fetches none."""

    async def principal(self, call: Call) -> Principal:
        """Who makes ``call``.

        Raises:
            CredentialsMissing: The call brings none.
            CredentialsInvalid: Whatever else is wrong with them.
            IdentityUnavailable: They cannot be checked now.
        """

    async def __aenter__(self) -> Self:
        """Starts what runs beside the calls."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""


class Idle:
    """A source with nothing beside the calls."""

    jwks: JwksStats | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def identity_metadata(call: Call, own: Sequence[str] = ()) -> dict[str, str]:
    """The metadata of ``call`` under the keys in ``own``.

    Metadata may repeat a key, and a proxy may pass on what a client made up: a
    key twice, or one that belongs to another source, is refused, not ignored.

    Raises:
        CredentialsInvalid: Then.
    """
    found: dict[str, str] = {}
    for key, value in call.invocation_metadata() or ():
        name = key.lower()
        if name in _IDENTITY:
            if name not in own or name in found or not isinstance(value, str):
                raise CredentialsInvalid("metadata repeated or of another source")
            found[name] = value
    return found
