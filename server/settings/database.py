"""Settings of the addresses, the processes and the database."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from server.settings.addresses import Address, Addresses
from server.settings.environment import variable_of
from server.settings.limits import Seconds

_SCHEMES = ("postgresql://", "postgres://")


class DatabaseSettings(BaseSettings):
    """Where the service listens, and where it keeps its data."""

    listen: Addresses = Field(
        (Address("127.0.0.1", 50051),), description="Addresses to serve: `host:port` or `unix:/path`, comma separated."
    )
    database_url: SecretStr | None = Field(
        None, description="`postgresql://…` of PostgreSQL 15 or newer; unset: a private one is started."
    )
    pgbouncer_url: SecretStr | None = Field(
        None,
        description="`postgresql://…` of a PgBouncer in transaction mode, for calls; migrations use `database_url`.",
    )
    data_dir: Path | None = Field(None, description="Folder of the private PostgreSQL; unset: the platform's.")
    migrate: bool = Field(True, description="Bring the schema up to date at startup.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Processes that serve the address; more than one need `host:port`."
    )
    pool_size: Annotated[int, Field(ge=1, le=500)] = Field(10, description="Database connections of each worker.")
    statement_timeout_seconds: Seconds = Field(5.0, description="Limit on one SQL statement.")
    purge_after_hours: Annotated[float, Field(ge=0, le=876_600)] = Field(
        24.0 * 30, description="How long deleted rows are kept; 0 removes them at the next purge."
    )
    purge_every_minutes: Annotated[float, Field(ge=0, le=525_960)] = Field(
        60.0, description="Pause between purges; 0 leaves them to the command `purge`."
    )
    activity: bool = Field(
        default=True, description="Keep the order of `active_time desc`, by which lists can be read."
    )
    request_id_hours: Annotated[float, Field(gt=0, le=8_760)] = Field(
        24.0, description="How long a `request_id` is remembered."
    )
    unsafe_durability: bool = Field(
        default=False, description="Accept a database with fsync or synchronous_commit off."
    )

    # A rule about two settings is checked with the later one, so that it is reported beside all other errors.

    @field_validator("database_url", "pgbouncer_url")
    @classmethod
    def _require_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_SCHEMES):
            raise ValueError("must begin with postgresql://")
        return value

    @field_validator("pgbouncer_url")
    @classmethod
    def _require_database_url(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if value is not None and others.data.get("database_url", value) is None:
            variable = variable_of("database_url")
            raise ValueError(f"needs {variable}, for migrations and the purge, which cannot go through it")
        return value

    @field_validator("workers")
    @classmethod
    def _require_tcp(cls, value: int, others: ValidationInfo) -> int:
        if value > 1 and any(address.is_unix for address in others.data.get("listen", ())):
            raise ValueError(
                f"must be 1 to serve a Unix socket ({variable_of('listen')}), which processes cannot share"
            )
        return value
