"""An address is parsed once; its parts are never cut out of text again."""

from pathlib import Path

import pytest

from server.settings.addresses import Address


@pytest.mark.parametrize(
    "text, address",
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051)),
        ("[::1]:0", Address("::1", 0)),
        ("localhost:65535", Address("localhost", 65535)),
        ("*:1", Address("*", 1)),
        ("unix:/run/conversations.sock", Address(path=Path("/run/conversations.sock"))),
        ("unix:relative", Address(path=Path("relative"))),
    ],
)
def test_an_address_is_its_text(text: str, address: Address) -> None:
    """An address prints as it was written, so that logs and errors name what the operator knows."""
    assert (address, text) == (Address.parse(text), str(address))


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "host:\u0661", "::1", "::1:50051", "[]:1", "unix:"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The error is about the form; the text, which may be a secret in the wrong place, is not in it."""
    with pytest.raises(ValueError, match=r"^must be host:port, \[ipv6\]:port or unix:/path$"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text, worker, expected",
    [
        ("127.0.0.1:9464", 0, "127.0.0.1:9464"),
        ("127.0.0.1:9464", 3, "127.0.0.1:9467"),
        ("[::1]:50052", 1, "[::1]:50053"),
        ("127.0.0.1:0", 3, "127.0.0.1:0"),
    ],
)
def test_each_worker_has_a_port_of_its_own(text: str, worker: int, expected: str) -> None:
    """Worker n has the n-th port after the first; any free port stays any free port."""
    assert expected == str(Address.parse(text).for_worker(worker))


@pytest.mark.parametrize("port, workers, enough", [(65532, 4, True), (65533, 4, False), (0, 64, True)])
def test_ports_end_at_65535(port: int, workers: int, *, enough: bool) -> None:
    """An address has room for a number of workers only if the last one's port exists."""
    assert enough == Address("127.0.0.1", port).has_ports_for(workers)


@pytest.mark.parametrize("text", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/run/socket"])
def test_a_local_address(text: str) -> None:
    """Loopback and Unix sockets are reached from this machine only."""
    assert Address.parse(text).is_local


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example.org:1", "*:1"])
def test_a_public_address(text: str) -> None:
    """Every other address may be reached by others."""
    assert not Address.parse(text).is_local


@pytest.mark.parametrize(
    "text, wildcard",
    [("0.0.0.0:1", True), ("[::]:1", True), ("127.0.0.1:1", False), ("host:1", False), ("unix:s", False)],
)
def test_a_wildcard_address(text: str, *, wildcard: bool) -> None:
    """Only the unspecified address stands for every interface; no client can dial it."""
    assert wildcard == Address.parse(text).is_wildcard
