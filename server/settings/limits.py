"""Settings of connections and calls: how large, how many, how long."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class LimitSettings(BaseSettings):
    """The most that a peer can make the server do."""

    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=2**31 - 1)] = Field(
        16 * 1024 * 1024, description="Largest request and response."
    )
    compressed_requests: bool = Field(
        default=False, description="Take requests that are compressed; 15 KiB may then become max_message_bytes."
    )
    max_item_bytes: Annotated[int, Field(ge=1024, le=2**30)] = Field(
        12 * 1024 * 1024, description="Largest item, serialized."
    )
    max_metadata_bytes: Annotated[int, Field(ge=1024, le=2**20)] = Field(
        16 * 1024, description="Largest metadata of a call; a token may have 8 KiB of it."
    )
    max_calls_per_connection: Count = Field(100, description="Calls at once on one connection; more wait for it.")
    max_calls: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="Unary calls at once in each worker; 0: by the size of the pool."
    )
    max_streams: Count = Field(1000, description="Streams at once in each worker.")
    max_streams_per_principal: Count = Field(100, description="Of these, streams of one principal.")
    max_watches: Count = Field(1000, description="Watches at once in each worker.")
    max_watches_per_principal: Count = Field(50, description="Of these, watches of one principal.")
    max_exports: Count = Field(16, description="Exports at once in each worker.")
    max_exports_per_principal: Count = Field(4, description="Of these, exports of one principal.")
    watch_seconds: Seconds = Field(
        300.0, description="After so long a watch ends with OK, to be resumed, and an export with DEADLINE_EXCEEDED."
    )
    default_deadline_seconds: Seconds = Field(30.0, description="Limit on a call without a deadline.")
    max_deadline_seconds: Seconds = Field(60.0, description="Limit on any call's deadline.")
    connection_age_seconds: Seconds = Field(600.0, description="After so long a connection is renewed (GOAWAY).")
    connection_age_grace_seconds: Seconds = Field(360.0, description="Time for its calls to end then.")
    connection_idle_seconds: Seconds = Field(900.0, description="After so long without a call it is closed.")
    keepalive_seconds: Seconds = Field(60.0, description="Time between the server's pings.")
    keepalive_timeout_seconds: Seconds = Field(20.0, description="Time for their answers, or the connection is closed.")
    min_ping_interval_seconds: Seconds = Field(
        10.0, description="Pings of a client may come so often (too_many_pings)."
    )
    grace_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        10.0, description="From SIGTERM to the end of the calls in flight."
    )
