"""Ports of the loopback interface."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A free port that nobody else is given meanwhile, however late its server starts or starts again.

    For servers that set SO_REUSEADDR, which may listen at a port that is bound here and not listened at. Source: the
    kernel's ``inet_csk_find_open_port`` chooses no port that anybody has bound.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
