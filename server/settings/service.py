"""All settings of the service, read once from ``CONVERSATIONS_*`` variables and flags."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from server.errors import OperatorError
from server.settings.addresses import Address
from server.settings.database import DatabaseSettings
from server.settings.environment import PREFIX, unknown_variables, variable_of
from server.settings.http import HttpSettings
from server.settings.identity import IdentitySettings, identity_problems
from server.settings.limits import LimitSettings
from server.settings.operations import OperationSettings

CALLS_PER_CONNECTION = 32  # of the pool: so many calls share the round trips of a connection (ADR 16)


class SettingsInvalid(OperatorError):
    """The settings are wrong; the text has a line for each error, without values."""


class Settings(OperationSettings, HttpSettings, LimitSettings, IdentitySettings, DatabaseSettings):
    """The service's settings; docs/configuration.md lists them by topic."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    policy_file: Path | None = Field(
        None, description="Access policy, YAML; unset: owners and those who share an attribute, or the one user."
    )
    retention_file: Path | None = Field(
        None, description="For how long conversations of each tenant live, YAML; unset: until they are deleted."
    )
    audit_permits: bool = Field(default=False, description="Log what was allowed, not only what was refused.")
    allow_anonymous: bool = Field(
        default=False,
        validate_default=True,
        description="Serve another address than loopback or a Unix socket without identity.",
    )

    # Rules about settings of several classes.

    @field_validator("admin_listen")
    @classmethod
    def _require_local(cls, value: Address | None) -> Address | None:
        if value and not value.is_local:
            raise ValueError("must be a loopback address: whoever reaches it is an operator (docs/operations.md)")
        return value

    @field_validator("admin_listen", "metrics_listen")
    @classmethod
    def _require_port_for_each_worker(cls, value: Address | None, others: ValidationInfo) -> Address | None:
        if value and not value.has_ports_for(others.data.get("workers", 1)):
            raise ValueError("must leave a port for each worker")
        return value

    @field_validator("max_item_bytes")
    @classmethod
    def _require_room_in_message(cls, value: int, others: ValidationInfo) -> int:
        if value > items_bytes(others.data.get("max_message_bytes", value * 2)):
            raise ValueError("must be at most 15/16 of max_message_bytes")
        return value

    @field_validator("allow_anonymous")
    @classmethod
    def _require_allow_anonymous(cls, value: bool, others: ValidationInfo) -> bool:  # noqa: FBT001
        for listener in ("listen", "http_listen"):
            public = not all(address.is_local for address in others.data.get(listener, ()))
            if public and others.data.get("identity") == "none" and not value:
                variable = variable_of(listener)
                raise ValueError(f"must be true to serve an address that others reach ({variable}) without identity")
        return value

    @model_validator(mode="after")
    def _check_identity(self) -> "Settings":
        if problems := identity_problems(self, {"listen": self.listen, "http_listen": self.http_listen}):
            raise ValueError("\n".join(problems))
        return self

    @property
    def calls_limit(self) -> int:
        """Unary calls in flight in a process, at most."""
        return self.max_calls or CALLS_PER_CONNECTION * self.pool_size

    @property
    def max_items_bytes(self) -> int:
        """The sum of the items of one message, at most."""
        return items_bytes(self.max_message_bytes)

    @property
    def purge_after(self) -> timedelta:
        """How long deleted rows are kept."""
        return timedelta(hours=self.purge_after_hours)

    @property
    def keep_requests(self) -> timedelta:
        """How long request ids are kept."""
        return timedelta(hours=self.request_id_hours)


def load(**flags: Any) -> Settings:
    """Returns the settings: for each the flag unless it is None, else the variable, else the default.

    Raises:
        SettingsInvalid: Names every wrong setting with its rule, and every variable that is no setting.
    """
    errors = unknown_variables(os.environ, Settings.model_fields)
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        errors += [_line(each["loc"], each["msg"]) for each in error.errors(include_input=False, include_context=False)]
    else:
        if not errors:
            return settings
    raise SettingsInvalid("\n".join(dict.fromkeys(errors))) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = str(location[0])
    return f"{name} ({variable_of(name)}): {message}"


def items_bytes(message_bytes: int) -> int:
    """Returns how much of a message its items may take; ids, sequences and a page token need the rest."""
    return message_bytes // 16 * 15
