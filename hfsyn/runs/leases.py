"""Claims in an object store, which has no locks: a process renews what it has claimed, and what is not renewed is free.

A claim is an object ``.locks/NAME.0``, and belongs to the process that created it. Another that sees no renewal for
`LEASE` seconds, by its own clock, creates ``NAME.1``, and so on: only one of many can. In a store without conditional
writes two may believe that they have it; they make the same bytes, and the second to finish notes it.
"""

import atexit
import json
import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from builders.runs import layout
from builders.stores.copies import store_of
from builders.stores.store import Store

LEASE, RENEW = 120.0, 20.0
"""Seconds without a renewal after which a claim is free, and between two renewals. That a process was killed is noticed
at once on its own machine.
"""
PAUSE = 5.0  # seconds between two looks at what others hold
AGAIN = ".again"  # a folder with an object for each shard that was made although another job had made it
_leases: dict[str, "Leases"] = {}  # by the copy of a run


def leases_of(folder: Path) -> "Leases | None":
    """This process's claims in the store of a run folder; None for a run on the disk."""
    store = store_of(folder)
    return None if store is None else _leases.setdefault(str(store.copy), Leases(store))


def note_again(shard: Path) -> None:
    """Note that a shard was made here although another job had made it meanwhile."""
    if (store := store_of(shard)) is not None:
        store.write(f"{AGAIN}/{shard.parent.name}-{shard.stem}-{store.token[:8]}", b"1")


def made_again(folder: Path) -> int:
    """How many shards were made although another job had made them meanwhile."""
    store = store_of(folder)
    return 0 if store is None else len(store.listed(AGAIN))


def clear_claims(folder: Path) -> None:
    """Delete the claims of a run that is finished; it has one for each shard of each stage, and needs none."""
    if (store := store_of(folder)) is not None:
        store.delete_all(list(store.listed(layout.LOCKS)))


class Lease:
    """A claim of this process: renewed until it is released, or nothing holds this object any more."""

    def __init__(self, leases: "Leases", key: str) -> None:
        self._leases, self.key = leases, key

    def release(self) -> None:
        """Let others have it at once."""
        self._leases.end(self)


class Leases:
    """The claims of this process in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: weakref.WeakValueDictionary[str, Lease] = weakref.WeakValueDictionary()
        self._owned: set[str] = set()
        atexit.register(self._end_all)
        self._beats = 0
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, name: str, *, alone: bool) -> Lease | None:
        """Claim something; None if another process has it. `alone` says that no other process with this copy can."""
        number = 0
        while not self._store.create(key := f"{layout.LOCKS}/{name}.{number}", self._record()):
            data = self._store.read(key) or b"{}"
            told = _parsed(data)
            gone = told.get("free") or (alone and told.get("copy") == self._store.machine)
            # A later claim may have taken the place of one that is not renewed.
            later = f"{layout.LOCKS}/{name}.{number + 1}"
            if not gone and not self._is_silent(key, data) and self._store.read(later) is None:
                return None
            number += 1
        with self._mutex:
            lease = self._held[key] = Lease(self, key)
            self._owned.add(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._thread.start()
        return lease

    def holder(self, name: str) -> str:
        """Who has claimed something, as far as this process has seen: ``process 17 on HOST``; empty if it has not."""
        seen = [data for key, (data, _) in self._seen.items() if key.startswith(f"{layout.LOCKS}/{name}.")]
        return str(_parsed(seen[-1]).get("who", "")) if seen else ""

    def end(self, lease: Lease) -> None:
        """Mark a claim as free."""
        with self._mutex, suppress(Exception):  # if it fails, others wait until the lease has run out
            if self._held.pop(lease.key, None) is not None:
                self._store.write(lease.key, self._record(free=True))
                self._owned.discard(lease.key)

    def _end_all(self) -> None:
        """Mark what an error has left claimed as free when the process ends, so that others need not wait."""
        for key in self._owned:
            with suppress(Exception):
                self._store.write(key, self._record(free=True), once=True)

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

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW)
            self._beats += 1
            for key in list(self._held):
                with self._mutex, suppress(Exception):  # the next one may arrive
                    if key in self._held:
                        self._store.write(key, self._record())


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
