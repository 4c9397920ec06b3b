"""The policy in force, read at startup and again whenever its file changes."""

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from server.authorization.access import AccessCache
from server.errors import OperatorError
from server.policy.load import PolicyInvalid, load
from server.policy.rules import ACTIONS, DEFAULT, Effect, Policy, Rule, Scope
from server.settings.watched_file import FileVersion, WakeableSleep, file_version

log = structlog.get_logger(__name__)

# Without identity there is one principal, who may do everything; a policy file replaces this.
ONE_USER = Policy(
    (Rule(1, Effect.PERMIT, Scope(frozenset(ACTIONS)), description="the one user may do everything"),),
    digest="one-user",
    source="built in, for identity=none",
)
_POLL_SECONDS = 1.0


class PolicyConfigError(OperatorError):
    """The policy cannot be read or has mistakes; the text lists all of them with their places."""


class PolicyFile:
    """Watches a policy file: a valid change is in force at the next call, an invalid one changes nothing.

    Args:
        path: None for a built-in policy.
        attributes: Names of attributes beside the four standard ones.
        anonymous: Whether the service runs without identity, so that the built-in policy permits everything.
        on_change: Called when another policy is in force.

    Attributes:
        reloads: How many changes were put in force.
        refused: How many changes were invalid.
        stale: Whether the file now holds a policy that was refused.
        loaded_at: When the policy in force was loaded, in seconds since 1970.

    Raises:
        PolicyConfigError: The file is invalid at startup.
    """

    def __init__(
        self,
        path: Path | None,
        attributes: Collection[str],
        *,
        anonymous: bool,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_change = on_change
        self._path = path
        self._attributes = attributes
        self._anonymous = anonymous
        self._sleep = WakeableSleep()
        self._version = self._file_version()
        self.accesses = AccessCache(self._read())
        _log_notes(self.policy)
        self.reloads = 0
        self.refused = 0
        self.stale = False
        self.loaded_at = time.time()

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.accesses.policy

    def reload(self) -> None:
        """Reads the file soon, whether it changed or not; safe in a signal handler."""
        self._sleep.wake()

    async def watch(self) -> None:
        """Reads the file after every change, until it is cancelled; an invalid file leaves the policy in force."""
        while True:
            woken = await self._sleep.sleep(_POLL_SECONDS)
            version = self._file_version()
            if woken or version != self._version:
                self._version = version
                await self._reload()

    async def _reload(self) -> None:
        try:
            policy = await asyncio.to_thread(self._read)  # in a thread: a long policy takes a while to check
        except PolicyConfigError as error:
            self.refused += 1
            self.stale = True
            log.warning("policy refused", problems=str(error), in_force=self.policy.digest)
            return
        self.stale = False
        if policy.digest != self.policy.digest:
            self.reloads += 1
            self.loaded_at = time.time()
            self.accesses.replace(policy)
            self._on_change()
            log.info("policy loaded", file=policy.source, rules=len(policy.rules), digest=policy.digest)
            _log_notes(policy)

    def _read(self) -> Policy:
        if self._path is None:
            return ONE_USER if self._anonymous else DEFAULT
        try:
            text = self._path.read_bytes().decode()  # line ends unchanged, for the digest of the file
            return load(text, str(self._path), attributes=self._attributes)
        except PolicyInvalid as error:
            raise PolicyConfigError(str(error)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyConfigError(f"{self._path}: cannot be read ({type(error).__name__})") from None

    def _file_version(self) -> FileVersion | None:
        return file_version(self._path) if self._path else None


def _log_notes(policy: Policy) -> None:
    if policy.notes:
        log.warning("policy check has notes", count=len(policy.notes), first=policy.notes[0])
