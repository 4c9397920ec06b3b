"""The interface of identity sources, and the metadata that can carry credentials."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from server.errors import CredentialsInvalid, OperatorError
from server.observability.stats import JwksStats
from server.policy.principal import Principal

_NAMES = ("authorization", "x-principal", "x-tenant", "x-attributes", "x-forwarded-client-cert")
# The suffix `-bin` makes a different key, whose value is bytes.
_IDENTITY = frozenset(_NAMES) | {f"{name}-bin" for name in _NAMES}


class IdentityConfigError(OperatorError):
    """A file that configures identity cannot be used; the text is for the operator."""


class Call(Protocol):
    """What a source reads of a call; `grpc.aio.ServicerContext` has it."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns all pairs in the order of arrival."""

    def peer(self) -> str:
        """Returns the address of the other end, as `ipv4:…`, `ipv6:…` or `unix:…`."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Returns what TLS has verified of the other end."""


class Source(Protocol):
    """Authenticates callers; open while the server serves."""

    name: str

    @property
    def jwks(self) -> JwksStats | None:
        """Counts of the fetches of an issuer's keys; None for a source that fetches none."""

    async def principal(self, call: Call) -> Principal:
        """Returns who makes ``call``.

        Raises:
            CredentialsMissing: The call has no credentials.
            CredentialsInvalid: Its credentials are not accepted.
            IdentityUnavailable: They cannot be checked now.
        """

    async def __aenter__(self) -> Self:
        """Starts background work."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops background work."""


class Idle:
    """A source without background work."""

    jwks: JwksStats | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def identity_metadata(call: Call, own: Sequence[str] = ()) -> dict[str, str]:
    """Returns the metadata of ``call`` under the keys in ``own``.

    A client may repeat a key, or send one of another source that a proxy passes on. Both are
    refused: if they were ignored, somebody could take them for checked.

    Raises:
        CredentialsInvalid: A key occurs twice, or belongs to another source.
    """
    found: dict[str, str] = {}
    for key, value in call.invocation_metadata() or ():
        name = key.lower()
        if name in _IDENTITY:
            if name not in own or name in found or not isinstance(value, str):
                raise CredentialsInvalid("metadata repeated or of another source")
            found[name] = value
    return found
