"""The dispatcher's answers as pages for people: text and tables, no script, nothing from elsewhere.

Pure: from the JSON of an answer to HTML. Everything in it is hostile: names, reasons and DNs come from jobs and nodes.
So HTML is made by ``Markup.format`` alone, which escapes each value that is no Markup, and ``POLICY`` lets a browser
run and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from airpanda.messages import PAYLOAD_LOG, PILOT_LOG

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#18212f}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{border-bottom:1px solid #ccd3dd;padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top}"
    "h1{font-size:1.4rem}h2{font-size:1.1rem}.failed,.cancelled,.closed{color:#b3130c}.finished{color:#0b6b2b}.suspected{color:#8a5200}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"sandbox allow-downloads; default-src 'none'; style-src 'sha256-{_HASH}'"
"""Content-Security-Policy of a page: its own style, and downloads of files that it links to."""

_A = Markup('<a href="{}">{}</a>')


def page_of(path: str, data: Any, *, offset: int = 0) -> str | None:
    """The page for an answer to GET ``path`` (``/v1/task/7``, ``/v1/task/7/jobs``, ``/v1/job/4``); None: it has none.

    Args:
        data: the answer as JSON.
        offset: of the first job in a list.
    """
    for pattern, make in _PAGES:
        if re.fullmatch(pattern, path):
            return str(make(data, offset))
    return None


def _task(task: Mapping[str, Any], _offset: int) -> Markup:
    counts = ", ".join(f"{status} {n}" for status, n in task["counts"].items() if n)
    silent = task["suspected"]
    said = {
        "Jobs": Markup("{}: {}").format(_A.format(f"{task['task_id']}/jobs", f"all {task['n_jobs']}"), counts),
        "Suspected": f"{silent}: their pilots have said nothing for long, and may lose them" if silent else "",
        "State": "all jobs are final" if task["done"] else "waits for its jobs",
        "Owner": f"{task['owner']}, {task['owner_dn']}",
        "PanDA queue": task["queue"],
        "Submitted": f"{_moment(task['created_at'])} UTC by {task['submitted_by']}",
        "Airflow": _airflow(task["ti"], up=3),
    }
    return _page(f"Panda task {task['task_id']}: {task['task_name']}", _facts(said))


def _jobs(jobs: Sequence[Mapping[str, Any]], offset: int) -> Markup:
    if not jobs:
        return _page("Jobs", Markup("<p>No more jobs.</p>"))
    heads = ("PandaID", "Job", "Status", "Attempt", "PanDA queue", "Node", "Account", "Logs", "Why")
    rows = [
        (
            _A.format(f"../../job/{job['panda_id']}", job["panda_id"]), job["job_name"],
            _status(job["status"], job["silent_s"]), job["attempt_nr"], job["queue"], _last(job).get("node"),
            _account(_last(job)), _logs(job, "../../job/"), job["reason"],
        )
        for job in jobs
    ]  # fmt: skip
    title = f"Jobs of panda task {jobs[0]['task_id']}, from number {offset + 1}"
    more = Markup("<p>{}</p>").format(_A.format(f"?offset={offset + len(jobs)}&limit={_PAGE}", "more"))
    rest = more if len(jobs) >= _PAGE else Markup("")
    return _page(title, _facts({"Airflow": _airflow(jobs[0]["ti"], up=4)}), _table(heads, rows), rest)


def _job(job: Mapping[str, Any], _offset: int) -> Markup:
    said = {
        "Status": _status(job["status"], job["silent_s"]),
        "Why": job["reason"],
        "Owner": f"{job['owner']}, {job['owner_dn']}",
        "PanDA queue": job["queue"],
        "Panda task": _A.format(f"../task/{job['task_id']}", job["task_id"]),
        "Logs": _logs(job, ""),
        "Airflow": _airflow(job["ti"], up=3),
    }
    heads = ("Attempt", "Status", "Pilot", "Node", "Account", "Exit code", "Started (UTC)", "Ended", "Errors", "Then")
    attempts = [
        (
            one["attempt_nr"], _status(one["status"]), one["pilot_id"], one["node"], _account(one), one["exit_code"],
            _moment(one["started_at"]), _moment(one["ended_at"]), "; ".join(map(_error, one["errors"])), one["why"],
        )
        for one in job["attempts"]
    ]  # fmt: skip
    outputs = [(_output(job["panda_id"], file), file["size"], file["sha256"]) for file in job["outputs"]]
    parts = [_facts(said)]
    parts += [_table(heads, attempts) if attempts else Markup("<p>No pilot has taken it yet.</p>")]
    parts += [_table(("Output", "Bytes", "SHA-256"), outputs)] if outputs else []
    return _page(f"PandaID {job['panda_id']}: {job['job_name']}", *parts)


_PAGE = 100
_PAGES: tuple[tuple[str, Callable[[Any, int], Markup]], ...] = (
    (r"/v1/task/\d+", _task),
    (r"/v1/task/\d+/jobs", _jobs),
    (r"/v1/job/\d+", _job),
)


def _page(title: str, *parts: Markup) -> Markup:
    return Markup(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{0}</title><style>{1}</style></head>'
        "<body><h1>{0}</h1>{2}</body></html>"
    ).format(title, Markup(_STYLE), Markup("").join(parts))  # noqa: S704 - a constant of ours


def _rows(rows: Iterable[Iterable[object]], cell: Markup) -> Markup:
    lines = (Markup("").join(cell.format("" if value is None else value) for value in row) for row in rows)
    return Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Markup:
    return Markup("<table>{}{}</table>").format(
        _rows([heads], Markup("<th>{}</th>")), _rows(rows, Markup("<td>{}</td>"))
    )


def _facts(said: Mapping[str, object]) -> Markup:
    lines = (Markup("<tr><th>{}</th><td>{}</td></tr>").format(name, value) for name, value in said.items() if value)
    return Markup("<table>{}</table>").format(Markup("").join(lines))


def _airflow(ti: Mapping[str, Any], *, up: int) -> Markup:
    """Back to the task instance; relative, since Airflow may be served below a path."""
    words = (ti["dag_id"], "runs", ti["run_id"], "tasks", ti["task_id"])
    path = "/".join(quote(str(word), safe="") for word in words)
    mapped = f"/mapped/{int(ti['map_index'])}" if int(ti["map_index"]) >= 0 else ""
    said = f"{ti['dag_id']} / {ti['task_id']}, run {ti['run_id']}, try {ti['try_number']}"
    return _A.format(f"{'../' * up}dags/{path}{mapped}", said)


def _logs(job: Mapping[str, Any], where: str) -> Markup:
    there = {file["lfn"] for file in job["logs"]}
    known = ((PAYLOAD_LOG, "log", "payload"), (PILOT_LOG, "pilot_log", "pilot (tar)"))
    return Markup(", ").join(
        _A.format(f"{where}{job['panda_id']}/{path}", text) for lfn, path, text in known if lfn in there
    )


def _output(panda_id: int, file: Mapping[str, Any]) -> str:
    if file["url"]:
        return f"{file['lfn']} at {file['url']}"
    return _A.format(f"../file/{panda_id}/{quote(file['lfn'], safe='')}", file["lfn"])


def _moment(rfc3339: str | None) -> str:
    """To the second; all are UTC."""
    return (rfc3339 or "")[:19].replace("T", " ")


def _status(status: str, silent_s: float | None = None) -> Markup:
    """With what is suspected of the pilot that has the job: it has said nothing for so many seconds."""
    said = Markup('<span class="{0}">{0}</span>').format(status)
    if silent_s is None:
        return said
    return said + Markup(' <span class="suspected">(suspected: pilot silent for {} s)</span>').format(f"{silent_s:.0f}")


def _last(job: Mapping[str, Any]) -> Mapping[str, Any]:
    return job["attempts"][0] if job["attempts"] else {}


def _account(attempt: Mapping[str, Any]) -> str:
    """As whom the payload ran; that nobody has switched is said wherever a person looks."""
    switched = attempt.get("identity_switched")
    if switched is None:
        return ""
    return f"{attempt['account_name']} ({attempt['account_uid']}){'' if switched else ', identity NOT switched'}"


def _error(error: Mapping[str, Any]) -> str:
    return f"{error['source']} error {error['code']}, {error['diag']} ({error['blame']}'s fault)"
