"""Connections: who holds them without asking for anything, asks for too much, or goes; and how they end."""

import asyncio
import gzip
import json
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from structlog.testing import capture_logs

from server.errors import StartFailed
from server.http import body, listener
from server.http.requests import read_document
from server.settings.addresses import Address
from server.transport import tls
from tests.support.build import create, get
from tests.support.certificates import CA, OTHER_CA, TlsFiles
from tests.support.http import (
    CONVERSATIONS,
    JSON,
    EdgeService,
    RawConnection,
    edge_service,
    http_client,
    request_text,
)
from tests.support.postgres import fetch
from tests.support.service import Service

HELLO = {"role": "user", "content": "hello"}
KIB = 1024
GET = request_text("GET", "/healthz")


def _status(head: str) -> int:
    return int(head.split()[1])


async def _ends(connection: RawConnection) -> bool:
    """Whether the server closes the connection."""
    with suppress(ConnectionError):
        await connection.rest()
    return True


# -- connections


async def test_the_limit_of_connections(service: Service) -> None:
    """At the limit a further connection is told so and closed; when one ends, the next is served."""
    async with edge_service(service.url, http_max_connections=2) as served:
        async with RawConnection.to(served.address) as first, RawConnection.to(served.address) as second:
            for each in (first, second):
                await each.send(GET)
                assert 200 == _status(await each.head())
            async with RawConnection.to(served.address) as third:
                head, _, text = (await third.rest()).partition(b"\r\n\r\n")
                assert 503 == _status(head.decode())
                assert b"x-should-retry: true" in head
                assert "server_error" == json.loads(text)["error"]["type"]
        async with asyncio.timeout(5):
            while True:
                async with RawConnection.to(served.address) as again:
                    await again.send(GET)
                    if _status(await again.head()) == 200:
                        break


