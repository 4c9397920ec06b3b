"""Settings of reflection, the admin address, metrics, traces and logs."""

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from server.settings.addresses import TcpAddress

# The defaults that differ in the profile `prod`.
PROD = {
    "reflection": False,
    "admin_listen": "127.0.0.1:50052",
    "metrics_listen": "127.0.0.1:9464",
    "log_format": "json",
}


class OperationSettings(BaseSettings):
    """What operators see of the running service, and may change in it."""

    profile: Literal["dev", "prod"] = Field(
        "dev", description="`prod`: reflection on the admin address only, admin and metrics on loopback, logs as JSON."
    )
    reflection: bool = Field(default=True, description="Serve gRPC reflection to callers; unset in `prod`: no.")
    admin_listen: TcpAddress = Field(
        None, description="`host:port` of admin service, channelz and reflection; unset in `prod`: 127.0.0.1:50052."
    )
    metrics_listen: TcpAddress = Field(
        None, description="`host:port` of metrics for Prometheus; unset in `prod`: 127.0.0.1:9464."
    )
    tracing: bool = Field(default=False, description="Send traces by OTLP, as the `OTEL_*` variables say.")
    access_log: bool = Field(default=False, description="Log each call: method, code, milliseconds, principal, trace.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log.")
    log_format: Literal["console", "json"] = Field(
        "console", description="`console` for people, `json` for machines; unset in `prod`: `json`."
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Takes settings that are not given from the profile."""
        return PROD | given if given.get("profile") == "prod" else given
