"""Settings of where the data is, and of where to serve."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from server.settings.addresses import Address, Addresses
from server.settings.limits import Seconds

_SCHEMES = ("postgresql://", "postgres://")


class DatabaseSettings(BaseSettings):
    """Where to serve, and what the data is kept in."""

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
