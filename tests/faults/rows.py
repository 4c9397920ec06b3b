"""The table of faults: what is broken, for how long, and what must hold meanwhile beside what always holds."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults import fuzz, network, overload, processes, sick_store, soak
from tests.faults.attacks import attacked
from tests.faults.callers import CALLERS, Trespasser, Twin
from tests.faults.checker import USUAL
from tests.faults.http_callers import BOTH_PROTOCOLS, SDKS
from tests.faults.network import Side
from tests.faults.scene import Layout, Scene
from tests.faults.watcher import LogWatcher, Watcher
from tests.support.tcp_proxy import Direction

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]  # entering breaks, leaving mends


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        seconds: How long it lasts each time.
        times: How often it comes; once in the short form.
        unusable: The database cannot be used meanwhile, and readiness has to say so.
        short: Whether the short form has it.
        codes: What calls may end with.
        cancelled: How many calls may end as CANCELLED: those that arrive at the moment of `stop` (docs/adr/0017).
        stopped: The server gets no time meanwhile, so its own clock cannot tell when a call was due.
    """

    name: str
    fault: Fault
    seconds: float
    times: int = 3
    unusable: bool = False
    short: bool = False
    layout: Layout = field(default_factory=Layout)
    codes: frozenset[str] = USUAL
    cancelled: int = 0
    stopped: bool = False


_TWO = Layout(servers=2)
_DIRECT = Layout(proxied=False)
_LOGGED = Layout(proxied=False, changes=True)
_FUZZED = replace(_LOGGED, settings={"policy_file": str(Path(__file__).with_name("fuzz_policy.yaml"))})
_COMPRESSED = Layout(proxied=False, settings={"compressed_requests": "true"})
_TWINS = Layout(servers=2, callers=(Twin, Twin, Twin))
_NEIGHBOURS = Layout(callers=(*CALLERS, Trespasser, Trespasser, Trespasser))
_FOLLOWED = Layout(callers=(*CALLERS, Watcher, Watcher, LogWatcher), changes=True)
_HTTP = Layout(proxied=False, http=True, callers=BOTH_PROTOCOLS)
_HTTP_COMPRESSED = replace(_HTTP, settings={"compressed_requests": "true"})
_HTTP_TWO = Layout(servers=2, http=True, callers=SDKS)
_STRANGE = USUAL | {"NOT_FOUND", "INVALID_ARGUMENT"}
_STANDBY = Layout(standby=True)
_CANCELLED = USUAL | {"CANCELLED"}


def _attack(name: str, fault: Fault, *, short: bool = False, layout: Layout = _DIRECT) -> Row:
    return Row(name, fault, seconds=0, times=1, short=short, layout=layout)


