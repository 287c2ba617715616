"""The server of the page: files, pictures and answers in JSON; every mistake is a line of JSON."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import sys
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from bsq_jax.cli.demo_page.guard import Guard
from bsq_jax.cli.demo_page.json_requests import PATHS, answer
from bsq_jax.cli.demo_page.page_files import page_files
from bsq_jax.cli.demo_page.samples import sample_names, thumbnail
from bsq_jax.cli.demo_page.shelf import Gone
from bsq_jax.cli.demo_page.workbench import MOST_UPLOAD, Workbench
from bsq_jax.core.errors import UserError

_MOST_JSON = 2**16  # bytes of a request that is no file
_PATIENCE = 30.0  # seconds in which a request must go on
_LINGER = 2.0  # seconds for what is still sent of a body that is refused
_PICTURE = re.compile(r"/pictures/([\w-]{1,64})/(\d{1,6})\.png")
_SAMPLE = re.compile(r"/samples/([^/]{1,200})")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      UserError: there is no such address here, or another program listens there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=64)
    except (socket.gaierror, UnicodeError):
        reason = "there is no such address"
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
    raise UserError(
        f"cannot serve at {host}, port {port} ({reason}): give another --port or --host"
    )


class DemoServer(http.server.ThreadingHTTPServer):
    """Serves the page.

    Attributes:
      guard: which requests are answered.
      workbench: computes what they ask for.
      url: of the page.
    """

    daemon_threads = True

    def __init__(self, listening: socket.socket, host: str, workbench: Workbench):
        """Takes a socket that listens, the host that it listens at, and what computes."""
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.guard, self.workbench = Guard(host), workbench
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says in a line what went wrong with a connection; that it was closed is no matter."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"a request failed: {_line(error)}", file=sys.stderr)


class _Refused(Exception):  # noqa: N818  # named for what it is
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: DemoServer
    server_version, sys_version = "bsq-jax", ""
    timeout = _PATIENCE
    _unread = 0  # bytes of the body that were not read

    def do_GET(self) -> None:  # the name that http.server calls
        """A file of the page, a picture, or what the model is."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """A file that is uploaded, or something to compute."""
        self._answered(self._post)

    def _get(self) -> tuple[str, bytes]:
        self._guarded(computes=False)
        path = urlsplit(self.path).path
        if file := page_files().get(path):
            return file.kind, file.content
        if path == "/about":
            return _json(self.server.workbench.about())
        if found := _PICTURE.fullmatch(path):
            return "image/png", self.server.workbench.shelf.png(found[1], int(found[2]))
        if (found := _SAMPLE.fullmatch(path)) and (name := unquote(found[1])) in sample_names():
            return "image/jpeg", thumbnail(name)
        raise _Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {_line(path)}")

    def _post(self) -> tuple[str, bytes]:
        self._unread = self._length()
        self._guarded(computes=True)
        parts = urlsplit(self.path)
        if parts.path == "/open":
            name = parse_qs(parts.query).get("name", ["the file"])[0]
            return _json(self.server.workbench.open(name, self._body(MOST_UPLOAD)))
        if parts.path not in PATHS:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {_line(parts.path)}")
        return _json(answer(self.server.workbench, parts.path, self._body(_MOST_JSON)))

    def _guarded(self, *, computes: bool) -> None:
        if refusal := self.server.guard.refusal(self.headers, computes=computes):
            raise _Refused(HTTPStatus.FORBIDDEN, refusal)

    def _length(self) -> int:
        given = self.headers.get("Content-Length", "")
        if not (given.isascii() and given.isdigit() and len(given) < 16):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the request does not say its length")
        return int(given)

    def _body(self, most: int) -> bytes:
        length = self._unread
        if length > most:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{length:,d} bytes are too many: give a file of {most:,d} at most",
            )
        content = self.rfile.read(length)
        self._unread = 0
        if len(content) != length:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the request ended early")
        return content

    def _answered(self, make: Any) -> None:
        try:
            kind, content = make()
        except _Refused as error:
            self._send_error(error.status, str(error))
        except Gone as error:
            self._send_error(HTTPStatus.NOT_FOUND, str(error))
        except UserError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # of the model or a decoder: this picture failed, not the server
            print(f"{self.path.partition('?')[0]} failed: {_line(error)}", file=sys.stderr)
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"this failed: {_line(error)}")
        else:
            with contextlib.suppress(OSError):  # whoever asked has gone
                self._send(HTTPStatus.OK, kind, content)

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **_HEADERS}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        with contextlib.suppress(OSError):
            self._send(status, *_json({"error": _line(message)}))
            self._read_rest()

    def _read_rest(self) -> None:
        """Takes in a body that was refused, or its sender may not see the answer."""
        self.connection.settimeout(_LINGER)
        left, self._unread = min(self._unread, 4 * MOST_UPLOAD), 0
        while left > 0 and (piece := self.rfile.read1(min(left, 2**16))):
            left -= len(piece)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself, as JSON like all else."""
        status = HTTPStatus(code)
        self._send_error(status, message or status.phrase)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: requests are not logged."""


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, allow_nan=False).encode()


def _line(error: object) -> str:
    """One line without control characters."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else " " for c in text.strip().partition("\n")[0])[:500]
