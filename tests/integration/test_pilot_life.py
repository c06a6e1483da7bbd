"""The pilot against a dispatcher that speaks the real messages: its whole life, and what can go wrong in it."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fake_dispatcher import DN, PASSPHRASE, FakeDispatcher, fake_dispatcher, make_job
from support.fake_switch import FakeSwitcher
from support.launcher import wait_for
from support.pilot_rig import FakeProxy, Rig

from airpanda.core.errors import CredentialError, IdentitySwitchError, ServiceError
from airpanda.glexec.contained import ContainedSwitcher
from airpanda.glexec.ports import Usage
from airpanda.glexec.proctree import descendants
from airpanda.myproxy.errors import (
    CredentialMissingError,
    PolicyDeniedError,
    UnfitCredentialError,
    WrongPassphraseError,
)
from airpanda.pilot import agent, course, errors, job, loop
from airpanda.pilot.config import Slot

SH = "/bin/sh"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with fake_dispatcher() as fake:
        yield Rig(fake, tmp_path)
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"


def codes(fake: FakeDispatcher) -> list[tuple[str, int]]:
    return [(str(error.source), error.code) for error in fake.final.errors]


# --- refusals first: no payload ----------------------------------------------------------------------------


def test_a_refused_preflight_benches_the_node_and_asks_for_nothing(rig: Rig) -> None:
    rig.switcher = FakeSwitcher(refuse="preflight")
    rig.fake.jobs = [make_job()]
    assert rig.run() == errors.EXIT_BENCHED
    assert rig.fake.offers == []
    assert [worker.status for worker in rig.fake.workers] == ["benched"]
    assert rig.fake.workers[0].probe["switch"]["works"] is False


def test_a_pilot_that_fails_itself_tells_so(rig: Rig) -> None:
    class Broken(FakeSwitcher):
        def preflight(self, proxy: Path) -> Any:
            raise PermissionError("canary")

    rig.switcher = Broken()
    assert rig.run() == errors.EXIT_EXCEPTION
    assert rig.fake.offers == []
    assert rig.fake.workers[-1].reason == "the pilot failed: PermissionError: canary"


def test_a_switch_that_changes_nothing_benches_the_node(rig: Rig) -> None:
    rig.switcher = FakeSwitcher(switches=True)  # its preflight returns our own account
    assert rig.run() == errors.EXIT_BENCHED
    assert rig.fake.offers == []


def refuse_with(error: Exception) -> Any:
    def retrieve(pointer: Any, lifetime: timedelta) -> FakeProxy:
        raise error

    return retrieve


def test_a_pilot_without_a_proxy_of_its_own_hands_the_job_back_and_is_benched(rig: Rig) -> None:
    rig.retrieve = refuse_with(CredentialError("the pilot's has expired"))
    rig.fake.jobs = [make_job(7), make_job(8)]
    assert rig.run() == errors.EXIT_BENCHED
    assert rig.fake.statuses == ["starting", "activated"]
    assert codes(rig.fake) == [("pilot", 1163)]
    assert rig.fake.final.errors[0].blame == "site"
    assert "the pilot's has expired" in rig.fake.workers[-1].reason
    assert rig.switcher.launched == []
    assert rig.leftovers() == []


BOB, CAROL = "/O=Test Grid/CN=Bob Analyst", "/O=Test Grid/CN=Carol Analyst"


@pytest.mark.parametrize(
    "error", [PolicyDeniedError("no"), ServiceError("connection refused")], ids=["not served", "down"]
)
def test_one_owner_without_a_serving_myproxy_does_not_bench_the_node(rig: Rig, error: Exception) -> None:
    """That owner's jobs go back unharmed and are not asked for again for a while; everybody else's run."""
    good = rig.retrieve
    rig.retrieve = lambda pointer, lifetime: (refuse_with(error) if pointer.owner_dn == DN else good)(pointer, lifetime)
    rig.options["idle_limit_s"] = 1.5
    rig.fake.jobs = [make_job(7), make_job(8), make_job(9, owner_dn=BOB)]
    assert rig.run() == errors.EXIT_OK
    said = [(report.job_id, report.job_status) for report in rig.fake.reports if report.job_status != "starting"]
    ends = [each for each, _ in itertools.groupby(said)]  # heartbeats come in between
    assert ends == [(7, "activated"), (9, "running"), (9, "finished")]
    (handed_back,) = next(report for report in rig.fake.reports if report.job_status == "activated").errors
    assert (handed_back.code, handed_back.blame) == (1163, "system")
    assert str(error) in handed_back.diag
    assert [job.panda_id for job in rig.fake.jobs] == [8]
    assert {tuple(offer.avoid_owners) for offer in rig.fake.offers} == {(), (DN,)}
    assert [worker.status for worker in rig.fake.workers] == ["started", "finished"]
    assert rig.leftovers() == []


def test_a_node_on_which_nobodys_payload_starts_is_benched(rig: Rig) -> None:
    rig.retrieve = refuse_with(ServiceError("connection refused"))
    rig.options["idle_limit_s"] = 10.0
    rig.options["bench_sleep_s"] = 0.1
    rig.fake.jobs = [make_job(i, owner_dn=dn) for i, dn in enumerate((DN, BOB, CAROL, DN + " 2"), 1)]
    assert rig.run() == errors.EXIT_BENCHED
    assert "3 owners in a row" in rig.fake.workers[-1].reason
    assert "connection refused" in rig.fake.workers[-1].reason
    assert len(rig.fake.jobs) == 1


def test_a_node_on_which_everybodys_payload_fails_at_once_is_benched(rig: Rig) -> None:
    """Each fails by its owner's fault, as far as it can tell: so does what a node has none of the software for."""
    rig.options["bench_sleep_s"] = 0.1
    rig.fake.jobs = [make_job(i, owner_dn=dn, argv=["false"]) for i, dn in enumerate((DN, BOB, CAROL, DN + " 2"), 1)]
    assert rig.run() == errors.EXIT_BENCHED
    assert "the payloads of 3 owners in a row have failed here at once" in rig.fake.workers[-1].reason
    assert {error.blame for report in rig.fake.reports for error in report.errors} == {"user"}
    assert len(rig.fake.jobs) == 1


