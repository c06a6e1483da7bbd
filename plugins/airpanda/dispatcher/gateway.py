"""The dispatcher by itself, for pilots: ``python -m airpanda.dispatcher.gateway``; any number of them may run.

It reads Airflow's configuration (``[airpanda]``, the database, the Fernet keys) and nothing else of Airflow. SIGTERM
and SIGINT let running requests end, then stop.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from airpanda.core.errors import ConfigurationError
from airpanda.dispatcher import access_log, configured
from airpanda.dispatcher.mtls import protocol_for, server_context
from airpanda.x509.trust import TrustDirectory

DRAIN_S = 30
KEEP_ALIVE_S = 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status is 2 when the set-up is wrong."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        found = configured.read_by_child()
        from airpanda.dispatcher.app import configured_app  # not for --help and wrong options

        serve(configured_app(found, pilots=True), options)
    except ConfigurationError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    return 0


def serve(app: FastAPI, options: argparse.Namespace) -> None:
    """Serve the app over TLS as the options say.

    Raises:
        ConfigurationError: certificate, key, CA directory or address cannot be used.
    """
    trust = TrustDirectory(options.ca_dir)
    trust.current()
    try:
        context = server_context(options.cert, options.key, options.ca_dir)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"--cert, --key or --ca-dir cannot be used: {error}") from error
    listener = _listen(options.host, options.port)
    if options.access_log:
        access_log.switch_on()
    config = uvicorn.Config(
        app,
        http=protocol_for(trust),
        ws="none",
        ssl_context_factory=lambda _config, _default: context,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        proxy_headers=False,  # nobody stands before a gateway whose word would count
        log_config=None,
        access_log=options.access_log,
        lifespan="on",
    )
    _Server(config, app, options).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells its port when it is ready to answer, and that it is not ready any more before it stops answering."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, options: argparse.Namespace) -> None:
        super().__init__(config)
        self._app = app
        self._port_file: Path | None = options.port_file
        self._drain_wait_s: float = options.drain_wait

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At the first signal only /v1/ready changes, for as long as a load balancer needs to see it."""
        first = not getattr(self._app.state, "draining", False)
        self._app.state.draining = True
        if first and self._drain_wait_s > 0:
            threading.Timer(self._drain_wait_s, super().handle_exit, (sig, frame)).start()
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what lives as long as the process is not looked through again and again
        if self.started and self._port_file is not None and sockets:
            fresh = self._port_file.with_name(f"{self._port_file.name}.{os.getpid()}")
            fresh.write_text(f"{sockets[0].getsockname()[1]}\n")
            fresh.replace(self._port_file)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512
        )
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda.dispatcher.gateway", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=25443, help="0 for a free one (default: %(default)s)")
    parser.add_argument("--cert", type=Path, required=True, help="host certificate, PEM")
    parser.add_argument("--key", type=Path, required=True, help="its key, PEM, unencrypted")
    parser.add_argument("--ca-dir", type=Path, required=True, help="CAs that pilots' proxies must chain to")
    parser.add_argument("--port-file", type=Path, help="written with the port when ready")
    parser.add_argument(
        "--drain-wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="after a signal, say at /v1/ready that this one ends, and serve on for so long (default: %(default)s)",
    )
    parser.add_argument("--access-log", action="store_true", help="log each request (never its query, headers or body)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
