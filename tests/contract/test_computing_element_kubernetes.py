"""The contract of ``ComputingElement`` over a stub of Kubernetes' API server; no cluster was there to run against."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.elements import (
    SLEEP,
    Elements,
    batch,
    ends_pilots_of_one_batch_apart,
    purges_what_ended,
    queue_of,
    refuses_handles_of_another_kind,
    refuses_other_pilots,
    runs_is_found_and_adopted,
    states,
    tells_unknown_from_failure,
    until,
)
from support.kube_stub import TOKEN, Kube, running_kube
from support.need import absent
from support.pki import Pki, pki  # noqa: F401 - a fixture

from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    Handle,
    HasOutput,
    InvalidDescriptionError,
    ListsTags,
    Outcome,
    PilotJobState,
    ReportsLoad,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.kube import KubernetesElement
from airpanda.core.secret import Secret
from airpanda.pilot.config import PilotConfig

UNKNOWN = Handle("k8s_0@never")
Make = Callable[..., KubernetesElement]


@pytest.fixture
def kube(pki: Pki, tmp_path: Path) -> Iterator[Kube]:  # noqa: F811
    if find_spec("kubernetes") is None:
        absent("NOT TESTED: the Kubernetes client is missing; pip install -r requirements-kubernetes.txt")
    with running_kube(pki, tmp_path / "pods") as stub:
        yield stub


@pytest.fixture
def make(kube: Kube, tmp_path: Path) -> Iterator[Make]:
    elements = Elements(KubernetesElement, tmp_path)

    def factory(wrapper: str, *, token: str = TOKEN, **ce: object) -> KubernetesElement:
        values = {"url": kube.url, "ca_file": kube.ca_file, "namespace": "ns", "image": "none", "conn_id": "c", **ce}
        return elements.make(queue_of("kubernetes", values), wrapper, token=Secret(token))

    yield factory
    elements.close()


def test_a_handle_of_another_kind_is_refused_before_it_travels(make: Make) -> None:
    element = make(SLEEP)
    refuses_handles_of_another_kind(element, ("k8s_1", "k8s_x@t", "k8s_1@t,a=b", "k8s_1@t\n", "gram_1@t", ""))
    assert element.requests == 0


def test_unknown_handles_and_tags_are_told_apart_from_failures(make: Make) -> None:
    tells_unknown_from_failure(make(SLEEP), UNKNOWN)


def test_a_batch_runs_is_found_and_a_repeat_adopts(make: Make, kube: Kube) -> None:
    element, mine = runs_is_found_and_adopted(lambda: make(SLEEP), "a", "a-", "A" * 64)
    assert isinstance(element, ListsTags)
    assert {tag: set(handles) for tag, handles in make(SLEEP).tagged("a").items()} == {
        "a": mine,
        "a-": {Handle("k8s_0@a-")},
    }
    assert isinstance(element, ReportsLoad)
    until(lambda: element.load().running == 5)
    refuses_other_pilots(element, "a")
    assert len(kube.objects["pods"]) == 5


def test_exit_codes_become_states_and_one_failure_ends_no_other(make: Make) -> None:
    element, handles = ends_pilots_of_one_batch_apart(make)
    assert isinstance(element, HasOutput)
    assert element.fetch(handles[2]) == b"why\n"
    assert element.fetch(handles[2], tail_bytes=2) == b"y\n"
    assert element.cancel([handles[2]]) == {handles[2]: Outcome.ALREADY_OVER}
    purges_what_ended(element, [handles[1], handles[2]], handles[4])


def test_cancel_ends_some_or_all_and_a_repeat_does_without_grace(make: Make, kube: Kube) -> None:
    element = make(SLEEP)
    handles = list(element.submit(batch("c", 1, 2)).handles.values())
    (deaf,) = make("trap '' TERM; echo deaf; while :; do sleep 0.2; done\n").submit(batch("k", 1)).handles.values()
    until(lambda: states(element.status([deaf, *handles])) == {PilotJobState.RUNNING})
    until(lambda: b"deaf" in element.fetch(deaf))
    assert element.cancel(handles[:1]) == {handles[0]: Outcome.ACCEPTED}
    until(lambda: element.status(handles)[handles[0]].state is PilotJobState.CANCELLED)
    assert element.status(handles)[handles[1]].state is PilotJobState.RUNNING
    assert set(element.cancel([deaf, *handles]).values()) == {Outcome.ACCEPTED, Outcome.ALREADY_OVER}
    until(lambda: states(element.status(handles)) == {PilotJobState.CANCELLED})
    assert element.status([deaf])[deaf].state is PilotJobState.COMPLETING
    assert make(SLEEP).cancel([deaf]) == {deaf: Outcome.ACCEPTED}
    until(lambda: element.status([deaf])[deaf].state is PilotJobState.CANCELLED)
    assert element.purge([deaf, *handles]) == dict.fromkeys([deaf, *handles], Outcome.ACCEPTED)
    assert kube.objects == {"jobs": {}, "pods": {}, "secrets": {}}
    assert states(element.status(handles)) == {PilotJobState.UNKNOWN}


def test_a_cancelled_pilot_without_a_pod_is_not_over_while_the_job_may_make_one(make: Make, kube: Kube) -> None:
    """A quota, or the controller's pace: the pod of an index comes after its cancel."""
    element = make(SLEEP)
    handles = list(element.submit(batch("late", 1, 2)).handles.values())
    until(lambda: states(element.status(handles)) == {PilotJobState.RUNNING})
    kube.lose_pod("late", 1)
    assert element.cancel(handles[1:]) == {handles[1]: Outcome.ACCEPTED}
    assert element.status(handles)[handles[1]].state is PilotJobState.QUEUED
    kube.add_pod("late", 1)
    until(lambda: element.status(handles)[handles[1]].state is PilotJobState.RUNNING)
    assert element.cancel(handles[1:]) == {handles[1]: Outcome.ACCEPTED}
    until(lambda: element.status(handles)[handles[1]].state is PilotJobState.CANCELLED)