async def test_idle_connections_give_way(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit, the connection that has been silent for longest is closed for a new one; one that works is not."""
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.1)
    async with AsyncExitStack() as stack, edge_service(service.url, http_max_connections=3) as served:

        async def connection() -> RawConnection:
            return await stack.enter_async_context(RawConnection.to(served.address))

        async def works(connection: RawConnection) -> bool:
            await connection.send(GET)
            status = _status(await connection.head())
            await connection.reader.readuntil(b"}")
            return status == 200

        busy, silent, dripping = await connection(), await connection(), await connection()
        await dripping.send("GET / HT")
        await asyncio.sleep(0.15)
        for idle in (silent, dripping):
            assert await works(busy)
            assert await works(await connection())
            assert await _ends(idle)
        assert await works(busy)


@pytest.mark.slow
async def test_silent_and_dripping_connections_end(service: Service) -> None:
    """A connection without a whole head is closed in time, also behind an answer; one that asks goes on."""
    async with edge_service(service.url, http_idle_seconds=0.3) as served:
        for sent in ("", "GET / HT", GET, GET + "GET /"):
            async with RawConnection.to(served.address) as silent:
                await silent.send(sent)
                assert await _ends(silent)


@pytest.mark.parametrize(
    "sent, status",
    [
        (request_text("GET", "/healthz", f"x: {'y' * 16_000}"), 200),
        (request_text("GET", "/healthz", f"x: {'y' * 20_000}"), 400),
        (request_text("GET", "/healthz?" + "y" * 8_000), 200),
        (request_text("GET", "/healthz?" + "y" * 9_000), 400),
        (request_text("GET", "/healthz", *["a: b"] * 98), 200),
        (request_text("GET", "/healthz", *["a: b"] * 120), 400),
        (f"GET / HTTP/1.1\r\n{'a: ' + 'b' * 8000}\r\nc: {'d' * 8000}\r\ne: {'f' * 12000}\r\n", 431),
        ("\x16\x03\x01\x00\xa5\x01", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (request_text("POST", CONVERSATIONS, "Content-Length: x"), 400),
        (request_text("POST", CONVERSATIONS, "Content-Length: 2", "Transfer-Encoding: chunked"), 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ],
    ids=lambda each: str(each)[:40],
)
async def test_heads(edge: EdgeService, sent: str, status: int) -> None:
    """A head has a limit and a form; whatever breaks them is answered as any error is, without its text."""
    async with RawConnection.to(edge.address) as connection:
        await connection.send(sent)
        head = await connection.head()
        assert status == _status(head)
        if status != 200:
            assert b'"type":"invalid_request_error"' in await connection.rest()


async def test_pipelined_requests(edge: EdgeService) -> None:
    """Requests that are sent ahead are answered in their order, and do not share what they set."""
    async with RawConnection.to(edge.address) as connection:
        first = request_text("GET", f"{CONVERSATIONS}/conv_1", f"traceparent: 00-{'a' * 32}-{'b' * 16}-01")
        second = request_text("GET", f"{CONVERSATIONS}/conv_2")
        await connection.send(first + second + request_text("GET", "/healthz", "Connection: close"))
        answers = (await connection.rest()).decode().split("HTTP/1.1 ")[1:]
    assert ["404", "404", "200"] == [each[:3] for each in answers]
    assert "conv_1" in answers[0]
    assert "conv_2" in answers[1]
    assert f"req_{'a' * 32}" in answers[0]
    assert "a" * 32 not in answers[1]


@pytest.mark.slow
async def test_a_flood_of_pipelined_requests(edge: EdgeService) -> None:
    """A connection that sends thousands of requests and reads nothing is not answered from memory."""
    async with RawConnection.to(edge.address) as connection:
        text = request_text("GET", "/openapi.json").encode() * 200
        try:
            async with asyncio.timeout(1):
                for _ in range(500):
                    await connection.send(text)
        except TimeoutError:
            pass
        else:
            pytest.fail("the server took everything")
        assert 200 == (await edge.http.get("/healthz")).status


# -- bodies


def _padded(size: int) -> bytes:
    text = json.dumps({"items": [HELLO]}).encode()
    return text + b" " * (size - len(text))


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_limit_of_a_body(service: Service, chunked: bool) -> None:  # noqa: FBT001
    """A body has at most max_message_bytes, whether its length is said before or not."""
    limit = 100 * KIB

    def sent(size: int) -> Any:
        if not chunked:
            return _padded(size)

        async def parts() -> Any:
            whole = _padded(size)
            for start in range(0, size, 10 * KIB):
                yield whole[start : start + 10 * KIB]

        return parts()

    async with edge_service(service.url, max_message_bytes=limit, max_item_bytes=KIB) as served:
        path = await served.http.create()
        for size in (limit, limit - 1, 64 * KIB, 64 * KIB + 1, 17 * KIB):
            assert 200 == (await served.http.call("POST", f"{path}/items", data=sent(size))).status
        answer = await served.http.call("POST", f"{path}/items", data=sent(limit + 1))
        assert (413, "request_too_large", None) == answer.error[:3]
        assert str(limit) in answer.error[3]
        metadata = json.dumps({"metadata": {}}).encode()
        for size, status in ((64 * KIB, 200), (64 * KIB + 1, 413)):
            assert status == (await served.http.call("POST", path, data=metadata.ljust(size))).status


async def test_a_slow_body(edge: EdgeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender who stops in the middle is told so, and holds no place among the calls until then."""
    monkeypatch.setattr(body, "_PAUSE_SECONDS", 0.2)
    for length in (10, 70 * KIB):
        async with RawConnection.to(edge.address) as connection:
            headers = ("Content-Type: application/json", f"Content-Length: {length}")
            await connection.send(request_text("POST", CONVERSATIONS, *headers), b"{")
            assert 408 == _status(await connection.head())


async def test_slow_bodies_leave_room(edge: EdgeService) -> None:
    """So many large bodies may be slow at once; one more is told to come again, and small requests do not wait."""
    headers = ("Content-Type: application/json", f"Content-Length: {70 * KIB}")
    async with AsyncExitStack() as connections:
        slow = [await connections.enter_async_context(RawConnection.to(edge.address)) for _ in range(body.MAX_SLOW + 1)]
        heads = [asyncio.create_task(each.head()) for each in slow]
        for each in slow:
            await each.send(request_text("POST", CONVERSATIONS, *headers), "{")
        done, waiting = await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED)
        assert [429] == [_status(task.result()) for task in done]
        assert body.MAX_SLOW == len(waiting)
        assert 200 == (await edge.http.post(CONVERSATIONS, {})).status
        for each in slow[:2]:
            await each.send("}" + " " * (70 * KIB - 2))
        answered, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert {200} == {_status(task.result()) for task in answered}
        for task in waiting:
            task.cancel()


