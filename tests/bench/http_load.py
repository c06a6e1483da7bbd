"""A load generator in a process of its own: ``python http_load.py`` reads one JSON document from standard input.

It speaks HTTP/1.1 over connections that stay open, without a library, so that it takes little of the cores it shares.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from typing import Any


class Connection:
    """One caller, which sends one request after the other."""

    def __init__(self, wanted: dict[str, Any], token: str) -> None:
        self._wanted = wanted
        self._head = f"Host: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        self._reader: Any = None
        self._writer: Any = None

    async def open(self) -> None:
        context = None
        if self._wanted["ca_dir"]:
            context = ssl.create_default_context(capath=self._wanted["ca_dir"])
            context.load_cert_chain(*self._wanted["certificate"])
        port = self._wanted["ports"].pop(0)
        self._wanted["ports"].append(port)
        self._reader, self._writer = await asyncio.open_connection("localhost", port, ssl=context)

    async def post(self, path: str, body: Any) -> Any:
        content = json.dumps(body)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(content)}\r\n\r\n{content}".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        answer = json.loads(await self._reader.readexactly(length))
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{path}: {head[:40]!r} {answer}")
        return answer

    async def run(self, until: float, times: list[float]) -> None:
        await getattr(self, f"_{self._wanted['what']}")(until, times)

    async def _claims(self, until: float, times: list[float]) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            answer = await self.post(self._wanted["acquire"], self._wanted["offer"])
            if not answer["jobs"]:
                raise SystemExit("no jobs left")
            times.append(time.perf_counter() - started)

    async def _heartbeats(self, until: float, times: list[float]) -> None:
        report = await self._started()
        while time.perf_counter() < until:
            started = time.perf_counter()
            await self.post(self._wanted["update"], report)
            times.append(time.perf_counter() - started)

    async def _lifecycles(self, until: float, times: list[float]) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            report = await self._started()
            for status in ("running", "finished"):
                await self.post(self._wanted["update"], report | {"job_status": status})
            times.append(time.perf_counter() - started)

    async def _started(self) -> dict[str, Any]:
        (job,) = (await self.post(self._wanted["acquire"], self._wanted["offer"]))["jobs"]
        report = {"job_id": job["panda_id"], "attempt_nr": job["attempt_nr"], "token": job["token"]}
        report["job_status"] = "running"
        # As a pilot says it first; without more it would be a heartbeat.
        seen = {"account_name": "alice", "account_uid": 1000, "identity_switched": True}
        await self.post(self._wanted["update"], report | seen)
        return report


async def main() -> None:
    wanted = json.load(sys.stdin)
    connections = [Connection(wanted, token) for token in wanted["tokens"]]
    for connection in connections:
        await connection.open()
    times: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(each.run(started + wanted["seconds"], times) for each in connections))
    elapsed = time.perf_counter() - started
    found = {"rate": len(times) / elapsed, "p99_ms": sorted(times)[int(0.99 * len(times))] * 1000}
    print(json.dumps(found | {"cpu_us": (time.process_time() - cpu) / len(times) * 1e6}))


if __name__ == "__main__":
    asyncio.run(main())
