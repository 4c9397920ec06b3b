"""Authenticates callers by the one configured source; what they may do is `server.authorization`."""

from pathlib import Path
from typing import TYPE_CHECKING

from server.identity.anonymous import Anonymous
from server.identity.source import IdentityConfigError, Source
from server.identity.tenants import TenantRequirement
from server.observability.task_supervisor import TaskSupervisor
from server.settings.identity import IdentitySettings

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from server.identity.jwks import Keys

__all__ = ["IdentityConfigError", "Source", "source_of"]


def source_of(
    settings: IdentitySettings,
    tracer: "Tracer | None" = None,
    tenants: TenantRequirement | None = None,
    tasks: TaskSupervisor | None = None,
) -> Source:
    """Returns the configured source, not yet open; modules of other sources are not imported.

    Args:
        settings: Of identity.
        tracer: Traces the requests of the source; None for no traces.
        tenants: Whether a proxy must name a tenant; by default what the settings say.
        tasks: Runs what the source does beside the calls; by default one of its own.

    Raises:
        IdentityConfigError: A file that it needs cannot be used.
    """
    match settings.identity:
        case "jwt":
            return _jwt(settings, tracer, tasks or TaskSupervisor())
        case "mtls":
            from server.identity.mtls import Mtls

            return Mtls(settings)
        case "proxy":
            from server.identity.proxy import Proxy

            return Proxy(settings, tenants or TenantRequirement(settings.proxy_require_tenant))
        case "none":
            return Anonymous()


def _jwt(settings: IdentitySettings, tracer: "Tracer | None", tasks: TaskSupervisor) -> Source:
    from server.identity.jwt import Jwt

    return Jwt(settings, _keys(settings.jwt_jwks, tracer, tasks))


def _keys(place: str, tracer: "Tracer | None", tasks: TaskSupervisor) -> "Keys":
    """Returns the issuer's keys; an HTTP client is imported for a URL only."""
    if "://" in place:
        from server.identity.jwks_url import UrlKeys

        if tracer is None:
            return UrlKeys(place, tasks=tasks)
        from server.identity.jwks_tracing import trace_config

        return UrlKeys(place, tasks=tasks, traces=(trace_config(tracer),))
    from server.identity.jwks import FileKeys

    return FileKeys(Path(place))