@pytest.mark.parametrize(
    ("retrieve", "code"),
    [
        (refuse_with(WrongPassphraseError("wrong passphrase")), 1163),
        (refuse_with(CredentialMissingError("destroyed")), 1163),
        (refuse_with(UnfitCredentialError("expired")), 1163),
        (lambda pointer, lifetime: FakeProxy("/O=Test Grid/CN=Bob Analyst"), 1163),
        (lambda pointer, lifetime: FakeProxy(DN + "/CN=proxy"), 1163),
        (lambda pointer, lifetime: FakeProxy(not_after=datetime.now(UTC) + timedelta(seconds=60)), 1382),
    ],
    ids=["passphrase", "destroyed", "unfit", "another owner", "not the end entity", "too short"],
)
def test_an_owner_without_a_good_credential_fails_and_the_node_goes_on(rig: Rig, retrieve: Any, code: int) -> None:
    """One person's bad credential must not bench a pilot after another."""
    bad_first = iter([retrieve])
    good = rig.retrieve
    rig.retrieve = lambda pointer, lifetime: next(bad_first, good)(pointer, lifetime)
    rig.fake.jobs = [make_job(7), make_job(8)]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "failed", "starting", "running", "finished"]
    failed = next(report for report in rig.fake.reports if report.job_status == "failed")
    assert [(e.source, e.code, e.blame) for e in failed.errors] == [("pilot", code, "user")]
    assert failed.credential_event == "refused"
    assert [worker.status for worker in rig.fake.workers] == ["started", "finished"]
    assert len(rig.switcher.launched) == 1
    assert rig.leftovers() == []


