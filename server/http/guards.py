"""Guards: what keeps web pages out, which can reach loopback as nobody could reach gRPC's port.

A page's script may send a form without asking, and a name that its owner resolves to 127.0.0.1 makes this service the
page's own origin. So a request of a page, which has `Origin`, is refused; a body has to be `application/json`, which
no form is (`server.http.body`); and without identity the name in `Host` has to be one of ours.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from aiohttp import web

from server.http.problems import MISDIRECTED, NOT_HTTP, ORIGIN_REFUSED, Problem


class Guards:
    """Looks at the headers that browsers cannot leave out.

    Args:
        hosts: Names that are served beside `localhost` and IP addresses; None if any name is.
    """

    def __init__(self, hosts: Iterable[str] | None) -> None:
        self._hosts = None if hosts is None else frozenset(("localhost", *hosts))

    def refusal(self, request: web.BaseRequest, *, is_unix: bool) -> Problem | None:
        """Returns the answer to a request that is refused; None for one that may go on."""
        if "Origin" in request.headers:
            return ORIGIN_REFUSED
        names = request.headers.getall("Host", ())
        if len(names) > 1:
            return NOT_HTTP
        if self._hosts is None or is_unix or (names and self._is_ours(names[0])):
            return None
        return MISDIRECTED

    def _is_ours(self, host: str) -> bool:
        assert self._hosts is not None
        name = _without_port(host).lower()
        return name in self._hosts or _is_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.rpartition("]")[0].removeprefix("[")
    return host.partition(":")[0]


@lru_cache(maxsize=256)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