async def test_large_bodies_share_a_budget(service: Service) -> None:
    """What large bodies take while they arrive is bounded; small ones do not need room, and it is given back."""
    async with edge_service(service.url, max_message_bytes=100 * KIB, max_item_bytes=KIB) as served:
        path = await served.http.create()
        headers = ("Content-Type: application/json", f"Content-Length: {99 * KIB}")
        async with AsyncExitStack() as connections:
            three = [await connections.enter_async_context(RawConnection.to(served.address)) for _ in range(3)]
            for each in three:
                await each.send(request_text("POST", f"{path}/items", *headers), b" " * 80 * KIB)
            heads = [asyncio.create_task(each.head()) for each in three]
            done, waiting = await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED)
            assert [429] == [_status(task.result()) for task in done]
            assert 200 == (await served.http.post(f"{path}/items", {"items": [HELLO]})).status
            for task in waiting:
                task.cancel()
        async with asyncio.timeout(5):
            while (await served.http.call("POST", f"{path}/items", data=_padded(80 * KIB))).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_compressed_bodies(service: Service) -> None:
    """They are refused unless they are taken on purpose; then what they become is bounded."""
    compressed = {**JSON, "Content-Encoding": "gzip"}
    small, bomb = gzip.compress(_padded(KIB)), gzip.compress(b" " * 8 * KIB * KIB)
    assert len(bomb) < 32 * KIB
    async with edge_service(service.url) as served:
        answer = await served.http.call("POST", CONVERSATIONS, data=small, headers=compressed)
        assert (415, "unsupported_media_type") == answer.error[:2]
    settings = {"compressed_requests": True, "max_message_bytes": 256 * KIB, "max_item_bytes": KIB}
    async with edge_service(service.url, **settings) as served:
        path = await served.http.create()
        answer = await served.http.call("POST", f"{path}/items", data=small, headers=compressed)
        assert 200 == answer.status, answer.body
        answer = await served.http.call("POST", f"{path}/items", data=bomb, headers=compressed)
        assert (413, "request_too_large") == answer.error[:2]
        answer = await served.http.call("POST", f"{path}/items", data=b"no gzip", headers=compressed)
        assert 400 == answer.status


