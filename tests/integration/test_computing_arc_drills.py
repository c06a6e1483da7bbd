"""What goes wrong between us and an ARC CE: lost answers on a real one, nonsense from a scripted one."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.arc_rig import ArcRig, make_arc_rig
from support.elements import SLEEP, batch, until
from support.http_stub import Answer, http_stub
from support.pki import Pki
from support.sshd import Proxy

from airpanda.computing.arc import ArcElement
from airpanda.computing.arc_rest import ArcRest, CEIdentityError
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.x509.credential import ProxyCredential

pytestmark = [pytest.mark.root, pytest.mark.integration]
LONG = "sleep 600 & wait $!\n"


@pytest.fixture(scope="module", name="rig")
def module_rig() -> Iterator[ArcRig]:
    yield from make_arc_rig()


@pytest.fixture(autouse=True)
def tidy(rig: ArcRig) -> Iterator[None]:
    yield
    rig.tidy()


@pytest.fixture
def relay(rig: ArcRig) -> Iterator[Proxy]:
    relay = Proxy(rig.arc.port, lambda _: True)
    yield relay
    relay.close()


def through(rig: ArcRig, relay: Proxy, timeout_s: float = 20.0) -> ArcElement:
    url = f"https://localhost:{relay.port}/arex"
    element = ArcElement(rig.queue(url=url), SLEEP, rig.robot, timeout_s=timeout_s)
    rig.made.append(element)
    return element


def before_the_post(element: ArcElement, do: Any) -> None:
    """Have something happen when everything is ready but the submission itself."""
    real = element._rest.submit

    def submit(description: bytes) -> Any:
        do()
        return real(description)

    element._rest.submit = submit  # type: ignore[method-assign]


# --- a real CE ------------------------------------------------------------------------------------------------


def test_a_front_end_without_its_engine_takes_pilots_and_says_so(rig: ArcRig) -> None:
    element = rig.element("exit 0\n")
    rig.arc.stop("engine")
    try:
        handle = element.submit(batch("noengine", 1)).handles[1]
        assert element.status([handle])[handle].state is PilotJobState.SUBMITTED
    finally:
        rig.arc.start("engine")
    until(lambda: element.status([handle])[handle].state is PilotJobState.DONE)


def test_a_lost_answer_is_uncertain_and_a_repeat_adopts(rig: ArcRig, relay: Proxy) -> None:
    element = through(rig, relay, timeout_s=10)
    before_the_post(element, lambda: setattr(relay, "mute", True))
    with pytest.raises(SubmitUncertainError, match="no whole answer"):
        element.submit(batch("lost", *range(20)))
    element.close()
    until(lambda: rig.jobs("lost") == 20)
    again = rig.element(SLEEP).submit(batch("lost", *range(20)))
    assert again.adopted == set(range(20))
    assert set(rig.element(SLEEP).find("lost")) == set(again.handles.values())
    assert rig.jobs("lost") == 20


def test_a_request_that_broke_off_is_uncertain_and_a_repeat_submits(rig: ArcRig, relay: Proxy) -> None:
    element = through(rig, relay)
    before_the_post(element, lambda: relay.limit(30_000))
    with pytest.raises(SubmitUncertainError):
        element.submit(batch("half", *range(20)))
    element.close()
    again = rig.element(SLEEP).submit(batch("half", *range(20)))
    assert len(set(again.handles.values())) == 20
    assert rig.jobs("half") == 20


def test_what_arrives_twice_becomes_one(rig: ArcRig) -> None:
    """As after a repeat while the CE still read the request whose answer was lost."""
    element = rig.element(SLEEP)
    first = element.submit(batch("twice", 1, 2))
    element._send(batch("twice", 1, 2), [1, 2])
    assert len(element.find("twice")) == 4
    kept = rig.element(SLEEP).submit(batch("twice", 1, 2))
    assert kept.adopted == {1, 2}
    others = element.find("twice").keys() - set(kept.handles.values())
    assert len(others) == 2
    until(lambda: all(element.status([h])[h].state is PilotJobState.CANCELLED for h in others))
    assert set(first.handles) == set(kept.handles)
    assert not any(element.status([h])[h].state.is_final for h in kept.handles.values())


def test_a_submitter_killed_at_any_moment_leaves_one_of_each_pilot(rig: ArcRig) -> None:
    """kill -9 at growing delays through the whole submission; a repeat adopts or submits, and doubles are cancelled.

    A CE that still reads what the killed one sent can make doubles: the next look cancels all but one.
    """
    pilots = range(10)
    rig.element(LONG).submit(batch("k-warm", 0))
    for number in range(8):
        tag = f"k-{number}"
        child = os.fork()
        if child == 0:
            try:
                ArcElement(rig.queue(), LONG, rig.robot).submit(batch(tag, *pilots))
            finally:
                os._exit(0)
        time.sleep(0.05 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        rig.element(LONG).submit(batch(tag, *pilots))
    time.sleep(2)
    for number in range(8):
        tag, element = f"k-{number}", rig.element(LONG)
        kept = set(element.submit(batch(tag, *pilots)).handles.values())
        assert len(kept) == 10
        others = element.find(tag).keys() - kept
        until(lambda: all(status.state.is_final for status in element.status(list(others)).values()), 90)  # noqa: B023
        assert not any(status.state.is_final for status in element.status(list(kept)).values())


def test_a_part_that_is_there_is_adopted_and_the_rest_submitted(rig: ArcRig) -> None:
    rig.element(SLEEP).submit(batch("part", 2, 3))
    whole = rig.element(SLEEP).submit(batch("part", 1, 2, 3, 4))
    assert whole.adopted == {2, 3}
    assert rig.jobs("part") == 4


def test_a_connection_that_the_ce_closed_is_opened_again(rig: ArcRig, relay: Proxy) -> None:
    element = through(rig, relay)
    element.find("x")
    relay.reset()
    assert element.find("x") == {}
    assert relay.connects == 2


def test_a_ce_that_is_gone_or_hangs_is_unavailable(rig: ArcRig, relay: Proxy) -> None:
    element = through(rig, relay, timeout_s=1)
    relay.mute = True
    with pytest.raises(CEUnavailableError):
        element.submit(batch("hang", 1))
    with pytest.raises(CEUnavailableError, match="cannot be reached"):
        rig.element(SLEEP, url="https://localhost:1/arex").find("x")
    assert rig.jobs("hang") == 0


def test_whom_the_ce_does_not_know_and_whose_proxy_is_over_is_refused(rig: ArcRig) -> None:
    with pytest.raises(CECredentialError):
        rig.element(SLEEP, credential=rig.site.proxy("alice")).submit(batch("who", 1))
    with pytest.raises(CECredentialError):
        rig.element(SLEEP, credential=ProxyCredential.from_files(*rig.site.pki.expired_user("late"))).find("x")


def test_a_wrong_path_is_no_arc_ce(rig: ArcRig) -> None:
    with pytest.raises((InvalidDescriptionError, CEUnavailableError), match=r"arc|HTTP"):
        rig.element(SLEEP, url=f"https://localhost:{rig.arc.port}/nothing").submit(batch("w", 1))


# --- a scripted one -------------------------------------------------------------------------------------------


def server(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, pki.host()))
    return context


def rest(rig: ArcRig, port: int) -> closing[ArcRest]:
    return closing(ArcRest(f"https://localhost:{port}/arex", rig.robot, rig.site.pki.ca_dir, timeout_s=30))


@pytest.mark.parametrize(
    ("answer", "reading", "submitting"),
    [
        (Answer(500), CEUnavailableError, SubmitUncertainError),
        (Answer(200, b'{"job":[{"id":"a","sta'), CEUnavailableError, SubmitUncertainError),
        (Answer(200, b"<html>It works!</html>"), CEUnavailableError, SubmitUncertainError),
        (Answer(200, b'{"job":{"id":"../x","status-code":"201"}}'), CEUnavailableError, SubmitUncertainError),
        (
            Answer(302, b"", {"Location": "https://elsewhere.example.org/"}),
            InvalidDescriptionError,
            InvalidDescriptionError,
        ),
        (Answer(404), InvalidDescriptionError, InvalidDescriptionError),
        (Answer(403), CECredentialError, CECredentialError),
        (Answer(503, b"", {"Retry-After": "7"}), ThrottledError, ThrottledError),
        (Answer(429), ThrottledError, ThrottledError),
    ],
)
def test_each_bad_answer_has_its_meaning(
    rig: ArcRig, answer: Answer, reading: type[ComputingElementError], submitting: type[ComputingElementError]
) -> None:
    with http_stub(answer, tls=server(rig.site.pki)) as stub:
        with rest(rig, stub.port) as client, pytest.raises(reading) as caught:
            client.jobs()
        assert caught.type is reading
        with rest(rig, stub.port) as client, pytest.raises(submitting) as caught:
            client.submit(b"<x/>")
        assert caught.type is submitting
        assert len(stub.seen) == 2, "nothing was repeated, and no redirect followed"


def test_how_long_to_wait_is_the_ces_word_within_reason(rig: ArcRig) -> None:
    for told, expected in (("7", 7.0), ("99999999", 3600.0), ("soon", 60.0)):
        with http_stub(Answer(503, b"", {"Retry-After": told}), tls=server(rig.site.pki)) as stub:
            with rest(rig, stub.port) as client, pytest.raises(ThrottledError) as caught:
                client.jobs()
            assert caught.value.retry_after_s == expected


def test_a_ca_that_this_machine_trusts_is_not_ours(
    rig: ArcRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Pki(tmp_path / "other")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(other.ca.cert))
    monkeypatch.setenv("SSL_CERT_DIR", str(other.ca_dir))
    with http_stub(Answer(200), tls=server(other)) as stub:
        with rest(rig, stub.port) as client, pytest.raises(CEIdentityError, match="administrator") as caught:
            client.jobs()
        assert not caught.value.transient
        assert stub.seen == []


def test_a_proxy_of_the_environment_is_not_asked(rig: ArcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert rig.element(SLEEP).find("x") == {}


def test_a_delegation_whose_key_changes_is_left_alone(rig: ArcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting pilots hold tokens that were sealed for the old key."""
    from airpanda.computing import arc_rest
    from airpanda.x509.proxy import make_request, new_key

    element = rig.element(SLEEP)
    rig.arc.stop("engine")
    try:
        element.submit(batch("key", 1))
        monkeypatch.setattr(arc_rest, "_csr", lambda _: make_request(new_key()))
        with pytest.raises(CEUnavailableError, match="another key"):
            element.renew(rig.robot)
    finally:
        rig.arc.start("engine")
