"""Settings of the HTTP edge."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode

from server.settings.addresses import Address
from server.settings.environment import variable_of
from server.settings.limits import Count, Seconds
from server.settings.lists import Names, split

_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def _each_once(found: tuple[Address, ...]) -> tuple[Address, ...]:
    if len(set(found)) < len(found):
        raise ValueError("must name each address once")
    return found


OptionalAddresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(split), AfterValidator(_each_once)]


class HttpSettings(BaseSettings):
    """Whether and how the OpenAI Conversations API is served over HTTP."""

    http_listen: OptionalAddresses = Field(
        (), description="Addresses of the OpenAI API over HTTP: `host:port` or `unix:/path`, comma separated."
    )
    http_hosts: Names = Field(
        (), description="Names in `Host` that are served without identity, beside localhost and IP addresses."
    )
    http_idle_seconds: Seconds = Field(
        120.0, description="After so long without a whole request head a connection is closed."
    )
    http_max_connections: Count = Field(1000, description="HTTP connections of each worker; more are refused.")
    http_gzip_bytes: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, description="Compress responses from this size on if the client takes gzip; 0: never."
    )

    @field_validator("http_listen")
    @classmethod
    def _require_tcp_for_workers(cls, value: tuple[Address, ...], others: ValidationInfo) -> tuple[Address, ...]:
        if others.data.get("workers", 1) > 1 and any(address.is_unix for address in value):
            raise ValueError(f"must be host:port with several {variable_of('workers')}, which cannot share a socket")
        ports = {address for address in value if address.port or address.is_unix}
        if ports.intersection(others.data.get("listen", ())):
            raise ValueError(f"must differ from {variable_of('listen')}")
        return value

    @field_validator("http_hosts")
    @classmethod
    def _require_host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower() for name in value)
        if not all(map(_HOST_NAME.fullmatch, names)):
            raise ValueError("must be names of hosts, without a port")
        return names