async def test_a_refused_bomb_is_not_read_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a compressed body that is too large is not decompressed any more: its connection ends at once."""
    monkeypatch.setattr(listener, "_LINGER_SECONDS", 60.0)
    bomb = gzip.compress(b" " * 8 * KIB * KIB)
    headers = ("Content-Type: application/json", "Content-Encoding: gzip", f"Content-Length: {len(bomb)}")
    settings = {"compressed_requests": True, "max_message_bytes": 256 * KIB, "max_item_bytes": KIB}
    async with edge_service(service.url, **settings) as served, RawConnection.to(served.address) as connection:
        await connection.send(request_text("POST", CONVERSATIONS, *headers), bomb[:-KIB])
        assert 413 == _status((await connection.rest()).decode())


async def test_expect(edge: EdgeService) -> None:
    """A caller who waits for `100 Continue` gets it when the body is wanted, and not when it is refused."""
    headers = ("Content-Type: application/json", "Content-Length: 2", "Expect: 100-continue")
    async with RawConnection.to(edge.address) as connection:
        await connection.send(request_text("POST", CONVERSATIONS, *headers))
        assert 100 == _status(await connection.head())
        await connection.send("{}")
        assert 200 == _status(await connection.head())
    for other in (("Content-Type: text/plain", *headers[1:]), (*headers[:2], "Expect: cake")):
        async with RawConnection.to(edge.address) as connection:
            await connection.send(request_text("POST", CONVERSATIONS, *other))
            assert _status(await connection.head()) in {415, 417}


async def test_bodies_that_mean_nothing(edge: EdgeService) -> None:
    """The body of a GET or a DELETE is ignored, whatever it is, and the connection goes on."""
    path = await edge.http.create()
    async with RawConnection.to(edge.address) as connection:
        for verb in ("GET", "DELETE"):
            await connection.send(request_text(verb, path, "Content-Length: 3", "Content-Type: a/b"), "{{{")
            head = await connection.head()
            assert 200 == _status(head)
            length = int(head.lower().partition("content-length: ")[2].split()[0])
            await connection.reader.readexactly(length)


def test_a_body_is_parsed_once_and_exactly() -> None:
    """An integer beyond 2^53 is what it was; an empty body is an empty object."""
    assert {"a": 9007199254740993} == read_document(b'{"a": 9007199254740993}')
    assert {} == read_document(b"")


# -- answers


@pytest.mark.slow
async def test_compressed_answers(service: Service) -> None:
    """Large answers are compressed for those who ask, if an operator wants it; none by default."""
    async with edge_service(service.url, http_gzip_bytes=500) as served:
        path = await served.http.create({**HELLO, "content": "x" * 1000})
        for asked, encoding in (("gzip, br", "gzip"), ("gzip;q=0", None), ("identity", None)):
            answer = await served.http.get(f"{path}/items", **{"Accept-Encoding": asked})
            assert (encoding, "Accept-Encoding") == (answer.headers.get("Content-Encoding"), answer.headers["Vary"])
            assert 1000 == len(answer.json["data"][0]["content"][0]["text"])
        assert "Content-Encoding" not in (await served.http.get(path, **{"Accept-Encoding": "gzip"})).headers


@pytest.mark.slow
async def test_a_large_item(edge: EdgeService) -> None:
    """An item of a megabyte goes in and out; what its answer took of memory is given back."""
    path = await edge.http.create()
    sent = {**HELLO, "content": "ä" * 600 * KIB}
    for _ in range(30):  # more than have room at the same time
        made = await edge.http.post(f"{path}/items", {"items": [sent]})
        assert 200 == made.status, made.body[:200]
    page = await edge.http.get(f"{path}/items?limit=3")
    assert [sent["content"]] * 3 == [item["content"][0]["text"] for item in page.json["data"]]


@pytest.mark.slow
async def test_an_answer_that_nobody_takes(service: Service) -> None:
    """A caller who does not read is cut off, so that nobody's answers are kept for ever; this is no defect."""
    async with edge_service(service.url, http_idle_seconds=0.5) as served:
        path = await served.http.create()
        for _ in range(12):
            await served.http.post(f"{path}/items", {"items": [{**HELLO, "content": "x" * 1000 * KIB}]})
        with capture_logs() as logged:
            async with RawConnection.to(served.address) as connection:
                await connection.send(request_text("GET", f"{path}/items"))
                await asyncio.sleep(1.5)
                try:
                    taken = await connection.rest()
                except ConnectionError:
                    taken = b""
                assert len(taken) < 11_000 * KIB
        assert [] == [line["event"] for line in logged if line["log_level"] == "error"]
        assert 200 == (await served.http.get(f"{path}/items")).status


@pytest.mark.slow
async def test_old_connections_are_renewed(service: Service) -> None:
    """Past their age, connections end with an answer, so that callers spread over new processes."""
    async with (
        edge_service(service.url, connection_age_seconds=0.2) as served,
        RawConnection.to(served.address) as connection,
    ):
        await connection.send(GET)
        assert "Connection: close" not in await connection.head()
        await asyncio.sleep(0.25)
        await connection.send(GET)
        assert b"Connection: close" in await connection.rest()


