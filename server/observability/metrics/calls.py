"""Metrics of calls, under the names that dashboards for gRPC servers expect.

Methods that are not served are one `unknown`: a name that a caller made up is no label.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import Metric

from server.observability.metrics.families import counts_by, histograms_by
from server.observability.metrics.sources import CallCounts
from server.observability.stats import MethodStats

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_UNKNOWN = ("unary", "unknown", "unknown")
_Words = tuple[str, ...]


def of_calls(counts: CallCounts) -> Iterator[Metric]:
    """Yields started and handled calls, their duration, and messages."""
    calls = {_words(method, own): own for method, own in counts.calls.items()}
    yield _counted("started", "Calls that began.", calls, lambda own: own.started, {_UNKNOWN: counts.unknown})
    yield counts_by(
        "grpc_server_handled",
        "Calls that ended, by the code the caller got.",
        (*_LABELS, "grpc_code"),
        _handled(calls, counts.unknown),
    )
    seconds = ((words, own.seconds) for words, own in calls.items())
    yield histograms_by("grpc_server_handling_seconds", "Time from the start of a call to its end.", _LABELS, seconds)
    yield _counted("msg_received", "Messages that came.", calls, _received)
    told = {words: own for words, own in calls.items() if own.kind in ("unary", "bidi_stream")}
    yield _counted("msg_sent", "Messages that were sent; a health Watch does not say.", told, _sent)


def _words(method: str, calls: MethodStats) -> _Words:
    service, _, name = method.removeprefix("/").partition("/")
    return calls.kind, service, name


def _counted(
    name: str,
    description: str,
    calls: Mapping[_Words, MethodStats],
    number: Callable[[MethodStats], int],
    more: Mapping[_Words, int] | None = None,
) -> Metric:
    values = {words: number(own) for words, own in calls.items()} | dict(more or {})
    return counts_by(f"grpc_server_{name}", description, _LABELS, values.items())


def _handled(calls: Mapping[_Words, MethodStats], unknown: int) -> Iterator[tuple[_Words, int]]:
    for words, own in calls.items():
        for code, number in own.codes.items():
            yield (*words, code), number
    yield (*_UNKNOWN, "UNIMPLEMENTED"), unknown


def _received(calls: MethodStats) -> int:
    """Returns the number of messages received; a unary call has one."""
    return calls.received if calls.kind == "bidi_stream" else calls.started


def _sent(calls: MethodStats) -> int:
    return calls.codes["OK"] if calls.kind == "unary" else calls.sent
