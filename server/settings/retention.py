"""The retention file: for how long the conversations of each tenant live, in YAML.

    "*": {ttl: 90d, at_most: 365d}
    acme: {idle_ttl: 30d}

The entry of a tenant takes the place of that of ``*`` as a whole.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from server.errors import OperatorError
from server.settings.strict_yaml import load_yaml
from server.settings.watched_file import WatchedFile

log = structlog.get_logger(__name__)

SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=36_525)  # as in the contract
_EVERY_TENANT = "*"
_MAX_PROBLEMS = 20
_DURATION = re.compile(r"(?P<count>[0-9]{1,12})(?P<unit>[smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class RetentionConfigError(OperatorError):
    """The retention file cannot be read or has mistakes; the text lists them."""


@dataclass(frozen=True)
class RetentionRule:
    """For how long conversations of a tenant live.

    Attributes:
        ttl: Of a new conversation for which the caller sets no end; None for ever.
        idle_ttl: Likewise: how long after its last append it ends; None if appends do not matter.
        at_most: How long after its creation every conversation ends at the latest; None without a limit.
    """

    ttl: timedelta | None = None
    idle_ttl: timedelta | None = None
    at_most: timedelta | None = None


NO_RULE = RetentionRule()


@dataclass(frozen=True)
class RetentionRules:
    """The rules of all tenants.

    Attributes:
        by_tenant: With ``*`` for those that are not named.
    """

    by_tenant: Mapping[str, RetentionRule] = field(default_factory=dict)

    @property
    def has_limit(self) -> bool:
        """Whether some tenant has a limit."""
        return any(rule.at_most for rule in self.by_tenant.values())

    def rule_of(self, tenant: str) -> RetentionRule:
        """Returns the rule of a tenant."""
        return self.by_tenant.get(tenant) or self.by_tenant.get(_EVERY_TENANT, NO_RULE)


NO_RETENTION = RetentionRules()


class RetentionFile:
    """The rules of a file, which is read again when it changes; an invalid file changes nothing.

    Args:
        path: None for no rules.
        clock: Seconds.

    Raises:
        RetentionConfigError: The file is invalid at startup.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = monotonic) -> None:
        self._file = WatchedFile(path, clock) if path else None
        self._rules = NO_RETENTION
        try:
            self._reload_if_changed()
        except OSError as error:
            raise RetentionConfigError(
                f"retention_file: the file cannot be read ({error.strerror or error})."
            ) from None

    def rules(self) -> RetentionRules:
        """Returns the rules in force; the file is looked at once a second at most."""
        try:
            self._reload_if_changed()
        except RetentionConfigError as error:
            log.warning("retention file refused", problems=str(error))
        except OSError as error:
            log.warning("retention file cannot be read", why=error.strerror or str(error))
        return self._rules

    def _reload_if_changed(self) -> None:
        if self._file and (body := self._file.read_if_changed()) is not None:
            self._rules = parse_retention(body)
            log.info("retention file loaded", tenants=len(self._rules.by_tenant))


def parse_retention(body: bytes) -> RetentionRules:
    """Returns the rules in a file.

    Raises:
        RetentionConfigError: Names what is wrong, tenant by tenant.
    """
    try:
        entries = load_yaml(body)
    except ValueError as error:
        raise RetentionConfigError(f"retention_file: {error}.") from None
    if entries is None:  # a file that is just being written can be empty
        raise RetentionConfigError("retention_file: empty; write {} for no rules.")
    if not isinstance(entries, dict):
        raise RetentionConfigError("retention_file: not a mapping of tenants.")
    problems: list[str] = []
    rules = {str(tenant): _rule(tenant, entry, problems) for tenant, entry in entries.items()}
    if problems:
        raise RetentionConfigError("\n".join(problems[:_MAX_PROBLEMS]))
    return RetentionRules(rules)


def _rule(tenant: Any, entry: Any, problems: list[str]) -> RetentionRule:
    names = [each.name for each in fields(RetentionRule)]
    if not isinstance(tenant, str) or not isinstance(entry, dict) or not entry.keys() <= set(names):
        problems.append(f"retention_file: {tenant!r} may have {', '.join(names)}, nothing else.")
        return NO_RULE
    return RetentionRule(**{name: _duration(tenant, name, value, problems) for name, value in entry.items()})


def _duration(tenant: str, name: str, value: Any, problems: list[str]) -> timedelta | None:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    try:
        duration = timedelta(**{_UNITS[match["unit"]]: int(match["count"])}) if match else None
    except OverflowError:
        duration = None
    if duration is None or not SHORTEST <= duration <= LONGEST:
        problems.append(f"retention_file: {name} of {tenant!r} must be 1m to 36525d, such as 90d, 12h or 30m.")
    return duration
