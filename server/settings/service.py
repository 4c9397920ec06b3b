"""Everything the process can be told, read once from ``CONVERSATIONS_*`` and flags."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.complaint import OperatorError
from server.settings.identity import IdentitySettings, Names, identity_problems, is_loopback
from server.settings.limits import LimitSettings, Seconds
from server.settings.operations import OperationSettings, host_port

PREFIX = "CONVERSATIONS_"
CALLS_PER_CONNECTION = 32  # of the pool: as many calls share what it does (ADR 15)
_SCHEMES = ("postgresql://", "postgres://")


class SettingsInvalid(OperatorError):
    """Every wrong setting, one a line, without the values."""


class DatabaseSettings(BaseSettings):
    """Where to serve, and what the data is kept in."""

    listen: Names = Field(
        ("127.0.0.1:50051",), description="Addresses to serve: `host:port` or `unix:/path`, comma separated."
    )
    database_url: SecretStr | None = Field(
        None, description="`postgresql://…` of PostgreSQL 15 or newer; unset: a private one is started."
    )
    pgbouncer_url: SecretStr | None = Field(
        None,
        description="`postgresql://…` of a PgBouncer in transaction mode, for calls; migrations use `database_url`.",
    )
    data_dir: Path | None = Field(None, description="Folder of the private PostgreSQL; unset: the platform's.")
    migrate: bool = Field(True, description="Bring the schema up to date at start.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Processes that serve the address; more than one need `host:port`."
    )
    pool_size: Annotated[int, Field(ge=1, le=500)] = Field(10, description="Database connections of each worker.")
    statement_timeout_seconds: Seconds = Field(5.0, description="Limit on one SQL statement.")
    purge_after_hours: Annotated[float, Field(ge=0, le=876_600)] = Field(
        24.0 * 30, description="How long deleted rows are kept; 0 removes them at the next purge."
    )
    purge_every_minutes: Annotated[float, Field(ge=0, le=525_960)] = Field(
        60.0, description="How often to purge; 0 leaves it to `purge`."
    )
    request_id_hours: Annotated[float, Field(gt=0, le=8_760)] = Field(
        24.0, description="How long a `request_id` is remembered."
    )
    unsafe_durability: bool = Field(
        default=False, description="Accept a database with fsync or synchronous_commit off."
    )


class Settings(OperationSettings, LimitSettings, IdentitySettings, DatabaseSettings):
    """The service's settings; the description of each is its line in the README."""

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

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value) or not all(map(_is_address, value)):
            raise ValueError("must be host:port, [ipv6]:port or unix:/path, or several of them, each once")
        return value

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
        if value > 1 and any(map(is_socket, others.data.get("listen", ()))):
            raise ValueError(f"must be 1 to serve a Unix socket ({PREFIX}LISTEN), which processes cannot share")
        return value

    @field_validator("admin_listen")
    @classmethod
    def _operators_on_this_machine(cls, value: str) -> str:
        if value and not is_local(value):
            raise ValueError("must be a loopback address: whoever reaches it is an operator (docs/operations.md)")
        return value

    @field_validator("admin_listen", "metrics_listen")
    @classmethod
    def _a_port_for_each_worker(cls, value: str, others: ValidationInfo) -> str:
        if value and int(value.rpartition(":")[2]) + others.data.get("workers", 1) > 2**16:
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
        anonymous = others.data.get("identity") == "none" and not all(map(is_local, others.data.get("listen", ())))
        if anonymous and not value:
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
        raise SettingsInvalid("\n".join(lines)) from None


def _line(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = str(location[0])
    return f"{name} ({PREFIX}{name.upper()}): {message}"


def items_bytes(message_bytes: int) -> int:
    """What the items of one message may hold: the rest is room for ids, sequences and a page token."""
    return message_bytes // 16 * 15


def is_socket(listen: str) -> bool:
    """Whether the address is a Unix socket."""
    return listen.startswith("unix:")


def is_local(listen: str) -> bool:
    """Whether only this machine can reach the address."""
    return is_socket(listen) or is_loopback(listen.rpartition(":")[0])


def _is_address(value: str) -> bool:
    try:
        return value.removeprefix("unix:") != "" if is_socket(value) else bool(host_port(value))
    except ValueError:
        return False