@pytest.mark.parametrize("step", ["make_sandbox", "put", "launch"])
@pytest.mark.parametrize("node_is_bad", [True, False])
def test_after_a_failed_switch_the_nodes_own_check_decides(
    rig: Rig, step: str, node_is_bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_CHECK_PAUSE_S", 0.01)

    class Refuses(FakeSwitcher):
        preflights = 0

        def preflight(self, proxy: Path) -> Any:
            self.preflights += 1
            if self.preflights > 1 and node_is_bad:
                raise IdentitySwitchError("the launcher is gone")
            return super().preflight(proxy)

    rig.switcher = Refuses(refuse=step)
    rig.fake.jobs = [make_job(scripts={"a.sh": "exit 0"})]
    assert rig.run() == (errors.EXIT_BENCHED if node_is_bad else errors.EXIT_OK)
    assert rig.fake.statuses == ["starting", "activated"]
    assert codes(rig.fake) == [("pilot", 1226)]
    assert rig.switcher.preflights == (1 + agent._CHECKS if node_is_bad else 2)
    if node_is_bad:
        assert "the launcher is gone" in rig.fake.workers[-1].reason
    assert rig.switcher.launched == []
    assert rig.leftovers() == []


class Unproven(FakeSwitcher):
    def preflight(self, proxy: Path) -> Any:
        account = super().preflight(proxy)
        return type(account)("other", 4242, (4242,))


def test_an_identity_that_cannot_be_proved_is_a_failed_switch(rig: Rig) -> None:
    rig.switcher = Unproven(switches=True, proven=False)
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    assert rig.run() == errors.EXIT_BENCHED, "whoever the owner is: this node cannot prove what it does"
    assert rig.fake.statuses == ["starting", "activated"]
    assert codes(rig.fake) == [("pilot", 1226)]
    assert rig.switcher.payloads[0].wait(0.1) is not None


def test_a_command_that_is_not_there_is_the_owners_fault_not_the_nodes(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=["no-such-program-here"])]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "failed"]
    assert codes(rig.fake) == [("pilot", 1305)]
    assert rig.fake.final.errors[0].blame == "user"


@pytest.mark.parametrize(
    ("broken", "code", "blame"), [("missing", 1331, "user"), ("refused", 1338, "user"), ("checksum", 1099, "system")]
)
def test_an_input_that_does_not_arrive_whole_fails_the_attempt(
    rig: Rig, broken: str, code: int, blame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.fake.jobs = [make_job(inputs=[{"lfn": "data.txt", "source": "panda:1/data.txt"}])]
    if broken != "missing":
        rig.fake.inputs["data.txt"] = b"12345"
    rig.fake.wrong_checksum = broken == "checksum"
    rig.fake.refused_inputs = broken == "refused"
    monkeypatch.setattr("airpanda.pilot.staging.PATIENCE_S", 0.2)
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "failed"]
    assert codes(rig.fake) == [("pilot", code)]
    assert rig.fake.final.errors[0].blame == blame
    assert rig.switcher.launched == []


def test_a_token_that_is_not_accepted_ends_the_pilot(rig: Rig) -> None:
    from airpanda.core.secret import Secret

    rig.options["token"] = Secret("wrong")
    rig.fake.jobs = [make_job()]
    assert rig.run() == errors.EXIT_PROXY
    assert len(rig.fake.jobs) == 1


def test_a_lease_that_is_stale_from_the_start_runs_nothing(rig: Rig) -> None:
    rig.fake.stale = True
    rig.fake.jobs = [make_job()]
    assert rig.run() == errors.EXIT_OK
    assert rig.switcher.launched == []
    assert rig.leftovers() == []


# --- a good life ---------------------------------------------------------------------------------------------