# -- the end of calls


async def _until_waiting(service: Service, count: int) -> None:
    """Waits until so many statements wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(5):
        while (await fetch(service.url, query))[0][0] != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_caller_that_goes_ends_its_query(own_service: Service) -> None:
    """The statement of a caller who has gone is cancelled in the database, and does not write."""
    async with edge_service(own_service.url) as served:
        path = await served.http.create()
        identifier = path.rpartition("/")[2]
        lock = await asyncpg.connect(own_service.url)
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", identifier)
        body_text = json.dumps({"metadata": {"a": "b"}})
        with capture_logs() as logged:
            async with RawConnection.to(served.address) as connection:
                headers = ("Content-Type: application/json", f"Content-Length: {len(body_text)}")
                await connection.send(request_text("POST", path, *headers), body_text)
                await _until_waiting(own_service, 1)
            await _until_waiting(own_service, 0)
        assert ["CANCELLED"] == [line["code"] for line in logged if line.get("log") == "access"]
        await transaction.rollback()
        await lock.close()
        assert {} == (await served.http.get(path)).json["metadata"]


async def test_deadlines(own_service: Service) -> None:
    """An SDK's timeout is the deadline of the call, as far as it is one."""
    async with edge_service(own_service.url) as served:
        path = await served.http.create()
        lock = await asyncpg.connect(own_service.url)
        transaction = lock.transaction()
        await transaction.start()
        await lock.execute("SELECT 1 FROM conversations FOR UPDATE")
        answer = await served.http.post(path, {"metadata": {}}, X_Stainless_Timeout="0.2")
        assert (504, None) == answer.error[:2]
        assert "false" == answer.headers["x-should-retry"]
        keyed = {"X_Stainless_Read_Timeout": "0.2", "X_Stainless_Timeout": "600", "Idempotency_Key": "k"}
        answer = await served.http.post(path, {"metadata": {}}, **keyed)
        assert (504, "true") == (answer.status, answer.headers["x-should-retry"])
        await transaction.rollback()
        await lock.close()
        for ignored in ("nonsense", "0", "-1", "9" * 400, "1e9"):
            assert 200 == (await served.http.get(path, **{"X-Stainless-Timeout": ignored})).status


async def test_a_database_that_is_not_there(unused_tcp_port: int) -> None:
    """Without a database it is alive and not ready, and every call may be tried again."""
    async with edge_service(f"postgresql://127.0.0.1:{unused_tcp_port}/none") as served:
        assert (200, 503) == tuple([(await served.http.get(path)).status for path in ("/healthz", "/readyz")])
        answer = await served.http.post(CONVERSATIONS, {})
        assert (503, None) == answer.error[:2]
        assert ("true", "200", "1") == tuple(
            answer.headers[name] for name in ("x-should-retry", "retry-after-ms", "Retry-After")
        )


async def test_a_drain(own_service: Service) -> None:
    """A call that runs is answered, with the end of its connection; idle connections and the address are closed."""
    lock = await asyncpg.connect(own_service.url)
    transaction = lock.transaction()
    async with AsyncExitStack() as clients:
        async with edge_service(own_service.url, grace_seconds=5) as served:
            address = served.address
            http = await clients.enter_async_context(http_client(address))
            path = await http.create()
            await transaction.start()
            await lock.execute("SELECT 1 FROM conversations FOR UPDATE")
            running = asyncio.create_task(http.post(path, {"metadata": {"a": "b"}}))
            await _until_waiting(own_service, 1)
            idle = await clients.enter_async_context(RawConnection.to(address))
            held = asyncio.create_task(_held(address))
            ended = asyncio.create_task(_end_later(transaction))
        answer = await running
        assert (200, {"a": "b"}) == (answer.status, answer.json["metadata"])
        assert "close" == answer.headers["Connection"]
        assert await _ends(idle)
        status, headers = await held
        assert (503, "true", "400") == (status, headers["x-should-retry"], headers["retry-after-ms"])
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(address.host, address.port)
        await ended
    await lock.close()