def test_pilots_of_a_suspended_job_are_over_without_pods_and_make_room(make: Make, kube: Kube) -> None:
    """A suspended Job makes no pods, and need not count those it ended."""
    element = make(SLEEP, max_pilots=2)
    handles = list(element.submit(batch("over", 1, 2)).handles.values())
    until(lambda: states(element.status(handles)) == {PilotJobState.RUNNING})
    for index in (0, 1):
        kube.lose_pod("over", index)
    assert element.cancel(handles) == dict.fromkeys(handles, Outcome.ACCEPTED)
    assert states(element.status(handles)) == {PilotJobState.CANCELLED}
    assert element.tagged("over") == {}
    element.submit(batch("next", 3, 4))


def test_each_pod_gets_the_secret_of_its_own_index_and_nothing_shows_it(make: Make, kube: Kube) -> None:
    element = make("cat /proc/self/environ pilot.json; stat -c %a pilot.json; " + SLEEP)
    handles = element.submit(batch("s", 7, 8)).handles
    until(lambda: states(element.status(list(handles.values()))) == {PilotJobState.RUNNING})
    until(lambda: all(element.fetch(handle).endswith(b"}600\n") for handle in handles.values()))
    assert b"token-of-7" in element.fetch(handles[7])
    assert b"token-of-8" not in element.fetch(handles[7])
    shown = json.dumps([kube.objects["jobs"], kube.objects["pods"]])
    assert "token-of" not in shown
    assert b"token-of" not in subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True).stdout
    (job,) = kube.objects["jobs"].values()
    (secret,) = kube.objects["secrets"].values()
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert job["spec"]["backoffLimitPerIndex"] == 0
    pod = job["spec"]["template"]["spec"]
    assert pod["activeDeadlineSeconds"] == 600
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    mounts = {m["mountPath"]: m.get("subPathExpr") for m in pod["initContainers"][0]["volumeMounts"]}
    assert mounts["/airpanda/pilot.json"] == "$(AIRPANDA_INDEX).json"
    assert [m["mountPath"] for m in pod["containers"][0]["volumeMounts"]] == ["/airpanda-work"]


def test_a_pilots_directory_is_its_own_and_holds_the_only_copy_of_its_token(
    make: Make, kube: Kube, tmp_path: Path
) -> None:
    """A pilot makes its scratch directory beside its own, and hides the parent: neither may be the root."""
    element = make("cat pilot.json; rm pilot.json; " + SLEEP)
    (handle,) = element.submit(batch("own", 7)).handles.values()
    until(lambda: states(element.status([handle])) == {PilotJobState.RUNNING})
    until(lambda: b"token-of-7" in element.fetch(handle))
    (root,) = (tmp_path / "pods").iterdir()
    (config,) = (line for line in element.fetch(handle).decode().splitlines() if line.startswith("{"))
    (start,) = root.glob("airpanda-work/start.sh")
    (workdir,) = re.findall(r"^cd (\S+)", start.read_text().replace(str(root), ""), re.MULTILINE)
    pilot = PilotConfig.from_json(config, Path(workdir))
    assert pilot.scratch.parent == pilot.workdir.parent == Path("/airpanda-work")
    until(lambda: not (root / "airpanda-work/pilot/pilot.json").exists())
    left = [path for path in root.rglob("*") if path.is_file() and path.name != "pilot.log"]
    assert not [path for path in left if b"token-of-7" in path.read_bytes()]


