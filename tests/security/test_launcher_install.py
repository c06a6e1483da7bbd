"""Installing, checking, and starting the launcher without its daemon: by sudo's word, and by root."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launcher import (
    ALICE_UID,
    PILOT_UID,
    PLUGINS,
    Ran,
    Site,
    host_pids,
    host_status,
    make_site,
    program_of,
    wait_for,
)
from support.need import need_program, need_root

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.install import install
from airpanda_demo.worker_node import INSTALLED, PREFIX

pytestmark = [pytest.mark.root, pytest.mark.integration]

SUDO = {"SUDO_UID": str(PILOT_UID), "SUDO_GID": str(PILOT_UID), "SUDO_USER": "pilot"}


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    yield from make_site()


def as_root(site: Site, *command: str, **env: str) -> Ran:
    variables = [f"{name}={value}" for name, value in env.items()]
    done = subprocess.run([*site.node.root_argv(), *variables, *command], capture_output=True, text=True, timeout=60)
    return Ran(done.returncode, done.stdout, done.stderr)


# --- without the daemon ---------------------------------------------------------------------------------------------


def test_by_sudo_the_caller_is_who_sudo_says(site: Site) -> None:
    ran = as_root(site, str(INSTALLED.launcher), "/usr/bin/id", "-u", GLEXEC_CLIENT_CERT=str(site.put_proxy()), **SUDO)
    assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n"), ran
    assert site.last_record()["launcher"] == "sudo"
    assert site.last_record()["caller"] == "pilot"


@pytest.mark.parametrize(
    "uid", ["0", str(ALICE_UID), "4242", "-1", "x", ""], ids=["root", "target", "another", "negative", "text", "empty"]
)
def test_by_sudo_from_somebody_else(site: Site, uid: str) -> None:
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "SUDO_UID": uid, "SUDO_GID": str(ALICE_UID)}
    assert as_root(site, str(INSTALLED.launcher), "/usr/bin/id", **env).code == 203


def test_a_failure_nobody_expected_is_said_and_runs_nothing(site: Site) -> None:
    plugins = str(Path(__file__).resolve().parents[2] / "plugins")
    program = (
        f"import sys; sys.path[:0] = [{plugins!r}]; from pathlib import Path; "
        "from airpanda.glexec.launcher import direct; "
        "direct._caller = lambda environ: 1 / 0; direct.main(Path('/nowhere'), ['/usr/bin/id'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (202, "")
    assert "glexec: the launcher failed: ZeroDivisionError" in done.stderr


def test_root_itself_only_where_the_site_allows_it(site: Site) -> None:
    proxy = str(site.put(site.proxy().to_pem().reveal(), uid=0, where=Path("/run/airpanda")))
    assert as_root(site, str(INSTALLED.launcher), "/usr/bin/id", GLEXEC_CLIENT_CERT=proxy).code == 203
    config = site.node.path(INSTALLED.config)
    text = config.read_text()
    config.write_text(text + "allow_root = yes\n")
    try:
        ran = as_root(site, str(INSTALLED.launcher), "/usr/bin/id", "-u", GLEXEC_CLIENT_CERT=proxy)
    finally:
        config.write_text(text)
    assert ran.out == f"{ALICE_UID}\n"


def test_an_ordinary_account_cannot_start_it_directly(site: Site) -> None:
    ran = site.run(str(INSTALLED.launcher), "/usr/bin/id", env={"GLEXEC_CLIENT_CERT": str(site.put_proxy()), **SUDO})
    assert (ran.code, ran.out) == (203, "")


def test_codes_and_environment_are_the_same(site: Site) -> None:
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), "LD_LIBRARY_PATH": "/x", "MALLOC_ARENA_MAX": "1", **SUDO}
    assert as_root(site, str(INSTALLED.launcher), "/bin/sh", "-c", "exit 203", **env).code == 204
    assert as_root(site, str(INSTALLED.launcher), "/bin/sh", "-c", "kill -TERM $$", **env).code == 143
    assert as_root(site, str(INSTALLED.launcher), "/missing", **env).code == 126
    ran = as_root(site, str(INSTALLED.launcher), "/usr/bin/env", **env)
    names = {line.split("=", 1)[0] for line in ran.out.splitlines()}
    assert names == {"HOME", "USER", "LOGNAME", "PATH", "X509_USER_PROXY"}


def test_inherited_descriptors_of_root_are_closed(site: Site) -> None:
    script = f'exec 9</etc/shadow; exec "{INSTALLED.launcher}" /bin/ls /proc/self/fd'
    ran = as_root(site, "/bin/sh", "-c", script, GLEXEC_CLIENT_CERT=str(site.put_proxy()), **SUDO)
    assert ran.out.split() == ["0", "1", "2", "3"]


def launchers(marker: str) -> list[int]:
    found = []
    for pid in host_pids():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if program_of(line) == "airpanda-launcher" and marker.encode() in line and host_status(pid):
            found.append(pid)
    return found


@pytest.mark.parametrize("victim", ["launcher", "parent"])
def test_nothing_survives_the_launcher_or_a_killed_sudo(site: Site, victim: str) -> None:
    marker = secrets.token_hex(6)
    script = f"'{INSTALLED.launcher}' /bin/sh -c ': {marker}; trap \"\" TERM; setsid sleep 600 & sleep 600'; true"
    env = [f"{name}={value}" for name, value in {"GLEXEC_CLIENT_CERT": str(site.put_proxy()), **SUDO}.items()]
    process = subprocess.Popen(
        [*site.node.root_argv(), *env, "/bin/sh", "-c", script], stdin=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: len(site.processes(ALICE_UID)) >= 2)
    found = launchers(marker)
    top = next(pid for pid in found if int(host_status(pid)["PPid"]) not in found)
    os.kill(top if victim == "launcher" else int(host_status(top)["PPid"]), signal.SIGKILL)
    assert wait_for(lambda: not site.processes(ALICE_UID))
    process.wait(60)


# --- check ----------------------------------------------------------------------------------------------------------


def check(site: Site, proxy: Path, caller: str = "pilot") -> Ran:
    code = f"import sys; sys.path.insert(0, '{PREFIX}/lib'); from airpanda.glexec.cli import main; "
    code += f"sys.exit(main(['check', '--prefix', '{PREFIX}', '--caller', '{caller}', '{proxy}']))"
    return as_root(site, sys.executable, "-I", "-c", code)


def test_check_says_how_a_proxy_maps(site: Site) -> None:
    ran = check(site, site.put_proxy())
    assert ran.code == 0, ran
    assert "WRONG" not in ran.out
    assert site.pki.dn("alice") in ran.out
    assert f"alice (uid {ALICE_UID}, groups {ALICE_UID})" in ran.out


def test_check_says_what_is_wrong_and_what_glexec_would_return(site: Site) -> None:
    unmapped = check(site, site.put_proxy("carol"))
    assert (unmapped.code, unmapped.out.splitlines()[-1][:6]) == (1, "WRONG ")
    assert "no line for this DN (glexec would return 203)" in unmapped.out
    assert "(glexec would return 201)" in check(site, site.put(b"garbage")).out
    assert "(glexec would return 203)" in check(site, site.put_proxy(), caller="alice").out
    config = site.node.path(INSTALLED.config)
    config.chmod(0o666)
    try:
        assert "(glexec would return 202)" in check(site, site.put_proxy()).out
    finally:
        config.chmod(0o640)


# --- install --------------------------------------------------------------------------------------------------------


def test_the_installed_tree_is_roots_and_self_contained(site: Site) -> None:
    for directory, names, files in os.walk(site.node.path(PREFIX)):
        for name in [*names, *files]:
            status = os.lstat(os.path.join(directory, name))
            assert status.st_uid == 0, name
            assert not status.st_mode & 0o022 or name == "launcher.socket", name
    code = f"import sys; sys.path.insert(0, '{PREFIX}/lib'); import airpanda.glexec.launcher.daemon as d; "
    code += "print([m.__file__ for n, m in sys.modules.items() if n.startswith('airpanda')])"
    ran = as_root(site, sys.executable, "-I", "-c", code)
    assert ran.out.count(f"{PREFIX}/lib/airpanda/") == ran.out.count("'") / 2


def call_install(prefix: Path, **changes: object) -> None:
    arguments: dict[str, object] = {
        "python": Path(sys.executable),
        "callers": ["pilot"],
        "ca_dir": Path("/c"),
        "mapfile": Path("/m"),
        "log_file": Path("/l"),
        "check_python": False,
        **changes,
    }
    install(prefix, **arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="about accounts that are not root")
def test_others_than_root_can_install_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="only be installed by root"):
        call_install(tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()


def test_unsafe_places_are_refused(tmp_path: Path) -> None:
    """A temporary directory has /tmp above it, which everybody can write to."""
    need_root()
    with pytest.raises(ConfigurationError, match="writable by group or others"):
        call_install(tmp_path / "prefix")


def test_an_interpreter_that_others_could_change_is_refused(tmp_path: Path) -> None:
    need_root()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o777)
    with pytest.raises(ConfigurationError, match="can be changed by others"):
        call_install(tmp_path / "prefix", python=python, check_python=True)


def test_options_that_are_none_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    need_root()
    for options in ({"hidee": "/x"}, {"minimum_uid": "none"}):
        with pytest.raises(ConfigurationError):
            call_install(tmp_path / "prefix", options=options)
    assert not (tmp_path / "prefix").exists()


def test_what_a_site_gets_besides_the_programs(site: Site) -> None:
    share = site.node.path(PREFIX / "share")
    sudoers = (share / "sudoers").read_text()
    assert f"pilot ALL=(root) NOPASSWD: {INSTALLED.launcher}\n" in sudoers
    assert "SETENV" not in sudoers
    assert f"ListenStream={INSTALLED.socket}" in (share / "airpanda-glexec.socket").read_text()
    assert str(INSTALLED.launcherd) in (share / "airpanda-glexec.service").read_text()


def test_monitor_lines_where_the_site_wants_them(site: Site) -> None:
    config, log = site.node.path(INSTALLED.config), PREFIX / "log" / "gratia"
    text = config.read_text()
    config.write_text(f"{text}gratia_log = {log}\n")
    try:
        assert site.glexec_run("/bin/sh", "-c", "exit 3").code == 3
    finally:
        config.write_text(text)
    lines = site.read(log).splitlines()
    assert [line.split("]: ")[1].split()[0] for line in lines] == ["Started", "New", "Used", "Terminated"]
    assert f'Used DN: "{site.pki.dn("alice")}"' in lines[2]


# --- the command line, on a node's own /etc -------------------------------------------------------------------------

RULE = Path("/etc/sudoers.d/airpanda-glexec")


def command(site: Site, *words: str) -> Ran:
    code = f"import sys; sys.path.insert(0, {str(PLUGINS)!r}); from airpanda.glexec.cli import main; "
    return as_root(site, sys.executable, "-I", "-c", f"{code}sys.exit(main(sys.argv[1:]))", *words)


def put_sudoers(site: Site, text: str = "Defaults env_reset\n@includedir /etc/sudoers.d\n") -> None:
    etc = site.node.path(Path("/etc"))
    (etc / "sudoers.d").mkdir(mode=0o750, exist_ok=True)
    (etc / "sudoers").write_text(text)
    (etc / "sudoers").chmod(0o440)


@pytest.fixture(name="prefix")
def empty_prefix(site: Site) -> Iterator[Path]:
    """A place for another installation on the node, and a sudo without rules. Both are empty afterwards."""
    need_program("visudo", "sudo")
    done = as_root(site, "/bin/mount", "-t", "tmpfs", "-o", "mode=0755", "opt", "/opt")
    assert done.code == 0, done
    put_sudoers(site)
    yield Path("/opt/air panda")
    as_root(site, "/bin/umount", "/opt")
    site.node.path(RULE).unlink(missing_ok=True)


def install_there(site: Site, prefix: Path, *more: str) -> Ran:
    words = ["--prefix", str(prefix), "--caller", "pilot", "--python", "/usr/bin/python3", "--log-file", "/var/log/x"]
    return command(site, "install", *words, *more)


def test_whatever_the_umask_nothing_is_for_others_to_write(site: Site, prefix: Path) -> None:
    modules = site.node.path(prefix / "lib" / "launcher.modules")
    program = f"import os, sys; sys.path.insert(0, {str(PLUGINS)!r}); from airpanda.glexec.cli import main; "
    program += "os.umask(0); code = main(sys.argv[1:]); assert os.umask(0) == 0; sys.exit(code)"
    words = ["--prefix", str(prefix), "--caller", "pilot", "--python", "/usr/bin/python3", "--log-file", "/var/log/x"]
    ran = as_root(site, sys.executable, "-I", "-c", program, "install", *words)
    assert ran.code == 0, ran
    found = inside(site, prefix)
    assert str(modules) in found
    assert any(path.endswith(".pyc") for path in found)
    assert [path for path, (_, mode) in found.items() if mode & 0o022] == []
    modules.chmod(0o666)
    assert install_there(site, prefix).code == 0
    status = modules.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o644)


def test_a_launcher_that_runs_keeps_the_modules_it_has_mapped(site: Site, prefix: Path) -> None:
    assert install_there(site, prefix).code == 0
    modules = site.node.path(prefix / "lib" / "launcher.modules")
    with modules.open("rb") as mapped:
        before = mapped.read()
        assert install_there(site, prefix).code == 0
        assert modules.stat().st_ino != os.fstat(mapped.fileno()).st_ino
        mapped.seek(0)
        assert mapped.read() == before
    assert {path.name for path in modules.parent.iterdir()} == {"airpanda", "launcher.modules"}


def test_a_strangers_file_among_the_programs_stays_a_strangers(site: Site, prefix: Path) -> None:
    assert install_there(site, prefix).code == 0
    theirs = site.node.path(prefix / "sbin" / "site-tool")
    theirs.write_text("theirs")
    assert install_there(site, prefix).code == 0
    assert command(site, "uninstall", "--prefix", str(prefix)).code == 0
    assert theirs.read_text() == "theirs"
    assert [path.name for path in theirs.parent.iterdir()] == ["site-tool"]


def inside(site: Site, *roots: Path) -> dict[str, tuple[int, int]]:
    """All files below these, with inode and mode."""
    found = {}
    for root in roots:
        for path in site.node.path(root).rglob("*"):
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mode)
    return found


def test_a_dry_run_checks_everything_and_writes_nothing(site: Site, prefix: Path) -> None:
    before = inside(site, Path("/opt"), Path("/etc"))
    ran = install_there(site, prefix, "--sudoers", "--dry-run")
    assert ran.code == 0, ran
    assert "Nothing was written" in ran.out
    assert str(RULE) in ran.out
    assert inside(site, Path("/opt"), Path("/etc")) == before
    for wrong in (
        ["--set", "hidee=/x"],
        ["--set", "nothing"],
        ["--sudoers", "/etc/sudoers.d/a.b"],
        ["--caller", "a b"],
    ):
        ran = install_there(site, prefix, "--sudoers", "--dry-run", *wrong)
        assert (ran.code, ran.out) == (1, ""), wrong
        assert ran.err.startswith("airpanda glexec: "), ran


def test_the_rule_is_put_in_place_once_and_removed_with_the_rest(site: Site, prefix: Path) -> None:
    before = inside(site, Path("/etc"))
    assert install_there(site, prefix, "--sudoers", "--set", "max_processes=77").code == 0
    rule = site.node.path(RULE)
    status = rule.lstat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o440)
    assert "max_processes = 77\n" in site.read(prefix / "etc" / "glexec.conf")
    listed = as_root(site, "/usr/bin/sudo", "-l", "-U", "pilot")
    assert "(root) NOPASSWD: /opt/air\\ panda/sbin/airpanda-launcher" in listed.out, listed
    ran = site.run(str(prefix / "sbin" / "glexec-sudo"), "/usr/bin/id")
    assert ran.code in (201, 202), ran  # the launcher's own word: sudo let it start

    assert install_there(site, prefix, "--sudoers").code == 0
    assert rule.lstat().st_ino == status.st_ino
    assert rule.lstat().st_mtime_ns == status.st_mtime_ns

    foreign = prefix / "sbin" / "somebody's"
    site.node.path(foreign).write_text("")
    gone = command(site, "uninstall", "--prefix", str(prefix))
    assert (gone.code, "Left too" in gone.out) == (0, False)
    left = {str(path.relative_to(site.node.path(prefix))) for path in site.node.path(prefix).rglob("*")}
    assert left == {"etc", "etc/glexec.conf", "sbin", "sbin/somebody's"}
    assert inside(site, Path("/etc")) == before
    assert "Nothing is installed" in command(site, "uninstall", "--prefix", str(prefix)).out


def test_what_somebody_else_has_written_stays(site: Site, prefix: Path) -> None:
    rule = site.node.path(RULE)
    rule.write_text("# mine\n")
    rule.chmod(0o440)
    ran = install_there(site, prefix, "--sudoers")
    assert "was written or changed by somebody else" in ran.err
    assert not site.node.path(prefix).exists()
    assert rule.read_text() == "# mine\n"
    rule.unlink()
    assert install_there(site, prefix, "--sudoers").code == 0
    with rule.open("a") as file:
        file.write("# changed\n")
    assert "was written or changed by somebody else" in install_there(site, prefix, "--sudoers").err
    gone = command(site, "uninstall", "--prefix", str(prefix))
    assert f"Left too, because somebody has changed it since: {RULE}" in gone.out
    assert rule.read_text().endswith("# changed\n")


def test_a_rule_that_was_removed_by_hand_is_forgotten(site: Site, prefix: Path) -> None:
    assert install_there(site, prefix, "--sudoers").code == 0
    site.node.path(RULE).unlink()
    again = install_there(site, prefix)
    assert again.code == 0, again
    assert str(RULE) not in site.read(prefix / "share" / "manifest.json")
    assert not site.node.path(RULE).exists()


def test_a_rule_that_was_changed_stays_also_after_another_installation(site: Site, prefix: Path) -> None:
    assert install_there(site, prefix, "--sudoers").code == 0
    rule = site.node.path(RULE)
    with rule.open("a") as file:
        file.write("# changed\n")
    assert install_there(site, prefix).code == 0
    gone = command(site, "uninstall", "--prefix", str(prefix))
    assert f"Left too, because somebody has changed it since: {RULE}" in gone.out
    assert rule.read_text().endswith("# changed\n")


@pytest.mark.parametrize(
    "sudoers", ["Defaults env_reset\n", "Defaults env_reset\nnonsense\n@includedir /etc/sudoers.d\n"]
)
def test_a_rule_that_sudo_would_not_use_is_not_left_there(site: Site, prefix: Path, sudoers: str) -> None:
    put_sudoers(site, sudoers)
    ran = install_there(site, prefix, "--sudoers")
    assert ran.code == 1
    assert "sudo's configuration would not work" in ran.err
    assert not site.node.path(RULE).exists()


def test_systemd_accepts_the_units(site: Site, prefix: Path) -> None:
    analyze = need_program("systemd-analyze", "systemd")
    assert install_there(site, prefix).code == 0
    units = [str(prefix / "share" / f"airpanda-glexec.{kind}") for kind in ("service", "socket")]
    ran = as_root(site, analyze, "verify", "--man=no", *units)
    assert (ran.code, ran.err) == (0, ""), ran
    broken = prefix / "share" / "broken.service"
    site.node.path(broken).write_text(site.read(Path(units[0])).replace("ExecStart=", "ExecStart=/missing"))
    assert as_root(site, analyze, "verify", "--man=no", str(broken)).code != 0
