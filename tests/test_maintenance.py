"""Notices of the machine. Oracle: a metadata server that answers as Google documents it."""

import http.server
import signal
import threading
import time

import pytest

from bsq_jax.training import maintenance

ROOT = "/computeMetadata/v1/instance/"


@pytest.fixture
def server(monkeypatch):
    answers = {"preempted": "FALSE", "maintenance-event": "NONE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Metadata-Flavor"] == "Google" and self.path.startswith(ROOT)
            text = answers.get(self.path.removeprefix(ROOT)) if known else None
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{running.server_port}")
        yield answers
        running.shutdown()
        thread.join()


@pytest.fixture
def asked():
    """Times at which SIGTERM came."""
    times = []
    before = signal.signal(signal.SIGTERM, lambda *_: times.append(time.monotonic()))
    yield times
    signal.signal(signal.SIGTERM, before)


def wait_for(times):
    give_up = time.monotonic() + 10
    while not times and time.monotonic() < give_up:
        time.sleep(0.01)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("key", "value"),
    [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_a_notice_is_a_sigterm(server, asked, capsys, key, value):
    with maintenance.watched(every=0.01):
        time.sleep(0.2)
        assert not asked
        server[key] = value
        wait_for(asked)
        time.sleep(0.2)
    assert len(asked) == 1
    assert capsys.readouterr().err == f"notice of this machine: {key} {value}\n"


def test_migration_without_a_stop_and_a_silent_server_change_nothing(server, asked, monkeypatch):
    server["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    with maintenance.watched(every=0.01):
        time.sleep(0.2)
    monkeypatch.setenv("GCE_METADATA_HOST", "localhost:1")
    with maintenance.watched(every=0.01):
        time.sleep(0.2)
    assert not asked


def test_other_machines_are_not_asked(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    before = threading.active_count()
    with maintenance.watched():
        assert threading.active_count() == before