ROWS = (
    # Processes.
    Row("server killed (SIGKILL)", processes.server_killed, seconds=0.5, short=True),
    Row("one of two workers killed", processes.worker_killed, seconds=1, layout=Layout(workers=2)),
    Row("one of two servers killed", processes.server_killed, seconds=0.5, layout=_TWO),
    Row("server stopped (SIGSTOP)", processes.server_stopped, seconds=4, stopped=True),
    Row("rolling restart of two servers", processes.servers_restarted, seconds=0, layout=_TWO, short=True, cancelled=3),
    Row("callers cancel a third of their calls", processes.calls_cancelled, seconds=5, times=1, codes=_CANCELLED),
    Row("one request_id on two servers at once", processes.nothing, seconds=5, times=1, layout=_TWINS, short=True),
    # PostgreSQL's processes.
    Row("postmaster killed", processes.postmaster_killed, seconds=6.5, times=2, unusable=True, short=True),
    Row("embedded PostgreSQL killed", processes.embedded_killed, seconds=0, layout=Layout(embedded=True), short=True),
    Row("PostgreSQL stopped (SIGSTOP)", processes.postgres_stopped, seconds=8, times=1, unusable=True),
    Row("backends terminated, 20 a second", processes.backends_terminated, seconds=8, times=1, short=True),
    # Those who follow conversations meanwhile.
    Row("watches: SIGKILL of the server", processes.server_killed, seconds=0.5, layout=_FOLLOWED),
    Row(
        "watches: two servers restarted in turn",
        processes.servers_restarted,
        seconds=0,
        layout=replace(_FOLLOWED, servers=2),
        short=True,
        cancelled=3,
    ),
    Row(
        "watches: SIGKILL of the postmaster",
        processes.postmaster_killed,
        seconds=6.5,
        times=2,
        unusable=True,
        layout=_FOLLOWED,
    ),
    Row(
        "watches: 20 backends a second terminated",
        processes.backends_terminated,
        seconds=8,
        times=1,
        layout=_FOLLOWED,
    ),
    # The network between callers and server.
    Row("callers' network frozen", network.frozen(Side.CALLERS), seconds=4),
    Row("callers' network a black hole", network.black_hole(Side.CALLERS), seconds=4, times=2),
    Row("callers' connections refused", network.refused(Side.CALLERS), seconds=2, times=2),
    Row("callers' connections reset, 5 a second", network.reset(Side.CALLERS, 0.2), seconds=5, times=1),
    Row("callers half-close", network.half_closed(Side.CALLERS, Direction.UP, 0.5), seconds=4, times=1),
    Row("callers' network 100 ms slower", network.delayed(Side.CALLERS, 0.1), seconds=4, times=1),
    Row("callers get no answers", network.swallowed(Side.CALLERS), seconds=4, times=2),
    Row("callers' answers lost", network.answers_lost(Side.CALLERS, 20), seconds=6, times=1, short=True),
    # The network between server and PostgreSQL.
    Row("store's network frozen", network.frozen(Side.STORE), seconds=8, times=2, unusable=True, short=True),
    Row("store's network a black hole", network.black_hole(Side.STORE), seconds=8, times=2, unusable=True),
    Row("store's connections refused", network.refused(Side.STORE), seconds=6.5, times=2, unusable=True),
    Row("store's connections reset, 5 a second", network.reset(Side.STORE, 0.2), seconds=5, times=1),
    Row("store half-closes", network.half_closed(Side.STORE, Direction.DOWN, 0.5), seconds=4, times=1),
    Row("store's network 50 ms slower", network.delayed(Side.STORE, 0.05), seconds=4, times=1),
    Row("store answers nothing", network.swallowed(Side.STORE), seconds=8, times=2, unusable=True),
    Row("answers of commits lost", network.answers_lost(Side.STORE, 10), seconds=6, times=1, short=True),
    Row(
        "single connections to the store go silent",
        network.answers_lost(Side.STORE, 50, reset=False),
        seconds=6,
        times=1,
    ),
    # A PostgreSQL that cannot be used.
    Row("login refused", sick_store.login_refused, seconds=6.5, times=1, unusable=True),
    Row(
        "max_connections exhausted",
        sick_store.connections_exhausted,
        seconds=6.5,
        times=1,
        unusable=True,
        layout=Layout(postgres={"max_connections": "24"}),
    ),
    Row(
        "disk full",
        sick_store.disk_full,
        seconds=6.5,
        times=1,
        unusable=True,
        layout=Layout(small_disk=True),
        short=True,
    ),
    Row("default_transaction_read_only", sick_store.read_only, seconds=6.5, times=1, unusable=True, short=True),
    Row("address leads to a standby", sick_store.led_to_standby, seconds=6.5, times=1, unusable=True, layout=_STANDBY),
    Row("failover, primary killed", sick_store.failed_over, seconds=0, times=1, layout=_STANDBY),
    Row("failover, old primary read-only", sick_store.switched_over, seconds=0, times=1, layout=_STANDBY),
    Row("one conversation locked", sick_store.conversation_locked, seconds=5, times=2, short=True),
    Row(
        "pool exhausted",
        sick_store.pool_exhausted,
        seconds=5,
        times=1,
        layout=Layout(settings={"pool_size": "2"}),
    ),
    # Too much of it.
    Row(
        "5 times the calls that it can answer",
        overload.overloaded(5, 8, goodput=0.8),
        seconds=0,
        times=1,
        layout=_DIRECT,
        codes=_CANCELLED,
    ),
    Row(
        "10 times the calls that it can answer",
        overload.overloaded(10, 8, goodput=0.6),  # on two cores, half of which the offering of calls takes
        seconds=0,
        times=1,
        layout=_DIRECT,
        codes=_CANCELLED,
    ),
    # Hostile connections.
    _attack("HTTP/2 rapid resets", attacked("rapid_reset", 6), short=True),
    _attack("HTTP/2 ping flood", attacked("ping_flood", 6)),
    _attack("HTTP/2 SETTINGS flood", attacked("settings_flood", 6)),
    _attack("HTTP/2 CONTINUATION flood", attacked("continuation_flood", 6)),
    _attack("HTTP/2 flood of empty DATA", attacked("empty_data_flood", 6)),
    _attack("400 silent connections", attacked("silent", 6)),
    _attack("3,000 connections", attacked("many_connections", 6, stranger=True)),
    _attack("1,000 bodies, byte by byte", attacked("slow_drip", 6)),
    _attack("400 answers that nobody takes", attacked("zero_window", 6, large_items=100)),
    # Hostile requests.
    _attack("100,000 empty ids", attacked("empty_ids", 6), short=True, layout=_COMPRESSED),
    _attack("40,000 empty permissions", attacked("empty_permissions", 6), layout=_COMPRESSED),
    _attack("15 MiB of nested JSON", attacked("nested_json", 6)),
    _attack("8 times 20 MiB by a stranger", attacked("large_bodies", 6, stranger=True), short=True),
    _attack("100 times 15 MiB by a stranger", attacked("many_bodies", 6, stranger=True)),
    _attack("100 times 15 MiB by a caller", attacked("many_bodies", 6)),
    _attack("100 times 15 MiB where 64 KiB are taken", attacked("many_bodies_for_small", 6)),
    _attack("100 times 15 MiB for health by a stranger", attacked("many_bodies_for_health", 6, stranger=True)),
    _attack("100 streams with 15 MiB of a message", attacked("partial_messages", 6)),
    _attack(
        "100 streams of reflection with 15 MiB",
        attacked("partial_messages_for_reflection", 6, stranger=True),
    ),
    _attack("15 MiB in 15 KiB by a stranger", attacked("bombs_for_health", 6, stranger=True)),
    _attack("15 MiB in 15 KiB by a caller", attacked("bombs", 6)),
    _attack("4 clients with 16 times 15 MiB", attacked("many_bodies_of_four", 6)),
    _attack("16 idle streams after 12 MiB", attacked("idle_streams", 6)),
    _attack("2,000 watches of health", attacked("health_watches", 6, stranger=True)),
    _attack("malformed streams", attacked("malformed_streams", 15)),
    _attack("5,000 fuzzed calls", fuzz.fuzzed(5_000), short=True, layout=_FUZZED),
    _attack("100,000 fuzzed calls", fuzz.fuzzed(100_000), layout=_FUZZED),
    # The HTTP edge.
    Row("HTTP: two servers restarted in turn", processes.servers_restarted_under_sdks, seconds=0, layout=_HTTP_TWO),
    Row(
        "HTTP: callers leave a third of their calls",
        processes.calls_cancelled,
        seconds=3,
        times=1,
        layout=_HTTP,
        codes=_CANCELLED,
        short=True,
    ),
    _attack("HTTP: 1,500 silent connections", attacked("http_silent", 6), layout=_HTTP),
    _attack("HTTP: 1,500 heads, byte by byte", attacked("http_slow_heads", 6), layout=_HTTP),
    _attack("HTTP: 500 slow bodies", attacked("http_slow_bodies", 6), layout=_HTTP),
    _attack("HTTP: half bodies of 15 MiB", attacked("http_half_bodies", 6), layout=_HTTP),
    _attack("HTTP: 14 MiB, 30 at once", attacked("http_large_bodies", 6), layout=_HTTP),
    _attack("HTTP: 256 MiB in 256 KiB", attacked("http_bombs", 6), layout=_HTTP_COMPRESSED),
    _attack("HTTP: requests sent ahead", attacked("http_pipelined", 6, large_items=100), layout=_HTTP),
    _attack("HTTP: callers that go at once", attacked("http_disconnects", 6, large_items=20), layout=_HTTP),
    # Nothing but time and neighbours.
    Row(
        "two tenants, each after the other's", processes.nothing, seconds=6, times=1, layout=_NEIGHBOURS, codes=_STRANGE
    ),
    Row("soak", soak.soaked, seconds=120, times=1),
)
