"""``python -m airpanda queues test``: a real pilot on a real worker node, and what is said where it cannot work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.dispatcher import job_database, template_database
from support.launcher import Site, make_site
from support.pilot_chain import PILOTS, PLUGINS, WRAPPER, Chain, running_chain
from support.postgres import Database, postgres

from airpanda.__main__ import main
from airpanda.core.clock import utcnow
from airpanda.dispatcher.tokens import Issuer

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site():
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


@pytest.fixture
def chain(site: Site, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    """A gateway, and queues that differ in one thing: DEMO is right."""
    with running_chain(site, None, job_database, tmp_path) as chain:  # type: ignore[arg-type]
        good = (tmp_path / "queues" / "DEMO.toml").read_text()
        for name, old, new in (
            ("NOSWITCH", f'glexec = "{site.glexec}"', 'glexec = "/nonexistent/glexec"'),
            ("NOWHERE", f"localhost:{chain.gateway.port}", "localhost:1"),
            ("NOACCOUNT", 'account = "pilot"', 'account = "nobody-of-this-name"'),
            ("NOCODE", f'code = "{PLUGINS}"', 'code = "/nonexistent/plugins"'),
        ):
            assert old in good
            (tmp_path / "queues" / f"{name}.toml").write_text(good.replace(old, new).replace('"DEMO"', f'"{name}"'))
        (tmp_path / "pilot").symlink_to(WRAPPER.parent)
        token = Issuer(tmp_path / "signing.pem").client_token(
            "tests", ["*"], ["*"], timedelta(hours=1), utcnow(), pilots=True
        )
        (tmp_path / "token").write_text(token.reveal())
        yield chain


def run(chain: Chain, directory: Path, name: str, *more: str) -> int:
    ca = str(chain.site.pki.ca_dir)
    argv = ["--include", str(directory), "--token-file", str(directory / "token"), "--ca-file", ca]
    argv += ["--dispatcher", f"https://localhost:{chain.gateway.port}"]
    return main(["queues", "test", name, *argv, *more])


def left(chain: Chain) -> list[str]:
    """Pilots' directories on the node, and pilots that are on record as live."""
    directory = chain.site.node.path(Path(PILOTS))
    places = [path.name for path in directory.iterdir() if path.name.startswith("ap-")] if directory.exists() else []
    return places + [str(row) for row in chain.sql("SELECT pilot_id, state FROM panda_pilot WHERE ended_at IS NULL")]


def test_a_queue_that_works_shows_its_node_and_keeps_nothing(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(chain, tmp_path, "DEMO") == 0, chain.gateway.log
    out = capsys.readouterr().out
    transcript = json.loads(out[out.index("\n{") : out.index("\n}") + 2])
    assert transcript["switch"]["works"] is True
    assert transcript["uid"] > 0
    assert "the pilot works on node" in out
    assert left(chain) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NOSWITCH", "refuses to work"),
        ("NOCODE", "never reached the dispatcher"),
        ("NOACCOUNT", "nobody-of-this-name"),
        ("UNKNOWN", "there is no queue 'UNKNOWN'"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    chain: Chain, tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(chain, tmp_path, name) == 1
    assert words in capsys.readouterr().err
    assert left(chain) == []


def test_a_pilot_that_says_nothing_is_waited_for_and_ended(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(chain, tmp_path, "NOWHERE", "--timeout", "2") == 1
    out, err = capsys.readouterr()
    assert "no word from the pilot within 2 s" in err
    assert "cancelled" in out or "failed" in out
    assert left(chain) == []
