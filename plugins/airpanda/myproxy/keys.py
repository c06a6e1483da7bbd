"""RSA keys made ahead of need: making one takes longer than the rest of a retrieval."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Callable

from airpanda.x509.certificates import PrivateKey
from airpanda.x509.proxy import make_request, new_key


class KeyPool:
    """Fresh private keys, each handed out once.

    A daemon thread refills the pool from ``fill`` or the first ``take`` on. After a fork the child forgets the parent's
    keys, so that no key is ever in two processes' hands.
    """

    def __init__(self, size: int = 8, make: Callable[[], PrivateKey] = new_key) -> None:
        self._size = size
        self._make = make
        self._reset()

    def fill(self) -> None:
        """Begin to make keys now, for takes that are about to come."""
        if self._pid != os.getpid():
            self._reset()
        with self._wanted:
            self._start()

    def take(self) -> tuple[PrivateKey, bytes]:
        """A key nobody has had, and the certificate request it has signed; made on the spot when the pool is empty."""
        if self._pid != os.getpid():
            self._reset()
        with self._wanted:
            ready = self._keys.popleft() if self._keys else None
            self._start()
            self._wanted.notify()
        return self._prepare() if ready is None else ready

    def _prepare(self) -> tuple[PrivateKey, bytes]:
        key = self._make()
        return key, make_request(key)

    def close(self) -> None:
        """Stop refilling and forget the keys; a later ``take`` makes its own key."""
        with self._wanted:
            self._closed = True
            self._keys.clear()
            self._wanted.notify()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._keys: deque[tuple[PrivateKey, bytes]] = deque()
        self._wanted = threading.Condition()
        self._running = False
        self._closed = False

    def _start(self) -> None:
        if not self._running and not self._closed:
            self._running = True
            threading.Thread(target=self._refill, name="proxy-keys", daemon=True).start()

    def _refill(self) -> None:
        wanted, keys = self._wanted, self._keys
        while True:
            with wanted:
                wanted.wait_for(lambda: self._closed or len(keys) < self._size)
                if self._closed:
                    return
            ready = self._prepare()
            with wanted:
                if not self._closed:
                    keys.append(ready)
