"""Run payloads on the grid as their owner: one job, or a panda task of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from pydantic import ValidationError

from airpanda.core.errors import (
    ArchivedError,
    BannedError,
    ConfigurationError,
    ConflictError,
    CredentialError,
    ServiceError,
)
from airpanda.hooks import calls
from airpanda.hooks.context import task_instance_key, tries_before_clear, will_retry
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.hooks.panda import PandaHook
from airpanda.links.job import LINKS
from airpanda.messages import (
    CredentialScope,
    JobSpec,
    JobStatus,
    JobSubmission,
    JobView,
    KillRequest,
    SubmissionReply,
    TaskInstanceKey,
    TaskProgress,
)
from airpanda.operators import checks, outcome, reading, sandboxes, templates
from airpanda.operators.retries import PandaRetryPolicy
from airpanda.operators.staging import Staging
from airpanda.triggers.panda_task import PandaTaskTrigger, describe

MAX_RETURNS = 20
"""How often a task goes back to waiting because the dispatcher does not answer when it resumes."""


class PandaTaskOperator(BaseOperator):
    """Runs a panda task of 1 to 100 000 jobs as their owner and waits for it without holding a worker slot.

    Submission is idempotent under ``<dag_id>/<run_id>/<task_id>/<map_index>``: clearing the task in the UI gives
    new attempts only to what is not finished, unless the jobs themselves have changed since. XCom holds
    ``{"task_id", "first_panda_id", "n_jobs", "finished", "unfinished", "outputs"}``; ``unfinished`` lists PandaIDs and
    ``outputs`` ``{"panda_id", "lfn", "source", "size", "sha256"}``, whose ``source`` can be another job's input. Of
    more than 20 000 outputs none are listed: the jobs are ``first_panda_id`` and those after it.

    Args:
        jobs: one mapping per job with the fields of :class:`~airpanda.messages.JobSpec` (templated).
        template: instead of ``jobs``, one such mapping for all of them. In its texts ``{n}`` is the job's position from
            0, ``{item}`` what ``over`` has there, ``{key}`` a field of it (templated).
        count: how many jobs ``template`` stands for (templated).
        over: a list instead of ``count``: one job for each element (templated).
        scripts: file name → text that every job finds in its sandbox; sent and stored once (templated).
        sandbox: files of the worker (a path, or a list of paths) that every job finds in its sandbox under their names;
            uploaded once, however large a panda task is (templated).
        payload_owner: short name of the payload owner (templated).
        credential: what :class:`~airpanda.operators.proxies.MyProxyStageOperator` returned (templated). Without one,
            and where it cannot serve the jobs any more, this task stages one itself.
        panda_queue: a PanDA queue, a list of them, or ``"*"`` for any that fits (templated).
        success: ``"all"``, a share of the jobs (``"95%"``, ``0.95``), or at least how many of them (``950``).
        rerun: what clearing the task runs again: what is ``"unfinished"``, or ``"all"``.
        poll: time between two questions while waiting; all tasks that wait in one triggerer ask together.
        credential_lifetime: of a credential that this task stages.
    """

    template_fields: Sequence[str] = (
        "jobs", "template", "count", "over", "scripts", "sandbox", "payload_owner", "credential", "panda_queue",
        "success",
    )  # fmt: skip
    operator_extra_links = LINKS
    ui_color = "#cfe4f7"

    def __init__(
        self,
        *,
        payload_owner: str,
        panda_queue: str | Sequence[str],
        jobs: Any = None,
        template: Any = None,
        count: Any = None,
        over: Any = None,
        scripts: Any = None,
        sandbox: Any = None,
        credential: Any = None,
        success: str | float = "all",
        rerun: Literal["unfinished", "all"] = "unfinished",
        poll: timedelta = timedelta(seconds=1),
        credential_lifetime: timedelta = timedelta(days=2),
        panda_conn_id: str = PandaHook.default_conn_name,
        myproxy_conn_id: str = MyProxyHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", PandaRetryPolicy())
        super().__init__(**kwargs)
        if rerun not in ("unfinished", "all"):
            raise ValueError(f'task {self.task_id}: rerun = {rerun!r} must be "unfinished" or "all"')
        self._demand_when_read(payload_owner, panda_queue, success)
        self.jobs = jobs
        self.template = template
        self.count = count
        self.over = over
        self.scripts = scripts or {}
        self.sandbox = sandbox
        self.payload_owner = payload_owner
        self.credential = credential
        self.panda_queue = panda_queue
        self.success = success
        self.rerun = rerun
        self.poll = poll
        self.credential_lifetime = credential_lifetime
        self.panda_conn_id = panda_conn_id
        self.myproxy_conn_id = myproxy_conn_id
        self._panda_task_id: int | None = None
        self._ti: TaskInstanceKey | None = None

    def execute(self, context: Any) -> Any:
        """Submit and defer; what an earlier try has brought to its end is taken as it is.

        Raises:
            AirflowFailException: the request can never succeed as it is; says what to change.
            AirpandaError: the dispatcher refuses; ``PandaRetryPolicy`` knows whether a retry may help.
        """
        ti = task_instance_key(context)
        hook = PandaHook(self.panda_conn_id)
        try:
            specs = self.specs()
            templates.demand_number(len(specs))
            outcome.SuccessRule.parse(self.success).needed(len(specs))
            specs = self._with_sandbox(hook, specs)
            submission = self._submission(ti, specs, tries_before_clear(context))
        except ValidationError as error:
            raise AirflowFailException(self._wrong(checks.first_of(error))) from None
        except (TypeError, ValueError) as error:
            raise AirflowFailException(self._wrong(str(error))) from None
        self._ti = ti
        reply = self._submit(hook, submission)
        self.log.info(
            "panda_task=%d owner=%s queue=%s jobs=%d PandaIDs from %d (%s)",
            reply.task_id,
            self.payload_owner,
            reply.queue or self.panda_queue,
            reply.n_jobs,
            reply.first_panda_id,
            "submitted" if reply.created else f"known, {reply.resumed} tried again",
        )
        self._panda_task_id = reply.task_id
        context["ti"].xcom_push(key="panda_task_id", value=reply.task_id)
        context["ti"].xcom_push(key="panda_job_id", value=reply.first_panda_id)
        if not reply.created and not reply.resumed and hook.send(calls.progress(reply.task_id)).done:
            return self.execute_complete(context, {"panda_task_id": reply.task_id, "done": True, "note": ""})
        self._wait(ti, reply.task_id)
        raise AssertionError("unreachable: defer raises")

    def specs(self) -> Sequence[JobSpec]:
        """The jobs as validated messages. Raises TypeError, ValueError."""
        if (self.jobs is None) == (self.template is None):
            raise ValueError("give either jobs, a list, or template with count or over")
        if self.template is None:
            jobs = checks.list_of("jobs", self.jobs)
            templates.demand_number(len(jobs))
            return [checks.job_spec(f"jobs[{n}]", job) for n, job in enumerate(jobs)]
        if not isinstance(self.template, Mapping):
            raise TypeError(f"template must be a mapping, and {checks.rendered(self.template)}")
        items = templates.items_of(self.count, self.over)
        expanded = templates.expand(self.template, items)
        return [
            checks.job_spec(f"job {n} of template", {**job, "argv": templates.as_texts(job.get("argv"))})
            for n, job in enumerate(expanded)
        ]

    def _with_sandbox(self, hook: PandaHook, specs: Sequence[JobSpec]) -> Sequence[JobSpec]:
        """Raises as ``PandaHook.put_sandbox``; ValueError."""
        checks.demand_names(self.payload_owner, self.panda_queue)
        files = sandboxes.files_of(self.sandbox)
        return sandboxes.with_files(
            specs, files, lambda file: hook.put_sandbox(file, self.payload_owner), scripts=self.scripts or ()
        )

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> Any:
        """Resume: say what became of the jobs, show a payload's log, and return the outputs.

        A dispatcher that is away just now is waited for, without a worker slot.

        Raises:
            PandaJobsFailed: fewer jobs have finished than the rule asks for.
            PandaTaskLost: the dispatcher refused to answer for them.
            ServiceError: it answered the trigger and did not answer here, again and again.
        """
        task_id = int(event["panda_task_id"])
        if not event["done"]:
            raise outcome.PandaTaskLost(f"panda task {task_id} could not be followed: {event['note']}")
        try:
            return self.conclude(context, task_id)
        except ServiceError as error:
            returns = int(event.get("returns", 0)) + 1
            if not error.transient or returns > MAX_RETURNS:
                raise
            self.log.warning("%s. The jobs have ended; waiting until it answers.", str(error).rstrip("."))
            self._wait(task_instance_key(context), task_id, returns)

    def _wait(self, ti: TaskInstanceKey, panda_task_id: int, returns: int = 0) -> None:
        self.defer(
            trigger=PandaTaskTrigger(
                panda_task_id=panda_task_id,
                ti=ti.model_dump(mode="json"),
                poll_s=self.poll.total_seconds(),
                panda_conn_id=self.panda_conn_id,
                returns=returns,
            ),
            method_name="execute_complete",
        )

    def conclude(self, context: Any, task_id: int) -> Any:
        """What became of the jobs, now that all are final. Raises as ``execute_complete``."""
        hook = PandaHook(self.panda_conn_id)
        progress = hook.send(calls.progress(task_id))
        failed = reading.unfinished(hook, progress)
        rule = outcome.SuccessRule.parse(self.success)
        if progress.counts.get(JobStatus.FINISHED, 0) < rule.needed(progress.total):
            self._fail(context, hook, progress, failed, rule)
        if failed:
            said = outcome.paragraph(
                failed,
                counts=progress.counts,
                rule=f"enough, since {rule}",
                next_step="This task succeeds; clear it to run again what did not finish.",
            )
            for sentence in said:
                self.log.warning("%s", sentence)
        jobs = reading.jobs_of(hook, progress)
        reading.show(self.log, jobs, jobs[:1], {job.panda_id: reading.log_of(hook, job) for job in jobs[:1]})
        result = reading.result_of(progress, jobs, failed)
        context["ti"].xcom_push(key="outputs", value=result["outputs"])  # so that task.output["outputs"] names them
        return result

    def on_kill(self) -> None:
        """The running (not deferred) task was killed: cancel what was just submitted, if it is still this try's."""
        if self._panda_task_id is not None:
            request = KillRequest(reason="the submitting Airflow task was killed", ti=self._ti)
            progress = PandaHook(self.panda_conn_id).send(calls.kill(self._panda_task_id, request))
            self.log.info("panda_task=%d after the kill: %s", self._panda_task_id, describe(progress))

    def _demand_when_read(self, owner: Any, queue: Any, success: Any) -> None:
        """Raises:
        ValueError: something that is not templated cannot be; in one line, as Airflow shows errors of a DAG file.
        """
        try:
            checks.demand_names(owner, queue)
            if not checks.is_template(success):
                outcome.SuccessRule.parse(success)
        except ValueError as error:
            raise ValueError(self._wrong(str(error))) from None

    def _wrong(self, what: str) -> str:
        return f"task {self.task_id}: {what}; correct the DAG"

    def _credential_id(self) -> int:
        """0 without one. Raises ValueError: it is no staging task's output."""
        if self.credential is None:
            return 0
        try:
            return int(self.credential["credential_id"])
        except (KeyError, TypeError, ValueError):
            what = checks.rendered(self.credential)
            raise ValueError(f"credential must be the output of a staging task, and {what}") from None

    def _submission(self, ti: TaskInstanceKey, specs: Sequence[JobSpec], cleared: int) -> JobSubmission:
        return JobSubmission(
            task_key=f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}",
            task_name=f"{ti.dag_id}.{ti.task_id}"[:250],
            owner=self.payload_owner,
            credential_id=self._credential_id(),
            queue=self.panda_queue if isinstance(self.panda_queue, str) else list(self.panda_queue),
            ti=ti,
            jobs=list(specs),
            scripts=self.scripts or {},
            generation=cleared,
            inputs_now=True,
            start_over="always" if self.rerun == "all" else "changed",
        )

    def _submit(self, hook: PandaHook, submission: JobSubmission) -> SubmissionReply:
        """With the credential given, or with one that is staged here where that one cannot serve."""
        refusal: CredentialError | None = None
        if submission.credential_id:
            try:
                return self._send(hook, submission)
            except BannedError:
                raise
            except CredentialError as error:
                refusal = error
                self.log.warning("%s. Staging a fresh credential.", str(error).rstrip("."))
        staging = Staging(
            owner=submission.owner,
            lifetime=self.credential_lifetime,
            scope=CredentialScope.TASK,
            queues=submission.queues,
            myproxy=MyProxyHook(self.myproxy_conn_id),
            panda=hook,
        )
        refused = {submission.credential_id}
        while True:
            try:
                credential_id = staging.obtain(submission.ti, refused=refused).credential_id
            except ConfigurationError as error:
                raise CredentialError(
                    f"{refusal or 'no credential is given'}; and none can be staged: {error}"
                ) from error
            try:
                return self._send(hook, submission.model_copy(update={"credential_id": credential_id}))
            except BannedError:
                raise
            except CredentialError:
                # One that an earlier try has left may serve another panda task by now; a fresh one does not.
                if refused != {submission.credential_id}:
                    raise
                refused.add(credential_id)

    def _send(self, hook: PandaHook, submission: JobSubmission) -> SubmissionReply:
        try:
            return hook.send(calls.submit(submission))
        except ArchivedError:
            raise  # they are the same jobs, and its sentence says what to do
        except ConflictError as error:
            raise ConflictError(
                f"the jobs differ from those that an earlier try of this task has submitted ({error}). If that is"
                " meant, clear the task: all of its jobs are then submitted anew"
            ) from error

    def _fail(
        self,
        context: Any,
        hook: PandaHook,
        progress: TaskProgress,
        failed: Sequence[JobView],
        rule: outcome.SuccessRule,
    ) -> None:
        faults = outcome.faults_of(failed)
        failure = outcome.PandaJobsFailed("", faults)
        pause = will_retry(context, self, failure)
        next_step = outcome.remedy(faults) if pause is None else f"Airflow tries again by itself in {_words(pause)}."
        worst = [outcome.most_telling(failed)] if failed else []
        logs = {job.panda_id: reading.log_of(hook, job) for job in worst}
        says = " ".join(filter(None, map(self.payload_says, logs.values())))
        said = outcome.paragraph(failed, counts=progress.counts, rule=str(rule), says=says, next_step=next_step)
        for sentence in said:
            self.log.error("%s", sentence)
        for job in worst:
            context["ti"].xcom_push(key="panda_job_id", value=job.panda_id)
        reading.show(self.log, failed, worst, logs)
        raise outcome.PandaJobsFailed(" ".join(said), faults)

    def payload_says(self, log: str) -> str:
        """A sentence from the log of a failed payload for the first paragraph; empty where nobody can tell."""
        return ""