def test_jobs_run_one_after_another_with_files_both_ways(rig: Rig) -> None:
    rig.fake.inputs["data.txt"] = b"12345"
    good = {
        "argv": ["sh", "copy.sh", "a b", "$HOME"],
        "env": {"WHO": "alice"},
        "scripts": {"copy.sh": 'cat data.txt > out.txt; echo "$1|$2|$WHO|$PandaID" | tee -a out.txt; echo bad >&2\n'},
        "inputs": [{"lfn": "data.txt", "source": "panda:1/data.txt"}],
        "outputs": [{"lfn": "out.txt"}],
    }
    rig.fake.jobs = [make_job(7, **good), make_job(8, **good)]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.files["7/1/out.txt"] == b"12345a b|$HOME|alice|7\n"
    assert rig.fake.files["8/1/payload.log"] == b"a b|$HOME|alice|8\nbad\n"
    assert rig.fake.statuses == ["starting", "running", "finished"] * 2
    final = rig.fake.final
    assert (final.errors, final.trans_exit_code, final.identity_switched) == ([], 0, False)
    assert final.use is not None
    assert final.use.wall_s > 0
    assert final.log_tail.endswith("bad\n")
    assert [worker.status for worker in rig.fake.workers] == ["started", "finished"]
    probe = rig.fake.workers[0].probe
    assert {"os", "kernel", "cores", "memory_mib", "disk_mib", "switch", "dispatcher"} <= set(probe)
    assert rig.leftovers() == []


def test_the_payload_gets_its_owners_proxy_and_no_secret_of_the_pilot(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=["env"])]
    rig.run()
    (launched,) = rig.switcher.launched
    assert launched["proxy"] == "PROXY OF " + DN
    shown = repr(launched) + rig.fake.final.log_tail
    for secret in (PASSPHRASE, "lease-7-1", "pilot-token"):
        assert secret not in shown


