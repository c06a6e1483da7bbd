"""When Airflow tries a task of ours again by itself: not where only a person can act, and not at once at a bad site."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from airpanda.core.errors import AirpandaError, QueueOfflineError, ServiceError
from airpanda.operators.outcome import PandaJobsFailed, PandaTaskLost


class PandaRetryPolicy(RetryPolicy):
    """Maps PanDA's errors to retry, wait or fail; every operator of ours has it unless it is given another.

    The task's ``retries`` bound how often it is tried again; this says whether that can help.

    Args:
        site_wait: pause before another try where a site is at fault, or has put its queue offline.
        system_wait: pause where the system is at fault, or a service does not answer.
    """

    def __init__(
        self, *, site_wait: timedelta = timedelta(minutes=10), system_wait: timedelta = timedelta(minutes=1)
    ) -> None:
        self.site_wait = site_wait
        self.system_wait = system_wait

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """The decision on a failed try. Anything that is not ours is left to Airflow's rules."""
        if isinstance(exception, PandaJobsFailed):
            return self._after(exception)
        if isinstance(exception, ServiceError) and exception.transient:
            wait = self.system_wait
            if exception.retry_after_s is not None:
                wait = max(wait, timedelta(seconds=exception.retry_after_s))
            return RetryDecision.retry(wait, "a service did not answer")
        if isinstance(exception, QueueOfflineError):
            return RetryDecision.retry(self.site_wait, "the queue is offline")
        if isinstance(exception, (AirpandaError, PandaTaskLost)):
            return RetryDecision.fail("only a person can put this right")
        return RetryDecision.default()

    def _after(self, failed: PandaJobsFailed) -> RetryDecision:
        """One job that another try may help is enough."""
        if failed.faults.get("site"):
            return RetryDecision.retry(self.site_wait, "a site is at fault")
        if failed.faults.get("system"):
            return RetryDecision.retry(self.system_wait, "the system is at fault, not the payload")
        if failed.faults.get("credential"):
            return RetryDecision.retry(timedelta(seconds=1), "a fresh credential is needed")
        return RetryDecision.fail("the payload failed by itself, or was stopped by a person")

    def serialize(self) -> dict[str, Any]:
        """As JSON."""
        return {"site_wait_s": self.site_wait.total_seconds(), "system_wait_s": self.system_wait.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> PandaRetryPolicy:
        """From ``serialize``."""
        waits = {name: timedelta(seconds=data[f"{name}_s"]) for name in ("site_wait", "system_wait")}
        return cls(**waits)
