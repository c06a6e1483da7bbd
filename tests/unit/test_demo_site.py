"""What the demonstration writes is what the product reads."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from airpanda.computing.queues import parse_queue
from airpanda_demo.errors import DemoError
from airpanda_demo.options import Ports
from airpanda_demo.place import Place, place_for
from airpanda_demo.site import Node, fill_in, queue_text

CHECKOUT = Path("/home/some one/airpanda")
PLACE = Place(Path("/var/tmp/demo of mine"))
PORTS = Ports(8080, 8443, 7512)


def node(**changes: object) -> Node:
    base = {
        "enter": ("/x y/enter",), "account": "pilot", "directory": Path("/var/tmp/pilots"), "ca_dir": Path("/ca"),
        "proxy": Path("/home/pilot/p"), "glexec": "/run/airpanda/sbin/glexec",
    }  # fmt: skip
    return Node(**{**base, **changes})  # type: ignore[arg-type]


def test_as_root_the_queue_requires_the_switch() -> None:
    queue = parse_queue(queue_text(node(), PLACE, PORTS, switches=True), "DEMO.toml")
    assert queue.identity_policy == "REQUIRED"
    assert queue.ce.enter == ("/x y/enter",)
    assert queue.pilot.dispatcher_url == "https://localhost:8443"


def test_without_a_launcher_the_queue_says_optional_and_hides_the_site() -> None:
    alone = node(enter=(), account="", glexec="", hide=(PLACE.root,), show=(PLACE.software,))
    queue = parse_queue(queue_text(alone, PLACE, PORTS, switches=False), "DEMO.toml")
    assert queue.identity_policy == "OPTIONAL"
    assert [str(path) for path in queue.pilot.hide] == [str(PLACE.root)]


def test_values_survive_configparser() -> None:
    text = fill_in("# $AIRPANDA_X stays\n[a]\nb = $AIRPANDA_X\n", {"AIRPANDA_X": "50%25/a b"})
    parsed = configparser.ConfigParser()
    parsed.read_string(text)
    assert parsed["a"]["b"] == "50%25/a b"
    assert "# $AIRPANDA_X stays" in text


def test_a_value_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill_in("[a]\nb = $AIRPANDA_UNKNOWN\n", {})


@pytest.mark.parametrize("name", ["/var/tmp/100%", "/var/tmp/$HOME", '/var/tmp/"x', "/var/tmp/a\nb", "/var/tmp/a\\b"])
def test_names_that_configuration_files_cannot_hold(name: str) -> None:
    with pytest.raises(DemoError, match="which configuration files cannot hold; use another path"):
        place_for({"AIRPANDA_DEMO_DIR": name}, CHECKOUT)


@pytest.mark.parametrize("directory", [CHECKOUT, CHECKOUT / "demo", CHECKOUT.parent, Path("/")])
def test_the_checkout_stays_clean(directory: Path) -> None:
    with pytest.raises(DemoError, match="must lie outside of the checkout"):
        place_for({"AIRPANDA_DEMO_DIR": str(directory)}, CHECKOUT)


def test_the_default_place() -> None:
    assert str(place_for({}, CHECKOUT).root) == "/var/tmp/airpanda-demo"
