"""Pages for people: what stands there, where links lead, and that nothing a job or a node says becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import pytest

from airpanda.dispatcher.pages import POLICY, page_of

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
TI = {
    "dag_id": "a_dag",
    "run_id": "manual__2026-11-28T19:52:11+00:00",
    "task_id": "evgen",
    "map_index": -1,
    "try_number": 2,
}


def attempt(**other: Any) -> dict[str, Any]:
    made = {
        "attempt_nr": 1, "status": "failed", "pilot_id": 3, "node": "wn1", "account_name": "pool001",
        "account_uid": 61001,
        "identity_switched": True, "exit_code": 1, "started_at": "2026-11-28T19:00:00Z", "ended_at": None, "why": "",
        "errors": [{"source": "exe", "code": 65, "diag": "the payload exited with 1", "blame": "user"}],
    }  # fmt: skip
    return made | other


def job(**other: Any) -> dict[str, Any]:
    made = {
        "panda_id": 4, "task_id": 7, "job_name": "evgen-9", "owner": "alice", "owner_dn": "/CN=Alice", "queue": "DEMO",
        "status": "failed", "attempt_nr": 1, "max_attempt": 3, "ti": TI, "outputs": [], "attempts": [attempt()],
        "reason": "exe error 65", "logs": [{"lfn": "payload.log"}], "silent_s": None,
    }  # fmt: skip
    return made | other


def task(**other: Any) -> dict[str, Any]:
    made = {
        "task_id": 7, "task_name": "a_dag.evgen", "owner": "alice", "owner_dn": "/CN=Alice", "queue": "DEMO",
        "n_jobs": 4, "counts": {"finished": 3, "failed": 1}, "done": True, "ti": TI, "submitted_by": "client:airflow",
        "created_at": "2026-11-28T19:00:00Z", "suspected": 0,
    }  # fmt: skip
    return made | other


class Seen(HTMLParser):
    """The elements of a page, its links, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def seen(path: str, data: Any, offset: int = 0) -> Seen:
    page = page_of(path, data, offset=offset)
    assert page is not None
    return Seen(page)


def links(path: str, data: Any) -> set[str]:
    return {urljoin(f"https://host/below/panda{path}", link) for link in seen(path, data).links}


BACK = "https://host/below/dags/a_dag/runs/manual__2026-11-28T19%3A52%3A11%2B00%3A00/tasks/evgen"


@pytest.mark.parametrize(
    ("path", "data", "lead"),
    [
        ("/v1/task/7", task(), {BACK, "https://host/below/panda/v1/task/7/jobs"}),
        (
            "/v1/task/7/jobs",
            [job()],
            {BACK, "https://host/below/panda/v1/job/4", "https://host/below/panda/v1/job/4/log"},
        ),
        (
            "/v1/job/4",
            job(outputs=[{"lfn": "a b.npz", "size": 1, "sha256": "00", "url": ""}], logs=[{"lfn": "pilot-log.tgz"}]),
            {
                BACK,
                "https://host/below/panda/v1/task/7",
                "https://host/below/panda/v1/job/4/pilot_log",
                "https://host/below/panda/v1/file/4/a%20b.npz",
            },
        ),
    ],
)
def test_links_lead_to_what_is_there_also_below_a_path(path: str, data: Any, lead: set[str]) -> None:
    assert links(path, data) == lead


def test_who_is_suspected_is_said_wherever_a_status_stands() -> None:
    running = job(status="running", attempts=[attempt(status="running", errors=[])])
    silent = running | {"silent_s": 130.4}
    for path, data, spoken in (("/v1/job/4", silent, running), ("/v1/task/7/jobs", [silent], [running])):
        assert "running (suspected: pilot silent for 130 s)" in " ".join(seen(path, data).text.split())
        assert "(suspected" not in seen(path, spoken).text
    assert "2: their pilots have said nothing for long" in seen("/v1/task/7", task(suspected=2)).text
    assert "Suspected" not in seen("/v1/task/7", task()).text


def test_a_mapped_task_instance_is_found_again() -> None:
    assert BACK + "/mapped/3" in links("/v1/task/7", task(ti=TI | {"map_index": 3}))


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (
            "/v1/task/7",
            task(task_name=EVIL, owner=EVIL, owner_dn=EVIL, queue=EVIL, submitted_by=EVIL, counts={EVIL: 1}),
        ),
        ("/v1/task/7/jobs", [job(job_name=EVIL, reason=EVIL, status=EVIL, attempts=[attempt(node=EVIL)])]),
        (
            "/v1/job/4",
            job(
                job_name=EVIL,
                ti=dict.fromkeys(("dag_id", "run_id", "task_id"), EVIL) | {"map_index": -1, "try_number": EVIL},
                attempts=[
                    attempt(
                        why=EVIL, account_name=EVIL, errors=[dict.fromkeys(("source", "code", "diag", "blame"), EVIL)]
                    )
                ],
                outputs=[
                    {"lfn": EVIL, "size": EVIL, "sha256": EVIL, "url": url} for url in ("", EVIL, "javascript:alert(1)")
                ],
            ),
        ),
    ],
)
def test_nothing_that_a_job_or_a_node_says_becomes_markup(path: str, data: Any) -> None:
    page = seen(path, data)
    assert "alert(1)" in page.text
    assert page.elements.isdisjoint({"script", "img", "iframe", "form", "object", "base", "link"})
    assert page.attributes <= {"href", "class", "charset", "lang"}
    assert all(re.match(r"(\.\./|\d|\?)", link) for link in page.links), "relative, and no scheme"


def test_a_failure_stands_there_with_whose_fault_it_is_and_the_account() -> None:
    text = seen("/v1/job/4", job()).text
    assert "exe error 65, the payload exited with 1 (user's fault)" in text
    assert "pool001 (61001)" in text
    assert "identity NOT switched" in seen("/v1/job/4", job(attempts=[attempt(identity_switched=False)])).text


def test_a_long_list_goes_on_and_says_where_it_is() -> None:
    page = seen("/v1/task/7/jobs", [job()] * 100, offset=200)
    assert "from number 201" in page.text
    assert "?offset=300&limit=100" in page.links
    assert "No more jobs" in seen("/v1/task/7/jobs", []).text


def test_moments_are_told_to_the_second() -> None:
    text = seen("/v1/job/4", job(attempts=[attempt(started_at="2026-11-28T19:54:24.169961Z")])).text
    assert "2026-11-28 19:54:24 " in text


def test_a_job_that_nobody_has_taken_yet() -> None:
    assert "No pilot has taken it yet" in seen("/v1/job/4", job(attempts=[], logs=[])).text


@pytest.mark.parametrize("path", ["/v1/task/7/progress", "/v1/job/4/samples", "/v1/jobs", "/v1/job/4/", "/v1/job/x"])
def test_what_has_no_page(path: str) -> None:
    assert page_of(path, {}) is None


def test_a_browser_may_run_and_load_nothing() -> None:
    page = page_of("/v1/task/7", task())
    assert page is not None
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert "allow-scripts" not in POLICY
