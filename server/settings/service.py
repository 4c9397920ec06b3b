"""Everything the process can be told, read once from ``CONVERSATIONS_*`` and flags."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from server.errors import OperatorError
from server.settings.addresses import Address
from server.settings.database import _SCHEMES, DatabaseSettings
from server.settings.identity import IdentitySettings, identity_problems
from server.settings.limits import LimitSettings
from server.settings.operations import OperationSettings

PREFIX = "CONVERSATIONS_"
CALLS_PER_CONNECTION = 32  # of the pool: as many calls share what it does (ADR 16)


class SettingsInvalid(OperatorError):
    """Every wrong setting, one a line, without the values."""


class Settings(OperationSettings, LimitSettings, IdentitySettings, DatabaseSettings):
    """The service's settings; docs/configuration.md lists them by topic."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    policy_file: Path | None = Field(
        None, description="Access policy, YAML; unset: owners and those who share an attribute, or the one user."
    )
    audit_permits: bool = Field(default=False, description="Log what was allowed, not only what was refused.")
    allow_anonymous: bool = Field(
        default=False,
        validate_default=True,
        description="Serve another address than loopback or a Unix socket without identity.",
    )

    @field_validator("database_url", "pgbouncer_url")
    @classmethod
    def _a_postgresql_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_SCHEMES):
            raise ValueError("must begin with postgresql://")
        return value

    # Rules about two settings belong to the later one: they are told beside all others.

    @field_validator("pgbouncer_url")
    @classmethod
    def _a_way_to_a_database(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if value is not None and others.data.get("database_url", value) is None:
            raise ValueError(f"needs {PREFIX}DATABASE_URL, for migrations and the purge, which cannot go through it")
        return value

    @field_validator("workers")
    @classmethod
    def _an_address_to_share(cls, value: int, others: ValidationInfo) -> int:
        if value > 1 and any(each.is_unix for each in others.data.get("listen", ())):
            raise ValueError(f"must be 1 to serve a Unix socket ({PREFIX}LISTEN), which processes cannot share")
        return value

    @field_validator("admin_listen")
    @classmethod
    def _operators_on_this_machine(cls, value: Address | None) -> Address | None:
        if value and not value.is_local:
            raise ValueError("must be a loopback address: whoever reaches it is an operator (docs/operations.md)")
        return value

    @field_validator("admin_listen", "metrics_listen")
    @classmethod
    def _a_port_for_each_worker(cls, value: Address | None, others: ValidationInfo) -> Address | None:
        if value and not value.has_ports_for(others.data.get("workers", 1)):
            raise ValueError("must leave a port for each worker")
        return value

    @field_validator("max_item_bytes")
    @classmethod
    def _an_item_fits_a_message(cls, value: int, others: ValidationInfo) -> int:
        if value > items_bytes(others.data.get("max_message_bytes", value * 2)):
            raise ValueError("must be at most 15/16 of max_message_bytes")
        return value

    @field_validator("allow_anonymous")
    @classmethod
    def _require_allow_anonymous(cls, value: bool, others: ValidationInfo) -> bool:  # noqa: FBT001
        public = not all(each.is_local for each in others.data.get("listen", ()))
        if public and others.data.get("identity") == "none" and not value:
            raise ValueError(f"must be true to serve an address that others reach ({PREFIX}LISTEN) without identity")
        return value

    @property
    def calls_limit(self) -> int:
        """Unary calls at once in a process."""
        return self.max_calls or CALLS_PER_CONNECTION * self.pool_size

    @property
    def max_items_bytes(self) -> int:
        """What the items of one message may hold together."""
        return items_bytes(self.max_message_bytes)

    @model_validator(mode="after")
    def _identity_goes_together(self) -> "Settings":
        if problems := identity_problems(self, self.listen):
            raise ValueError("\n".join(problems))
        return self

    @property
    def purge_after(self) -> timedelta:
        """How long deleted rows are kept."""
        return timedelta(hours=self.purge_after_hours)

    @property
    def keep_requests(self) -> timedelta:
        """How long request ids are kept."""
        return timedelta(hours=self.request_id_hours)


def load(**flags: Any) -> Settings:
    """The settings: a flag that is not None, else the environment, else the default.

    Raises:
        SettingsInvalid: Names every wrong setting and its rule.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        lines = [_line(item["loc"], item["msg"]) for item in error.errors(include_input=False, include_context=False)]
        raise SettingsInvalid("\n".join(dict.fromkeys(lines))) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = str(location[0])
    return f"{name} ({PREFIX}{name.upper()}): {message}"


def items_bytes(message_bytes: int) -> int:
    """What the items of one message may hold: the rest is room for ids, sequences and a page token."""
    return message_bytes // 16 * 15