async def _end_later(transaction: Any) -> None:
    await asyncio.sleep(0.8)
    await transaction.rollback()


async def _held(address: Address) -> tuple[int, Any]:
    """The answer to a call that arrives in the drain."""
    await asyncio.sleep(0.1)
    async with http_client(address) as client:
        answer = await client.get(f"{CONVERSATIONS}/conv_1")
        return answer.status, answer.headers


# -- TLS


def _client(*certificate_and_key: bytes) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=CA.pem.decode())
    made.check_hostname = False
    if certificate_and_key:
        with TemporaryDirectory() as name:
            files = TlsFiles(Path(name)).put(*certificate_and_key)
            made.load_cert_chain(files.path("tls_certificate"), files.path("tls_key"))
    return made


async def _get(address: Address, context: ssl.SSLContext, path: str = CONVERSATIONS) -> int:
    async with http_client(address, connector=aiohttp.TCPConnector(ssl=context, force_close=True)) as client:
        return (await client.get(path, Host="localhost")).status


async def test_tls(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New connections get new files; a certificate of a CA that was removed is refused, with and without a session."""
    monkeypatch.setattr(tls, "_POLL_SECONDS", 0.05)
    files = TlsFiles(tmp_path).put(*CA.issue("server", hosts=("localhost",)), CA.pem + OTHER_CA.pem)
    ours, others = (_client(*each.issue("client")) for each in (CA, OTHER_CA))
    others.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions are resumed by their ids
    async with edge_service(service.url, **files.settings) as served:
        assert [200, 200] == [await _get(served.address, each) for each in (ours, others)]
        with pytest.raises(aiohttp.ClientError):
            await _get(served.address, _client())
        files.put(*CA.issue("server", hosts=("localhost",)), CA.pem)
        async with asyncio.timeout(5):
            while served.served.certificate and served.served.certificate.reloads["taken"] < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert 200 == await _get(served.address, ours)
        with pytest.raises(aiohttp.ClientError):
            await _get(served.address, others)


@pytest.mark.slow
async def test_principals_of_certificates(service: Service, tmp_path: Path) -> None:
    """A certificate is the same principal over both protocols: by its SPIFFE id, and by its subject."""
    files = TlsFiles(tmp_path).put(*CA.issue("server", hosts=("localhost",)), CA.pem)
    subjects = ["billing", 'a,b+c"d<e>;f\\g', " space ", "#hash", "müller", "tab\there"]
    clients = [CA.issue(name, uris=("spiffe://prod.example/billing",)) for name in subjects]
    for source in ({"mtls_trust_domains": "prod.example"}, {"mtls_subjects": "true"}):
        async with edge_service(service.url, identity="mtls", **source, **files.settings) as served:
            for certificate, key in clients:
                credentials = grpc.ssl_channel_credentials(CA.pem, key, certificate)
                options = [("grpc.ssl_target_name_override", "localhost")]
                async with grpc.aio.secure_channel(served.served.address, credentials, options) as channel:
                    stub = ConversationsServiceStub(channel)
                    made = await stub.CreateConversation(create())
                    assert (await stub.GetConversation(get(made.id))).owner
                path = f"{CONVERSATIONS}/{made.id}"
                assert 200 == await _get(served.address, _client(certificate, key), path)


async def test_two_servers_cannot_have_one_address(edge: EdgeService, service: Service) -> None:
    """An address that is taken stops the start, in words for operators."""
    with pytest.raises(StartFailed, match="taken or not allowed"):
        async with edge_service(service.url, http_listen=str(edge.address)):
            pass


@pytest.mark.slow
def test_nothing_is_loaded_without_an_address() -> None:
    """A service without the edge loads neither it nor aiohttp."""
    program = "import sys, server.app.service as _; print('aiohttp' in sys.modules, 'server.http' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False False\n" == ran.stdout
