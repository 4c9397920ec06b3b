"""The admin address: a second gRPC server, for operators on this machine.

It authenticates nobody, so it listens on loopback only; in Kubernetes it is reached by a port-forward.
It runs in the same process and event loop as the callers' server, which it shows by channelz too, and
cannot answer while that loop is blocked.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import structlog
from conversations.admin.v1 import admin_service_pb2
from conversations.admin.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2_grpc

from server.interceptors.chain import InterceptorChain
from server.interceptors.decode import Decode
from server.interceptors.error_status import ErrorStatus
from server.services.admin import AdminServicer, Process
from server.settings.service import Settings
from server.transport.health import Health
from server.transport.server import bind, reflect

log = structlog.get_logger(__name__)

SERVICES = tuple(
    service.full_name
    for file in (admin_service_pb2.DESCRIPTOR, channelz_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
)
_GRACE_SECONDS = 1.0  # for calls of operators that still run


@asynccontextmanager
async def admin(settings: Settings, process: Process, health: Health) -> AsyncIterator[None]:
    """Serves the admin address, if one is configured, while the context is open.

    Raises:
        StartFailed: The address is taken or not allowed.
    """
    if not settings.admin_listen:
        yield
        return
    server = grpc.aio.server(
        interceptors=[InterceptorChain((ErrorStatus(), Decode()))], options=[("grpc.so_reuseport", 0)]
    )
    add_AdminServiceServicer_to_server(AdminServicer(process, settings.log_level), server)
    channelz.add_channelz_servicer(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflect(server, SERVICES)
    address = bind(server, settings.admin_listen.for_worker(process.worker), None)
    await server.start()
    try:
        log.info("admin address", listen=str(address))
        yield
    finally:
        await server.stop(_GRACE_SECONDS)