def test_nothing_of_the_pilots_environment_steers_a_payload(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What site and job declare, and who it is: neither the pilot's Python nor its loader's variables go along."""
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "BASH_ENV"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("X509_USER_PROXY", "/the/pilots/own")
    monkeypatch.setenv("BEARER_TOKEN", "the pilot's")
    rig.switcher = ContainedSwitcher(None)
    rig.options["environment"] = {"PATH": "/usr/bin:/bin", "SITE_SETUP": "1"}
    rig.fake.jobs = [make_job(argv=["/usr/bin/env", "-0"], env={"LD_LIBRARY_PATH": "/of/the/job"})]
    rig.run()
    printed = rig.fake.files["7/1/payload.log"].decode().split("\n")[-1].rstrip("\0").split("\0")
    found = dict(item.split("=", 1) for item in printed)
    assert found["LD_LIBRARY_PATH"] == "/of/the/job"
    assert found["X509_USER_PROXY"].startswith(f"{rig.scratch}/")
    known = {"PATH", "SITE_SETUP", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "X509_USER_PROXY", "PandaID"}
    assert set(found) - {"PANDA_ATTEMPT_NR", "PANDA_SITE", "LC_CTYPE"} == known


# --- payloads that go wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, 126, 127, 201, 202, 203, 204])
def test_a_payloads_exit_code_is_its_own_whatever_it_looks_like(rig: Rig, code: int) -> None:
    rig.fake.jobs = [make_job(argv=[SH, "-c", f"echo hello; exit {code}"], outputs=[{"lfn": "never"}])]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [("exe", code)]
    assert rig.fake.final.trans_exit_code == code
    assert rig.fake.files["7/1/payload.log"] == b"hello\n"


def test_a_payload_killed_by_a_signal_says_so(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=[SH, "-c", "kill -SEGV $$"])]
    rig.run()
    assert codes(rig.fake) == [("exe", 139)]
    assert "signal 11" in rig.fake.final.errors[0].diag


def test_missing_outputs_are_all_named(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=["touch", "b"], outputs=[{"lfn": n} for n in ("a", "b", "c")])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [("pilot", 1165)] * 2
    assert [error.diag.split(": ")[1][0] for error in rig.fake.final.errors] == ["a", "c"]
    assert "7/1/b" in rig.fake.files


def test_a_pilot_hears_that_a_job_has_not_finished(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.jobs = [make_job(7), make_job(8)]
    rig.fake.not_finished = "1 declared outputs are on no record: a"
    with caplog.at_level(logging.INFO):
        assert rig.run() == errors.EXIT_OK
    assert [report.job_id for report in rig.fake.reports if report.job_status == "finished"] == [7, 8], "it goes on"
    assert "failed ['an output could not be stored: 1 declared outputs are on no record: a']" in caplog.text


def test_the_time_limit_kills_and_even_a_payload_that_ignores_term(rig: Rig) -> None:
    script = "trap '' TERM; echo stubborn; while :; do sleep 0.1; done"
    rig.fake.jobs = [make_job(argv=[SH, "-c", script], walltime_s=1)]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [("pilot", 1213)]
    assert rig.fake.final.trans_exit_code == 137
    assert rig.fake.files["7/1/payload.log"] == b"stubborn\n"


def test_a_payload_far_over_its_memory_is_stopped(rig: Rig) -> None:
    class Greedy(FakeSwitcher):
        def launch(self, *args: Any, **kwargs: Any) -> Any:
            payload = super().launch(*args, **kwargs)
            payload.usage = lambda: Usage(cpu_s=0.0, rss_kib=3 * 1024 * 1024)  # type: ignore[method-assign]
            return payload

    rig.switcher = Greedy()
    rig.fake.jobs = [make_job(argv=["sleep", "60"], memory_mib=1000)]
    rig.run()
    assert codes(rig.fake) == [("pilot", 1212)]
    assert rig.fake.final.use is not None
    assert rig.fake.final.use.max_rss_mib == 3072


def test_everything_that_went_wrong_is_told_the_most_telling_first(rig: Rig) -> None:
    """Over its time and its memory at once, and its log is not taken: three errors, not the first one alone."""

    class Greedy(FakeSwitcher):
        def launch(self, *args: Any, **kwargs: Any) -> Any:
            payload = super().launch(*args, **kwargs)
            payload.usage = lambda: Usage(cpu_s=0.0, rss_kib=3 * 1024 * 1024)  # type: ignore[method-assign]
            return payload

    rig.switcher = Greedy()
    rig.fake.refused_files = "payload.log"
    rig.fake.jobs = [make_job(argv=["sleep", "60"], memory_mib=1000, walltime_s=1)]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.stop._take(signal.SIGTERM, None)
    thread.join(60)
    found = codes(rig.fake)
    assert found[0] == ("pilot", 1201)
    assert found[-1] == ("pilot", 1137)
    assert ("pilot", 1212) in found
    assert {str(error.blame) for error in rig.fake.final.errors} == {"site", "user", "system"}


def test_an_endless_log_is_cut_and_says_so(rig: Rig) -> None:
    rig.options["max_log_bytes"] = 1000
    rig.fake.jobs = [make_job(argv=[SH, "-c", "head -c 3000000 /dev/zero | tr '\\0' x; exit 0"])]
    rig.run()
    assert rig.fake.statuses[-1] == "finished"
    text = rig.fake.files["7/1/payload.log"]
    assert text.startswith(b"x" * 1000 + b"\n[the log was cut here: 3000000")


def test_binary_and_escape_sequences_do_not_reach_a_screen(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=["printf", "\\033[2Jred\\000\\377"])]
    rig.run()
    assert "\x1b" not in rig.fake.final.log_tail
    assert "\0" not in rig.fake.final.log_tail
    assert rig.fake.files["7/1/payload.log"] == b"\x1b[2Jred\0\xff"


# --- the pilot's log of a job ---------------------------------------------------------------------------------


def archive(fake: FakeDispatcher, name: str) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(fake.files[name])) as tar:
        found = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file is not None}


def test_every_end_of_a_job_leaves_the_pilots_log_of_it(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "airpanda")
    missing = [{"lfn": "data.txt", "source": "panda:1/data.txt"}]
    rig.fake.jobs = [
        make_job(7, argv=[SH, "-c", "echo hello; sleep 1"]),
        make_job(8, argv=[SH, "-c", "echo bad; exit 3"]),
        make_job(9, inputs=missing),
    ]
    assert rig.run() == errors.EXIT_OK
    good, bad, unrun = (archive(rig.fake, f"{i}/1/pilot-log.tgz") for i in (7, 8, 9))
    assert set(good) == set(bad) == {"job.json", "pilot.log", "node.json", "payload-tail.log", "samples.json"}
    assert set(unrun) == {"job.json", "pilot.log", "node.json"}
    told = json.loads(good["job.json"])
    assert (told["job_status"], told["trans_exit_code"], told["owner_dn"]) == ("finished", 0, DN)
    assert set(told["timing_s"]) >= {"proxy", "stage_in", "sandbox", "launch", "payload", "stage_out"}
    assert told["timing_s"]["payload"] > 0.5
    assert "job 7 attempt 1: the payload runs as" in good["pilot.log"]
    assert "job 8" not in good["pilot.log"]
    assert good["payload-tail.log"] == "hello\n"
    assert len(json.loads(good["samples.json"])) == 1
    assert "switch" in json.loads(good["node.json"])
    assert json.loads(bad["job.json"])["errors"][0]["code"] == 3
    assert json.loads(unrun["job.json"])["errors"][0]["code"] == 1331
    everything = "".join(text for parts in (good, bad, unrun) for text in parts.values())
    for secret in (PASSPHRASE, "lease-7-1", "pilot-token"):
        assert secret not in everything
    assert rig.leftovers() == []


def test_a_job_is_not_worse_for_a_log_that_could_not_be_kept(rig: Rig) -> None:
    rig.fake.refused_files = "pilot-log.tgz"
    rig.fake.jobs = [make_job()]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "running", "finished"]
    assert rig.fake.final.errors == []
    assert rig.leftovers() == []


# --- drills --------------------------------------------------------------------------------------------------


def test_a_kill_command_ends_the_payload(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.command = "tobekilled"
    thread.join(60)
    assert rig.fake.statuses == ["starting", "running", "cancelled"]
    assert codes(rig.fake) == [("pilot", 1144)]


def test_heartbeats_carry_the_live_log_and_use(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=[SH, "-c", "sleep 1; echo early; sleep 2"])]
    rig.run()
    beats = [report for report in rig.fake.reports if report.job_status == "running"]
    assert len(beats) >= 4
    assert [beat.log_tail for beat in beats if beat.log_tail] == ["early\n"]
    assert any(beat.use and beat.use.wall_s > 0 for beat in beats)
    assert any(beat.model_fields_set <= {"job_id", "attempt_nr", "token", "job_status", "node"} for beat in beats)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("tail", "hello\ufffd[2J\n"),
        ("ps", "61.25"),
        ("ls", "    5 "),
        ("gdb", "this pilot cannot show 'gdb'; it knows tail, ps, ls"),
        ("x" * 10_000, "this pilot cannot show 'xxx"),
    ],
)
def test_what_a_person_asks_is_answered_at_once(rig: Rig, what: str, found: str) -> None:
    script = "printf 'hello\\033[2J\\n'; printf 12345 > data; cp data .x509up-dontshow; "
    script += "touch \"$(printf 'a\\033b')\"; sleep 61.25"
    rig.fake.jobs = [make_job(argv=[SH, "-c", script])]
    rig.fake.heartbeat_s = 0.5
    thread = rig.start()
    rig.fake.wait_for("running")
    wait_for(lambda: any(seen.command == "sleep 61.25" for seen in descendants(os.getpid())))
    time.sleep(0.3)  # what it has printed is read meanwhile
    rig.fake.debug = what
    wait_for(lambda: any(report.debug_output for report in rig.fake.reports))
    rig.fake.command = "tobekilled"
    thread.join(60)
    (answer,) = [report.debug_output for report in rig.fake.reports if report.debug_output]
    assert answer.startswith(what[:100] + " at 20")
    assert found in answer
    assert "\x1b" not in answer
    assert "dontshow" not in answer or what == "ps"
    if what == "ls":
        assert "a\ufffdb" in answer


def test_a_question_that_cannot_be_answered_is_answered_with_the_reason_and_holds_up_nothing(rig: Rig) -> None:
    """Not before the payload runs, and not by a launcher that hangs and then fails."""

    class Hangs(FakeSwitcher):
        def launch(self, *args: Any, **options: Any) -> Any:
            if options["label"].endswith(" pilot"):
                time.sleep(3.0)
                raise IdentitySwitchError("the launcher is gone")
            rig.fake.debug = "ps"
            wait_for(lambda: not rig.fake.debug)
            return super().launch(*args, **options)

    rig.switcher = Hangs()
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.debug = "ls"
    before = len(rig.fake.reports)
    wait_for(lambda: not rig.fake.debug)
    during = len(rig.fake.reports) - before
    rig.fake.command = "tobekilled"
    thread.join(60)
    answers = [report.debug_output.split("\n", 1)[1] for report in rig.fake.reports if report.debug_output]
    assert answers == ["the payload has not started", "the pilot cannot show it: the launcher is gone"]
    assert during >= 5, "heartbeats went on meanwhile"
    assert rig.leftovers() == []


def test_a_dispatcher_that_is_down_for_a_while_changes_nothing(rig: Rig) -> None:
    rig.options["idle_limit_s"] = 5.0
    rig.fake.jobs = [make_job(argv=[SH, "-c", "sleep 1.2; echo survived"])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.down = True
    time.sleep(2.0)
    rig.fake.down = False
    rig.fake.wait_for("finished")
    assert rig.fake.files["7/1/payload.log"] == b"survived\n"
    rig.stop._take(signal.SIGTERM, None)
    thread.join(60)


def test_a_lease_that_ends_unheard_ends_the_payload(rig: Rig) -> None:
    rig.fake.lease_s = 1.0
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.down = True
    rig.switcher.payloads[0]._process.wait(60)
    rig.fake.down = False
    rig.fake.wait_for("failed")
    assert codes(rig.fake) == [("pilot", 1318)]
    rig.stop._take(signal.SIGTERM, None)
    thread.join(60)


def test_after_the_end_of_the_lease_no_payload_starts(rig: Rig) -> None:
    asked = threading.Event()

    def late(pointer: Any, lifetime: timedelta) -> FakeProxy:
        rig.fake.down = True
        asked.set()
        time.sleep(4.5)
        return FakeProxy()

    rig.fake.lease_s, rig.retrieve = 1.0, late
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    thread = rig.start()
    assert asked.wait(60)
    time.sleep(5.5)
    rig.fake.down = False
    rig.fake.wait_for("failed")
    assert codes(rig.fake) == [("pilot", 1318)]
    assert rig.switcher.payloads == []
    rig.stop._take(signal.SIGTERM, None)
    thread.join(60)
    assert rig.leftovers() == []


def test_a_fenced_attempt_is_stopped_and_not_reported(rig: Rig) -> None:
    rig.fake.jobs = [make_job(argv=["sleep", "60"], outputs=[{"lfn": "x"}])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.stale = True
    rig.switcher.payloads[0]._process.wait(60)
    thread.join(60)
    assert rig.fake.statuses == ["starting", "running"]
    assert rig.fake.files == {}
    assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 1201), (signal.SIGXCPU, 1204), (signal.SIGUSR1, 1207), (signal.SIGINT, 1208)]
)
def test_a_signal_of_the_batch_system_is_reported_and_everything_cleaned(rig: Rig, number: int, code: int) -> None:
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.stop._take(number, None)
    thread.join(60)
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [("pilot", code)]
    assert rig.fake.final.errors[0].blame == "site"
    assert rig.fake.workers[-1].status == "finished"
    assert rig.code == 128 + number
    assert rig.leftovers() == []


def test_a_signal_while_the_dispatcher_is_away_ends_the_pilot_within_one_grace_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log, pilot's log and final report wait for it together, not one after another."""
    monkeypatch.setattr(course, "STOPPING_PATIENCE_S", 10.0)
    monkeypatch.setattr(course, "LEAST_PATIENCE_S", 0.2)
    monkeypatch.setattr(agent, "_STATUS_PATIENCE_S", 0.2)
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.down = True
    begin = time.monotonic()
    rig.stop._take(signal.SIGTERM, None)
    thread.join(60)
    assert not thread.is_alive()
    assert 9 < time.monotonic() - begin < 28, "and not three times as long"
    assert rig.code == 128 + signal.SIGTERM
    assert rig.leftovers() == []


def test_a_signal_before_the_payload_hands_the_job_back(rig: Rig) -> None:
    def slow(pointer: Any, lifetime: timedelta) -> FakeProxy:
        rig.stop._take(signal.SIGTERM, None)
        return FakeProxy()

    rig.retrieve = slow
    rig.fake.jobs = [make_job()]
    assert rig.run() == 128 + signal.SIGTERM
    assert rig.fake.statuses == ["starting", "activated"]
    assert rig.switcher.launched == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"disk_mib": 10**9}, "1000000000 MiB of disk of"),
        ({"memory_mib": 10**7}, "10000000 MiB of memory of"),
        ({"cores": 4000}, "4000 cores of 1"),
    ],
)
def test_a_job_that_asks_for_more_than_was_offered_goes_back_and_the_node_goes_on(
    rig: Rig, asked: dict[str, int], words: str
) -> None:
    rig.options["idle_limit_s"] = 1.5
    rig.fake.jobs = [make_job(7, **asked), make_job(8, owner_dn=BOB)]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "activated", "starting", "running", "finished"]
    (error,) = next(report for report in rig.fake.reports if report.job_status == "activated").errors
    assert (error.code, error.blame) == (1319, "system")
    assert words in error.diag