def test_a_pod_whose_files_are_not_put_in_place_says_so(make: Make, kube: Kube) -> None:
    element = make(SLEEP)
    kube.answer["POST", "secrets"] = (201, b"{}")  # no pod starts yet
    (handle,) = element.submit(batch("full", 1)).handles.values()
    kube.answer.clear()
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
    names = {"name": "files", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
    (pod,) = kube.objects["pods"].values()
    pod["status"] = {"phase": "Pending", "initContainerStatuses": [{**names, **waiting}]}
    assert element.status([handle])[handle].state is PilotJobState.HELD
    pod["spec"]["initContainers"][0]["command"][2] = 'echo "no space"; exit 71'
    pod["status"] = {"phase": "Pending"}
    assert element.submit(batch("full", 1)).adopted
    until(lambda: element.status([handle])[handle].state.is_final)
    seen = element.status([handle])[handle]
    assert (seen.state, seen.exit_code) == (PilotJobState.FAILED, 71)
    assert element.fetch(handle) == b"no space\n"


def test_limits_and_a_large_batch_in_few_requests(make: Make, kube: Kube) -> None:
    small = make(SLEEP, max_pilots=2)
    with pytest.raises(ThrottledError, match="max_pilots") as caught:
        small.submit(batch("m", 1, 2, 3))
    assert caught.value.retry_after_s
    assert kube.objects["jobs"] == {}
    element = make("exit 0\n")
    with pytest.raises(InvalidDescriptionError, match="limit"):
        element.submit(batch("n", *range(501)))
    kube.answer["POST", "secrets"] = (201, b"{}")  # no pod starts
    before = element.requests
    handles = list(element.submit(batch("big", *range(500))).handles.values())
    assert element.requests - before <= 5
    before = element.requests
    assert states(element.status(handles)) == {PilotJobState.QUEUED}
    assert element.requests - before <= 3


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (401, "Unauthorized", CECredentialError),
        (403, 'jobs.batch is forbidden: User "x" cannot create resource', CECredentialError),
        (403, "jobs.batch is forbidden: exceeded quota: pilots", ThrottledError),
        (404, 'namespaces "ns" not found', InvalidDescriptionError),
        (422, "spec.template: Invalid value", InvalidDescriptionError),
        (429, "too many requests", ThrottledError),
        (500, "etcdserver: request timed out", SubmitUncertainError),
        (201, "no JSON", SubmitUncertainError),
    ],
)
def test_refusals_say_who_must_act(make: Make, kube: Kube, code: int, text: str, kind: type[Exception]) -> None:
    body = text if code == 201 else json.dumps({"kind": "Status", "message": text})
    kube.answer["POST", "jobs"] = (code, body.encode())
    with pytest.raises(ComputingElementError) as caught:
        make(SLEEP).submit(batch("r", 1))
    assert type(caught.value) is kind, caught.value
    assert kube.objects["jobs"] == {}


def test_a_broken_off_submission_is_adopted_with_its_secret(make: Make, kube: Kube) -> None:
    kube.answer["POST", "secrets"] = (500, b"{}")
    with pytest.raises(SubmitUncertainError, match="a repeat adds that"):
        make(SLEEP).submit(batch("half", 1, 2))
    kube.answer.clear()
    element = make(SLEEP)
    assert states(element.find("half")) == {PilotJobState.QUEUED}
    submission = element.submit(batch("half", 1, 2))
    assert submission.adopted == {1, 2}
    until(lambda: states(element.find("half")) == {PilotJobState.RUNNING})
    assert len(kube.objects["pods"]) == 2


def test_a_cluster_that_is_down_hangs_or_is_another(make: Make, kube: Kube, tmp_path: Path) -> None:
    with pytest.raises(CEUnavailableError, match="cannot be reached"):
        make(SLEEP, url="https://localhost:1").find("t")
    other = Pki(tmp_path / "other").ca.cert
    with pytest.raises(CECredentialError, match="ca_file"):
        make(SLEEP, ca_file=str(other)).find("t")
    with pytest.raises(CECredentialError, match="401"):
        make(SLEEP, token="wrong").find("t")
    kube.hang_s = 3
    element = make(SLEEP)
    element._api._timeout_s = 0.5
    with pytest.raises(CEUnavailableError, match="no whole answer"):
        element.find("t")


def test_a_machine_without_the_client_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with pytest.raises(CEUnavailableError, match=r"requirements-kubernetes\.txt"):
        make(SLEEP).find("t")


@pytest.mark.parametrize("between", ["\n", "\r\nX: ", " ", "\0", "é", ""])
def test_a_token_that_is_no_header_is_shown_nowhere(make: Make, between: str) -> None:
    with pytest.raises(CECredentialError, match="password of connection 'c'") as caught:
        make(SLEEP, token=f"{TOKEN}{between}{TOKEN}" if between else " \n").submit(batch("t", 1))
    assert TOKEN not in str(caught.value)


def test_a_tokens_last_line_break_is_not_sent(make: Make) -> None:
    """As a secrets backend gives it that keeps a file's last line break."""
    assert make(SLEEP, token=f"{TOKEN}\n").find("t") == {}


def test_what_the_client_says_of_a_value_is_not_quoted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    element = make(SLEEP)
    monkeypatch.setattr(element._api, "_header", lambda: f"{TOKEN}\n")
    with pytest.raises(ComputingElementError) as caught:
        element.find("t")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("text", [None, "", "no PEM"])
def test_a_ca_file_that_is_of_no_use_is_named(make: Make, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CECredentialError, match=r"ca_file.*administrator"):
        make(SLEEP, ca_file=str(file)).find("t")
