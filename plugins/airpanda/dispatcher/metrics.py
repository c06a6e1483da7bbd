"""What a dispatcher counts of itself, for Prometheus. One registry for each application."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
_NO_ROUTE, _OTHER = "(none)", "(other)"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Metrics:
    """Requests by route, jobs given out and taken back. Labels never hold what a caller sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "airpanda_requests", "Requests answered", ("method", "route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "airpanda_request_seconds", "Time to the end of the answer", ("route",),
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.running = Gauge("airpanda_requests_running", "Requests in the making", registry=self._registry)
        self.jobs_given = Counter("airpanda_jobs_given", "Jobs given to pilots", ("queue",), registry=self._registry)
        self.jobs_lost = Counter(
            "airpanda_jobs_lost", "Jobs taken from silent pilots by this process", registry=self._registry
        )
        self.jobs_suspected = Gauge(
            "airpanda_jobs_suspected",
            "Jobs in the whole store whose pilot has been silent for long, as of this process's last look",
            registry=self._registry,
        )
        self.unavailable = Counter(
            "airpanda_unavailable",
            "Answers of 503: the database or the file store does not serve, or this process is about to end",
            registry=self._registry,
        )

        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; finds its series faster than the library does."""
        key = (method, route, status)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = (self.requests.labels(*key), self.seconds.labels(route))
        series[0].inc()
        series[1].observe(seconds)

    def text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self._registry)


class Measured:
    """Wraps the app: counts and times every request, those that limits refuse too."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)  # the template, never what stands in its place
            self._metrics.running.dec()
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            self._metrics.answered(method, route, status, time.perf_counter() - started)
            if status == 503:
                self._metrics.unavailable.inc()
