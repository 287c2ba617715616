"""Heartbeats of several processes. Oracle: a stand-in for the key-value store that they share."""

import json
import time
import types

import jax
import pytest

from bsq_jax.core import failures


class Store:
    """Stands for the client of JAX's coordination service."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_try_get(self, key):
        return self.values[key]

    def key_value_dir_get(self, folder):
        return [(k, v) for k, v in list(self.values.items()) if k.startswith(f"{folder}/")]

    def beats(self, index):
        """The heartbeats of a process, by key."""
        return {k: int(v) for k, v in list(self.values.items()) if k.endswith(f"/{index}")}


@pytest.fixture
def store(monkeypatch):
    """This process is the first of two, whose heartbeats are quick; it outlives a failure."""
    store = Store()
    monkeypatch.setattr(failures, "coordination_client", lambda: store)
    monkeypatch.setattr(failures, "_POLL", 0.005)
    monkeypatch.setattr(failures, "_HEARTBEAT", 0.01)
    monkeypatch.setattr(failures, "_LOST", 0.1)
    monkeypatch.setattr(failures, "_failing", types.SimpleNamespace(acquire=lambda **_: False))
    monkeypatch.setattr(failures, "end", ended)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    return store


def ended(status, message, **_):
    raise AssertionError(message)


def wait_for(condition):
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def newest_key(store, known):
    """The key of this process's heartbeats in a call that has just begun."""
    wait_for(lambda: any(beats > known.get(key, 0) for key, beats in store.beats(0).items()))
    return next(key for key, beats in store.beats(0).items() if beats > known.get(key, 0))


def test_a_process_that_is_not_yet_in_the_next_call_is_not_lost(store):
    with failures.shared():
        key = newest_key(store, {})
        store.values[f"{key[:-1]}1"] = "7"
    with failures.shared():  # in which the other process is not yet
        known = store.beats(0)
        key = newest_key(store, known)
        begun = time.monotonic()
        wait_for(lambda: store.beats(0)[key] > 5 and time.monotonic() - begun > 0.5)
        assert failures._KEY not in store.values
        store.values[f"{key[:-1]}1"] = "1"  # it enters, and is killed
        wait_for(lambda: failures._KEY in store.values)
    process, _, message = json.loads(store.values[failures._KEY])
    assert process == 1
    assert message.startswith("not heard of for ")