def test_a_full_disk_hands_the_job_back_and_benches_the_node(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.free_disk_mib
    taken: list[Path] = []
    monkeypatch.setattr(loop, "free_disk_mib", lambda place: 100 if taken else real(place))
    monkeypatch.setattr(job, "free_disk_mib", lambda place: taken.append(place) or 5)
    rig.fake.jobs = [make_job(7), make_job(8)]
    assert rig.run() == errors.EXIT_BENCHED
    assert rig.fake.statuses == ["starting", "activated"]
    assert codes(rig.fake) == [("pilot", 1098)]


def test_the_pilot_retires_before_its_slot_ends(rig: Rig) -> None:
    rig.options["slot"] = Slot(cores=1, memory_mib=10, disk_mib=10, walltime_s=6)
    rig.options["idle_limit_s"] = 60.0
    begin = time.monotonic()
    assert rig.run() == errors.EXIT_OK
    assert time.monotonic() - begin < 50
    assert 1 <= rig.fake.offers[0].remaining_time <= 6
    assert "time" in rig.fake.workers[-1].reason


def test_an_error_of_the_switch_after_the_start_is_no_hand_back(rig: Rig) -> None:
    class Breaks(FakeSwitcher):
        def get(self, *args: Any, **kwargs: Any) -> Any:
            raise IdentitySwitchError("gone", exit_code=202)

    rig.switcher = Breaks()
    rig.fake.jobs = [make_job(outputs=[{"lfn": "x"}])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [("pilot", 1226)]


def test_outputs_are_fetched_again_after_a_launcher_was_killed(rig: Rig) -> None:
    class BreaksOnce(FakeSwitcher):
        gets = 0

        def get(self, sandbox: Path, proxy: Path, names: Any, into: Path, **options: Any) -> Any:
            self.gets += 1
            (into / "half").touch()
            if self.gets == 1:
                raise IdentitySwitchError("tar ended with 137")
            return super().get(sandbox, proxy, names, into, **options)

    rig.switcher = BreaksOnce()
    rig.fake.jobs = [make_job(argv=["sh", "-c", "echo made > x"], outputs=[{"lfn": "x"}])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"]
    assert rig.fake.files["7/1/x"] == b"made\n"
    assert rig.switcher.gets == 2
    assert rig.leftovers() == []