class PandaJobOperator(PandaTaskOperator):
    """Runs one gLExec-wrapped payload as its owner; the task log shows the payload's log.

    Args:
        argv: the program and its arguments; never a shell line (templated).
        scripts: file name → text put into the sandbox before the start (templated).
        inputs: ``{"lfn", "source"}`` of each input, and what is known of ``size``, ``adler32``, ``sha256`` (templated).
        outputs: names, or ``{"lfn", "access", "destination"}``, of the files the payload leaves (templated).
        env: the payload's environment (templated).
        needs: cores, memory_mib, disk_mib, walltime_s, priority, max_attempt as in
            :class:`~airpanda.messages.JobSpec`, where the defaults do not fit (templated).
    """

    template_fields: Sequence[str] = (
        "argv", "scripts", "sandbox", "inputs", "outputs", "env", "needs", "payload_owner", "credential", "panda_queue",
    )  # fmt: skip

    def __init__(
        self,
        *,
        argv: Any,
        inputs: Any = None,
        outputs: Any = None,
        env: Any = None,
        needs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        try:
            checks.demand_files(inputs, outputs)
        except ValueError as error:
            raise ValueError(self._wrong(str(error))) from None
        self.argv = argv
        self.inputs = inputs or []
        self.outputs = outputs or []
        self.env = env or {}
        self.needs = dict(needs or {})

    def specs(self) -> list[JobSpec]:
        """The one job. Raises TypeError, ValueError."""
        if not self.argv:
            raise ValueError(f"argv {checks.rendered(self.argv)}")
        if self.needs and not isinstance(self.needs, Mapping):
            raise ValueError(f"needs must be a mapping, and {checks.rendered(self.needs)}")
        job = {
            "job_name": self.task_id.replace("/", "-")[:250],
            "argv": templates.as_texts(checks.list_of("argv", self.argv)),
            "inputs": [checks.as_input(item) for item in checks.list_of("inputs", self.inputs)],
            "outputs": [checks.as_output(item) for item in checks.list_of("outputs", self.outputs)],
            "env": self.env or {},
            **(self.needs or {}),
        }
        return [checks.job_spec("the job", job)]


def _words(pause: timedelta) -> str:
    seconds = round(pause.total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} min"
