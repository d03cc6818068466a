"""Claims in an object store, which has no locks: who has claimed something renews it, and what stays silent is free.

A claim is an object ``.locks/NAME.0``. It belongs to who could create it. Whoever sees that it has not been renewed for
`LEASE` seconds, by their own clock, creates ``NAME.1``, and so on: only one of many can. In a store without conditional
writes two may believe that they have it; they make the same bytes, and the second to finish says so.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from builders.runs import layout
from builders.stores.copies import store_of
from builders.stores.store import Store

LEASE, RENEW = 120.0, 20.0
"""Seconds without a renewal after which a claim is free, and between two renewals. A process that was killed is noticed
at once on its own machine.
"""
PAUSE = 5.0  # seconds between two looks at what others hold


_leases: dict[str, "Leases"] = {}


def of(folder: Path) -> "Leases | None":
    """This process's claims in the store of a run folder; None for a run on the disk."""
    store = store_of(folder)
    return None if store is None else _leases.setdefault(store.address, Leases(store))


class Lease:
    """A claim that this process has."""

    def __init__(self, leases: "Leases", key: str) -> None:
        self._leases, self.key = leases, key

    def release(self) -> None:
        """Let others have it."""
        self._leases.end(self)


class Leases:
    """The claims of this process in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Lease] = {}
        self._beats = 0
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, name: str, *, alone: bool) -> Lease | None:
        """Claim something; None if another process has it. `alone` says that no other process that shares this copy
        can have it.
        """
        number = 0
        while True:
            key = self._key(name, number)
            if self._store.create(key, self._record()):
                return self._begin(key)
            data = self._store.read(key)
            if data is None:  # it was cleared away meanwhile: look again later
                return None
            told = _parsed(data)
            gone = alone and told.get("copy") == self._store.machine
            if not (gone or told.get("free") or self._is_silent(key, data)):
                # A later one may have taken its place.
                if self._store.read(self._key(name, number + 1)) is None:
                    return None
            number += 1

    def holder(self, name: str) -> str:
        """Who has claimed something, as far as this process has seen: ``process 17 on HOST``; empty if it has not."""
        keys = [key for key in self._seen if key.rpartition(".")[0] == self._key(name, 0).rpartition(".")[0]]
        return str(_parsed(self._seen[keys[-1]][0]).get("who", "")) if keys else ""

    def end(self, lease: Lease) -> None:
        """Mark a claim as free."""
        with self._mutex:
            if self._held.pop(lease.key, None) is not None:
                with suppress(Exception):  # whoever wants it waits for the end of the lease
                    self._store.write(lease.key, self._record(free=True))

    def _key(self, name: str, number: int) -> str:
        return f"{layout.LOCKS}/{name}.{number}"

    def _record(self, **more: bool) -> bytes:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        fields = {"who": who, "token": self._store.token, "copy": self._store.machine, "beat": self._beats, **more}
        return json.dumps(fields).encode()

    def _is_silent(self, key: str, data: bytes) -> bool:
        """Whether a claim has been the same for as long as a lease lasts, as far as this process has seen."""
        now = time.monotonic()
        known, since = self._seen.get(key, (b"", now))
        self._seen[key] = (data, since if known == data else now)
        return known == data and now - since > LEASE

    def _begin(self, key: str) -> Lease:
        with self._mutex:
            lease = self._held[key] = Lease(self, key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._thread.start()
        return lease

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW)
            self._beats += 1
            for key in list(self._held):
                with self._mutex, suppress(Exception):  # the next one may arrive
                    if key in self._held:
                        self._store.write(key, self._record())


def _parsed(data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
