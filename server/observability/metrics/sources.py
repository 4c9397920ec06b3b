"""What metrics are read from."""

from dataclasses import dataclass

from server.authorization.policy_file import PolicyFile
from server.identity import Source
from server.interceptors.chain import InterceptorChain
from server.interceptors.drain_gate import DrainGate
from server.observability.stats import PurgeStats
from server.settings.service import Settings
from server.store.connection.database import Database
from server.transport.readiness import Readiness
from server.transport.tls import Credentials


@dataclass(frozen=True)
class Sources:
    """What is read."""

    settings: Settings
    chain: InterceptorChain
    running: DrainGate
    readiness: Readiness
    database: Database
    policy: PolicyFile
    purges: PurgeStats
    identity: Source
    credentials: Credentials | None
