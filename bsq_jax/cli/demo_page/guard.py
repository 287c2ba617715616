"""Which requests are answered: those of the page itself, not those of other sites in the browser.

A site that a person visits can send requests to servers on the person's machine. Two things keep it
out. A request that computes something must have a header that a page of another site cannot add
without asking the server first (CORS), which is never granted. And the name in ``Host`` must be one
of this server: a site whose own name is made to point at this machine (DNS rebinding) has another.
"""

from __future__ import annotations

import ipaddress
import socket
from email.message import Message
from urllib.parse import urlsplit

HEADER = "X-Bsq-Jax-Demo"
"""What requests that compute something must have, with any value."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """What a server that listens at one address answers.

    Attributes:
      loopback: whether only this machine can reach it.
    """

    def __init__(self, host: str):
        """Takes the address or name that ``--host`` gives."""
        address = _address(host)
        self.loopback = host == "localhost" or (address is not None and address.is_loopback)
        self._anywhere = address is not None and address.is_unspecified
        self._names = {host.lower()}
        if self.loopback:
            self._names |= _LOOPBACK_NAMES
        if self._anywhere:
            self._names |= _LOOPBACK_NAMES | {socket.gethostname().lower()}

    def refusal(self, headers: Message, *, computes: bool) -> str:
        """Why a request is not answered; empty where it is.

        The port in ``Host`` does not count, so that a port forwarded by ssh works: a site cannot
        choose the name, which does.

        Args:
          headers: of the request.
          computes: whether it does more than fetch a file.
        """
        name = _name(f"//{headers.get('Host', '')}")
        if not self._serves(name):
            return f"this server is not called {name or 'that'}: open the URL that it printed"
        if not computes:
            return ""
        if HEADER not in headers:
            return f"requests need the header {HEADER}: use the page"
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("Host"):
            return "the request comes from another site"
        return ""

    def _serves(self, name: str) -> bool:
        # Listening everywhere, the machine has many addresses. None of them is a name.
        return name in self._names or (self._anywhere and _address(name) is not None)


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
