"""The interceptors of every call, and their order; none of them knows a single method."""

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


class CallerChain(InterceptorChain):
    """The chain of the callers' server, with the interceptors whose counts are metrics."""

    def __init__(
        self, interceptors: Sequence[Interceptor], observe: Observe, call_limit: CallLimit, stream_limit: StreamLimit
    ) -> None:
        super().__init__(interceptors)
        self.observe = observe
        self.call_limit = call_limit
        self.stream_limit = stream_limit


def build_chain(
    settings: Settings,
    needs: Mapping[str, Need],
    drain_gate: DrainGate,
    source: Source,
    accesses: AccessCache,
    tracing: Sequence[Interceptor] = (),
) -> CallerChain:
    """Returns the interceptors of the callers' server, the outermost first.

    Args:
        settings: Limits, deadlines, and what is logged.
        needs: The permission that each method of the contract needs.
        drain_gate: Shared with the drain, which closes it.
        source: Who authenticates callers.
        accesses: Plans of the policy in force, by caller.
        tracing: `Tracing`, or nothing while tracing is off.
    """
    observe = Observe(needs, access_log=settings.access_log)
    call_limit = CallLimit(settings.calls_limit)
    stream_limit = StreamLimit(settings.max_streams, settings.max_streams_per_principal)
    interceptors = (
        *tracing,  # the log lines of all others carry its trace id
        observe,  # counts refusals too, with the code the caller receives
        ErrorStatus(),  # whatever is raised below leaves as a google.rpc.Status
        drain_gate,  # before the store is ready and in a drain, calls are refused before any work
        call_limit,  # so are calls beyond the limit
        Deadline(settings.default_deadline_seconds, settings.max_deadline_seconds),  # bounds everything that waits
        Authentication(source),
        stream_limit,  # needs the principal
        Authorization(needs, accesses, audit_permits=settings.audit_permits),  # needs the principal
        Decode(settings.max_message_bytes),  # innermost: a request that is refused is never parsed
    )
    return CallerChain(interceptors, observe, call_limit, stream_limit)
