"""What happens to every call before its method runs, in order."""

from collections.abc import Mapping, Sequence

from server.authorization.access import AccessCache
from server.authorization.requirements import Need
from server.identity.source import Source
from server.interceptors.authentication import Authentication
from server.interceptors.authorization import Authorization
from server.interceptors.chain import Interceptor, InterceptorChain
from server.interceptors.concurrency import CallLimit, StreamLimit
from server.interceptors.deadline import Deadline
from server.interceptors.decode import Decode
from server.interceptors.drain_gate import DrainGate
from server.interceptors.error_status import ErrorStatus
from server.interceptors.observe import Observe
from server.settings.service import Settings


def interceptors(
    settings: Settings,
    needs: Mapping[str, Need],
    running: DrainGate,
    source: Source,
    accesses: AccessCache,
    traces: Sequence[Interceptor] = (),
) -> InterceptorChain:
    """The chain, outermost first."""
    links = (
        *traces,  # Trace, so that what the others log has its ids; nothing while tracing is off
        Observe(needs, access_log=settings.access_log),  # outside: sees refusals too, with the code the caller gets
        ErrorStatus(),  # everything below leaves as a google.rpc.Status
        running,  # a drain holds new calls here, before any work, and waits for all that follows
        CallLimit(settings.calls_limit),  # before anything is done for a call
        Deadline(settings.default_deadline_seconds, settings.max_deadline_seconds),  # bounds all that waits
        Authentication(source),  # who is asking
        StreamLimit(settings.max_streams, settings.max_streams_per_principal),
        # Needs the principal; refuses before the body is decoded.
        Authorization(needs, accesses, audit_permits=settings.audit_permits),
        Decode(),  # innermost: the method gets a request that keeps the contract's rules
    )
    return InterceptorChain(links)
