"""The interceptors of every call, and their order; none of them knows a single method."""

from collections.abc import Mapping, Sequence

import grpc

from server.authorization.access import AccessCache
from server.authorization.requirements import Need
from server.identity.source import Source
from server.interceptors.authentication import Authentication
from server.interceptors.authorization import Authorization
from server.interceptors.body_budget import BodyBudget
from server.interceptors.chain import Continuation, Handler, Interceptor, InterceptorChain, read_later
from server.interceptors.concurrency import CallLimit, FairShare, StreamLimit, is_limited
from server.interceptors.deadline import Deadline
from server.interceptors.decode import Decode
from server.interceptors.drain_gate import DrainGate
from server.interceptors.encode import Encode
from server.interceptors.error_status import ErrorStatus, abort_with
from server.interceptors.observe import Observe
from server.settings.service import Settings
from server.store.response_budget import ResponseBudget


class CallerChain(InterceptorChain):
    """The chain of the callers' server, with the interceptors whose counts are metrics.

    Attributes:
        shared: The interceptors that know no protocol, the outermost first: calls over HTTP go through the same ones.
        bodies: The budget of large requests, of all protocols together.
    """

    def __init__(
        self,
        outer: Sequence[Interceptor],
        shared: Sequence[Interceptor],
        inner: Sequence[Interceptor],
        bodies: BodyBudget,
        observe: Observe,
        fair_share: FairShare,
        stream_limit: StreamLimit,
        watch_limit: StreamLimit,
    ) -> None:
        super().__init__((*outer, *shared, *inner))
        self.shared = tuple(shared)
        self.bodies = bodies
        self.observe = observe
        self.fair_share = fair_share
        self.stream_limit = stream_limit
        self.watch_limit = watch_limit
        self._refusals: dict[str, Handler] = {}

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` inside all interceptors."""
        if is_limited(method, handler):
            self._refusals[method] = self._wrap_refusal(method)
        return super().wrap(method, handler)

    def _wrap_refusal(self, method: str) -> Handler:
        handler = abort_with(self.fair_share.error)
        for interceptor in reversed(self.interceptors):
            if interceptor.sees_refusals:
                handler = interceptor.wrap(method, handler)
        return read_later(handler)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> "Handler | None":
        """Returns the method's handler, or under overload one that refuses the call before any other work."""
        if self.fair_share.refuses(details.invocation_metadata) and details.method in self._refusals:
            self.fair_share.refused += 1
            return self._refusals[details.method]
        return await super().intercept_service(continuation, details)


def build_chain(
    settings: Settings,
    needs: Mapping[str, Need],
    drain_gate: DrainGate,
    source: Source,
    accesses: AccessCache,
    responses: ResponseBudget,
    tracing: Sequence[Interceptor] = (),
) -> CallerChain:
    """Returns the interceptors of the callers' server, the outermost first.

    Args:
        settings: Limits, deadlines, and what is logged.
        needs: The permission that each method of the contract needs.
        drain_gate: Shared with the drain, which closes it.
        source: Who authenticates callers.
        accesses: Plans of the policy in force, by caller.
        responses: Of the store's large reads, and of every large response.
        tracing: `Tracing`, or nothing while tracing is off.
    """
    observe = Observe(needs, access_log=settings.access_log)
    fair_share = FairShare(settings.calls_limit, known_by_metadata=settings.identity != "mtls")
    stream_limit = StreamLimit(settings.max_streams, settings.max_streams_per_principal)
    watch_limit = StreamLimit(settings.max_watches, settings.max_watches_per_principal, "watches")
    decode = Decode(settings.max_message_bytes)
    outer = (
        *tracing,  # the log lines of all others carry its trace id
        observe,  # counts refusals too, with the code the caller receives
        ErrorStatus(),  # whatever is raised below leaves as a google.rpc.Status
    )
    shared = (
        drain_gate,  # before the store is ready and in a drain, calls are refused before any work
        CallLimit(2 * settings.calls_limit),  # so are calls beyond any limit
        Deadline(settings.default_deadline_seconds, settings.max_deadline_seconds),  # bounds everything that waits
        Authentication(source),
        fair_share,  # needs the principal
        stream_limit,  # needs the principal
        watch_limit,  # needs the principal
        Authorization(needs, accesses, audit_permits=settings.audit_permits),  # needs the principal
    )
    inner = (
        decode,  # a request that is refused is never parsed
        Encode(responses),  # innermost: a method may return bytes
    )
    return CallerChain(outer, shared, inner, decode.budget, observe, fair_share, stream_limit, watch_limit)
