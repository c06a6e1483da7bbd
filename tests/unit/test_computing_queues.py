"""Queue files: every error names file, line and key; nothing wrong becomes a default."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from airpanda.computing.queues import CREDENTIAL_SCOPES, PandaQueue, load_queue, load_queues, parse_queue
from airpanda.core.errors import ConfigurationError
from airpanda.core.identity import IdentityPolicy
from airpanda.messages import CredentialScope

EXAMPLES = Path(__file__).resolve().parents[2] / "include/queues"
GOOD = """\
[queue]
name = "DEMO"
[slot]
cores = 2
[ce]
kind = "local"
directory = "/var/lib/pilots"
enter = ["/sbin/enter", "a b"]
[pilot]
code = "/opt/airpanda/plugins"
dispatcher_url = "https://panda.example.org:25443/panda"
ca_dir = "/etc/grid-security/certificates"
proxy = "/etc/grid-security/pilot.proxy"
[environment]
PATH = "/usr/bin:/bin"
"""


def refused(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_queue(text, "DEMO.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("cores = 2", "cores = ", 4, "DEMO.toml:4"),
        ("cores = 2", "corse = 2", 4, "did you mean 'cores'?"),
        ("cores = 2", "cores = -2", 4, "cores = -2 must be more than 0"),
        ("cores = 2", "cores = 0", 4, "more than 0"),
        ("cores = 2", "cores = 1.5", 4, "whole number"),
        ("cores = 2", "cores = true", 4, "whole number"),
        ("cores = 2", 'cores = "2"', 4, "whole number"),
        ("cores = 2", "cores = 2\ncores = 3", 5, "DEMO.toml:5"),
        ("[slot]", "[slots]", 3, "did you mean 'slot'?"),
        ("[slot]", "[slot]\n[queue]", 4, "DEMO.toml:4"),
        ('name = "DEMO"', 'name = "../x"', 2, "letters"),
        ('name = "DEMO"', 'nam = "DEMO"', 2, "did you mean 'name'?"),
        ('name = "DEMO"', 'name = "DEMO"\nidentity_policy = "required"', 3, "REQUIRED, OPTIONAL, NEVER"),
        ('name = "DEMO"', 'name = "DEMO"\nstate = "on"', 3, "online or offline"),
        (
            'name = "DEMO"',
            'name = "DEMO"\ncredential_scope = "owner"',
            3,
            "'owner' must be one of job, task, user",
        ),
        ('name = "DEMO"', 'name = "DEMO"\ncredential_scope = []', 3, "must be one of job, task, user"),
        ('kind = "local"', 'kind = "locla"', 6, "kind"),
        ('kind = "local"', "", 5, "None"),
        ("[pilot]", "[factory]\nenabeld = true\n[pilot]", 10, "did you mean 'enabled'?"),
        ("[pilot]", "[factory]\nmax_pilots = -5\n[pilot]", 10, "max_pilots = -5 must be more than 0"),
        ("[pilot]", "[factory]\nrunning_ratio = -0.5\n[pilot]", 10, "running_ratio = -0.5 must be 0 or more"),
        ("[pilot]", "[factory]\nrunning_ratio = inf\n[pilot]", 10, "must be a number"),
        ("[pilot]", "[factory]\nmin_queued = 101\n[pilot]", 10, "min_queued = 101 must not be more than"),
        ("[pilot]", "[ces.far]\nkind = 'slrum'\n[pilot]", 10, "[ces.far] kind = 'slrum' is no computing element"),
        ("[pilot]", "[ces.far]\nkind = 'slurm'\ndirectry = '/d'\n[pilot]", 11, "did you mean 'directory'?"),
        ("[pilot]", "[ces.'a b']\nkind = 'slurm'\n[pilot]", 0, "must be named by letters"),
        ("[pilot]", "[ces.'local:DEMO']\nkind = 'slurm'\n[pilot]", 0, "like no other"),
        ("[pilot]", "[pilot]\nmax_payloads = -1", 10, "max_payloads = -1 must be 0 or more"),
        ("[pilot]", "[pilot]\nlooping_s = 0", 10, "looping_s = 0 must be more than 0"),
        ("[pilot]", '[pilot]\nfeatures = ["a b"]', 10, "features = 'a b' must be letters"),
        ("[pilot]", '[pilot]\nchecks = "here"', 10, "absolute path"),
        ('"/var/lib/pilots"', '"pilots"', 7, "absolute path"),
        ('["/sbin/enter", "a b"]', '"/sbin/enter"', 8, "list of texts"),
        ('["/sbin/enter", "a b"]', '["enter"]', 8, "absolute path"),
        ('["/sbin/enter", "a b"]', '["/a\\u0000b"]', 8, "list of texts"),
        ("https://panda", "http://panda", 11, "https"),
        ("https://panda", "ftp://panda", 11, "https"),
        ("https://panda", "https://user:pw@panda", 11, "https"),
        ('"/opt/airpanda/plugins"', '"plugins"', 10, "absolute path"),
        ('"/etc/grid-security/pilot.proxy"', '"/p"\nmyproxy = "host"', 14, "host:port"),
        ('"/etc/grid-security/pilot.proxy"', '"/p"\ntoken_only = "yes"', 14, "true or false"),
        ('"/etc/grid-security/pilot.proxy"', '"/p"\ntoken_only = 1', 14, "true or false"),
        ('"/etc/grid-security/pilot.proxy"', '"/p"\nhide = ["x"]', 14, "absolute path"),
        ('PATH = "/usr/bin:/bin"', '"A B" = "x"', 15, "environment variable"),
        ('PATH = "/usr/bin:/bin"', "PATH = 1", 15, "must be a text"),
    ],
)
def test_errors_name_file_line_and_what_is_wrong(old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    message = refused(GOOD.replace(old, new, 1))
    assert message.startswith(f"DEMO.toml:{line}" if line else "DEMO.toml:")
    assert words in message


@pytest.mark.parametrize("section", ["queue", "ce", "pilot"])
def test_a_missing_section_is_named(section: str) -> None:
    text = re.sub(rf"(?ms)^\[{section}\]\n.*?(?=^\[)", "", GOOD)
    assert f"[{section}] is missing" in refused(text)


@pytest.mark.parametrize("key", ["directory", "code", "dispatcher_url", "ca_dir", "proxy"])
def test_a_missing_key_is_named(key: str) -> None:
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key} ="))
    assert f"{key} is missing" in refused(text)


def test_a_section_that_is_no_table() -> None:
    assert "must be a table" in refused("slot = 3\n" + GOOD.replace("[slot]\ncores = 2\n", ""))


def test_a_file_must_be_named_as_its_queue(tmp_path: Path) -> None:
    (tmp_path / "OTHER.toml").write_text(GOOD)
    with pytest.raises(ConfigurationError, match=r"OTHER\.toml:2: .*'OTHER'"):
        load_queues(tmp_path)


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    (tmp_path / "DEMO.toml").write_text(GOOD)
    (tmp_path / "demo.toml").write_text(GOOD.replace('"DEMO"', '"demo"'))
    with pytest.raises(ConfigurationError, match="already defined"):
        load_queues(tmp_path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no directory"):
        load_queues(tmp_path / "absent")
    (tmp_path / "DEMO.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_queue(tmp_path / "DEMO.toml")


def test_defaults_are_the_safe_ones() -> None:
    queue = parse_queue(GOOD, "DEMO.toml")
    assert queue.identity_policy is IdentityPolicy.REQUIRED
    assert queue.is_online
    assert not queue.token_only
    assert parse_queue(GOOD.replace("[environment]", "token_only = true\n[environment]"), "DEMO.toml").token_only
    assert (queue.slot.cores, queue.slot.walltime_s) == (2, 7200)
    assert queue.ce.enter == ("/sbin/enter", "a b")


def test_scopes_of_credentials_are_those_of_the_dispatcher() -> None:
    assert list(CREDENTIAL_SCOPES) == [scope.value for scope in CredentialScope]
    narrow = parse_queue(GOOD.replace('name = "DEMO"', 'name = "DEMO"\ncredential_scope = "job"', 1), "DEMO.toml")
    assert PandaQueue.from_wire(json.loads(json.dumps(narrow.to_wire()))) == narrow
    assert narrow.fingerprint != parse_queue(GOOD, "DEMO.toml").fingerprint
    assert parse_queue(GOOD, "DEMO.toml").credential_scope == "user"


def test_the_wire_form_is_json_and_comes_back_the_same() -> None:
    queue = parse_queue(GOOD, "DEMO.toml")
    assert PandaQueue.from_wire(json.loads(json.dumps(queue.to_wire()))) == queue


def test_a_queue_may_have_more_elements_each_with_a_name() -> None:
    more = '[ces.far]\nkind = "slurm"\ndirectory = "/d"\n[factory]\nenabled = true\nrunning_ratio = 2\n'
    queue = parse_queue(GOOD + more, "DEMO.toml")
    assert list(queue.ces) == ["local:DEMO", "far"]
    assert queue.at("far").ce.kind == "slurm"
    assert queue.at("") == queue.at("local:DEMO") == parse_queue(GOOD + more[more.index("[factory]") :], "DEMO.toml")
    assert PandaQueue.from_wire(json.loads(json.dumps(queue.to_wire()))) == queue
    assert queue.fingerprint != parse_queue(GOOD, "DEMO.toml").fingerprint
    with pytest.raises(ConfigurationError, match="no computing element 'near'"):
        queue.at("near")


@pytest.mark.parametrize("wire", [{}, {"queue": []}, {"queue": {"name": "X"}, "ce": {}, "pilot": {}, "x": {}}])
def test_a_wrong_wire_form_is_refused(wire: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="on the wire"):
        PandaQueue.from_wire(wire)


def test_the_examples_load_and_are_offline() -> None:
    queues = load_queues(EXAMPLES)
    assert {name: queue.is_online for name, queue in queues.items()} == {
        "EXAMPLE_ARC": False,
        "EXAMPLE_GRAM": False,
        "EXAMPLE_KUBERNETES": False,
        "EXAMPLE_OPTIONAL": False,
        "EXAMPLE_REQUIRED": False,
        "EXAMPLE_SCHEDD": False,
        "EXAMPLE_SLURM": False,
    }


KUBERNETES = """\
[queue]
name = "K"
[ce]
kind = "kubernetes"
url = "https://kube.example.org:6443"
ca_file = "/etc/kube-ca.pem"
namespace = "pilots"
image = "wn:1"
[pilot]
code = "/opt/airpanda/plugins"
dispatcher_url = "https://panda.example.org"
ca_dir = "/etc/grid-security/certificates"
proxy = "/etc/grid-security/pilot.proxy"
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("https://kube", "http://kube", 5, "must be https://"),
        ('"/etc/kube-ca.pem"', '"kube-ca.pem"', 6, "absolute path on this machine"),
        ('"pilots"', '"Pilots"', 7, "lower-case"),
        ('"wn:1"', '"wn 1"', 8, "container image"),
        ('image = "wn:1"', "", 3, "image is missing"),
        ("[pilot]", 'node_selector = ["pool"]\n[pilot]', 9, "must be name=value"),
        ("[pilot]", 'host_paths = ["cvmfs"]\n[pilot]', 9, "absolute path"),
        ("[pilot]", "uid = 0\n[pilot]", 9, "uid = 0 must be more than 0"),
        ("proxy = ", "#", 9, "proxy is missing"),
    ],
)
def test_errors_of_a_cluster_name_file_line_and_what_is_wrong(old: str, new: str, line: int, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_queue(KUBERNETES.replace(old, new, 1), "K.toml")
    assert str(caught.value).startswith(f"K.toml:{line}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('collector = "https://ce"', "collector = 'https://ce' must be host or host:port"),
        ('collector = "ce"\nschedd = "a b"', "schedd = 'a b' must be letters"),
        ('collector = "ce"\noptions = ["a = b\\nqueue 5"]', "must not hold line breaks"),
        ('colector = "ce"', "did you mean 'collector'?"),
    ],
)
def test_errors_of_a_schedd_name_what_is_wrong(line: str, words: str) -> None:
    ours = re.sub(r"(?ms)^url.*?(?=^\[pilot\])", line.replace("\\", "\\\\") + "\n", KUBERNETES)
    with pytest.raises(ConfigurationError, match=r"^K\.toml:") as caught:
        parse_queue(ours.replace('"kubernetes"', '"schedd"'), "K.toml")
    assert words in str(caught.value)
