"""Installing the launcher: a root-owned tree of its own, so that nothing a pilot can write is ever imported.

Only the interpreter and its ``cryptography`` come from outside; they are checked to be root's too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

import airpanda
from airpanda.core.errors import ConfigurationError
from airpanda.core.records import dataclass
from airpanda.glexec.config import SECTION, parse_config
from airpanda.glexec.sudo_rule import check_place, check_rule, put_rule, rule_text
from airpanda.glexec.trusted import check_trusted, check_unchangeable
from airpanda.glexec.written import Manifest, files_below, put

ROOMS = ("core", "x509", "glexec")
_OWNED = ("lib", "sbin", "share")
_SHEBANG_BYTES = 127
_ONE_FILE = "launcher.modules"
_NEEDED = ("launcher.direct", "launcher.run", "launcher.credential", "lcmaps", "dynamic")
DEFAULT_SOCKET = Path("/run/airpanda-glexec.sock")

# Option, what it means, and the value it has where the site says nothing else ("" = not set).
_OPTIONS = (
    ("callers", "Accounts that may use the launcher, or %group. Nobody else gets anything but 203.", ""),
    ("allow_root", "Whether root itself may be a caller (yes, no).", "no"),
    ("ca_dir", "Trust anchors, CRLs and signing policies, as the IGTF distributes them.", ""),
    ("require_crl", "Refuse a proxy whose CA has no CRL here. An expired CRL always refuses.", "no"),
    ("allow_limited", "Accept limited proxies. MyProxy and Globus delegate limited ones on request.", "no"),
    ("max_proxy_hours", "Longest lifetime of a payload's proxy.", "336"),
    ("mapping", "Who maps: own (mapfile, gridmapdir below), lcmaps (the site's own), or dynamic (no accounts).", "own"),
    ("lcmaps_db", "LCMAPS' configuration; its policy must not switch identity itself (no posix_enf).", ""),
    ("lcmaps_policy", "The policy in it.", "glexec_get_account"),
    ("lcmaps_user", "The account under which LCMAPS runs; it must own the gridmapdir.", "nobody"),
    ("voms", "Verify VOMS attributes and use them for bans and mapping; no = do not look at them.", "yes"),
    ("voms_dir", "LSC files of trusted VOMS servers.", "/etc/grid-security/vomsdir"),
    ("mapfile", 'grid-mapfile: "DN" account, or "DN" .pool', ""),
    ("gridmapdir", "Directory with the leases of pool accounts, shared with LCMAPS.", ""),
    ("ban_file", 'One "DN" a line; these people run nothing here.', ""),
    ("authorised", 'With mapping = dynamic: one "DN" or "FQAN" a line, * at its end; only these people get a uid.', ""),
    ("uid_range", "FIRST-LAST: uids, and gids, that are no account's; each is leased to one owner at a time.", ""),
    ("lease_dir", "Root's directory of these leases (with lcmaps: of its leases' owners); made if missing.", ""),
    ("payload_dirs", "The only places payloads with a leased uid can write, one a line; cleared before a reuse.", ""),
    ("uid_idle_minutes", "How long a leased uid stays its owner's after the last run.", "60"),
    ("minimum_uid", "No payload runs under an account below this uid,", "1000"),
    ("minimum_gid", "or in a group below this gid.", "1000"),
    ("hide", "Paths that a payload must not see, one a line.", ""),
    ("show", "Read-only directories inside hidden or private places that payloads need, such as software.", ""),
    ("hide_caller_home", "Hide the pilot's home directory from its payloads.", "yes"),
    ("private_tmp", "Give each payload its own empty /tmp, /var/tmp and /dev/shm,", "yes"),
    ("tmp_mib", "each at most this large.", "1024"),
    ("max_processes", "Most processes of one account.", "4096"),
    ("max_runs", "Most payloads at a time.", "256"),
    ("max_runs_per_caller", "Most of them for one caller; not set: half, or all where there is one caller.", ""),
    ("cgroup", "A cgroup v2 for each payload where the kernel has them, to count, limit and kill it.", "yes"),
    ("log_file", "One JSON object for each request: who asked, who ran as whom, for how long.", ""),
    ("syslog", "The same to syslog (authpriv), as key=value.", "yes"),
    ("gratia_log", "A file of gLExec monitor lines, for the Gratia glexec probe.", ""),
)

_SERVICE = """[Unit]
Description=airpanda glexec launcher
Requires=airpanda-glexec.socket

[Service]
ExecStart={launcherd}
# Only the service itself is told to end: it ends the payloads, and each is on record then as lost, not as failed.
KillMode=mixed
TimeoutStopSec=30
Restart=on-failure
# Its cgroup holds everybody's payloads, each in one of its own: that the kernel kills one which takes too much memory
# must not end the service and so all of them, nor may systemd's limit for one service be that of them together.
OOMPolicy=continue
TasksMax=infinity
Delegate=yes

[Install]
WantedBy=multi-user.target
"""

_SOCKET = """[Unit]
Description=Socket of the airpanda glexec launcher

[Socket]
ListenStream={socket}
SocketMode=0666

[Install]
WantedBy=sockets.target
"""


_QUESTION = """
import sys, cryptography
print(sys.prefix, sys.base_prefix, cryptography.__file__, sep="\\n")
try:
    import _cffi_backend
    print(_cffi_backend.__file__)
except ImportError:
    pass
"""


@dataclass(frozen=True)
class Installed:
    """Where the parts of an installed launcher are."""

    prefix: Path
    socket: Path

    @property
    def config(self) -> Path:
        return self.prefix / "etc" / "glexec.conf"

    @property
    def manifest(self) -> Path:
        """What was written."""
        return self.prefix / "share" / "manifest.json"

    @property
    def glexec(self) -> Path:
        """What a pilot calls (``OSG_GLEXEC_LOCATION``)."""
        return self.prefix / "sbin" / "glexec"

    @property
    def glexec_sudo(self) -> Path:
        """What a pilot calls where the site has a sudo rule instead of the socket."""
        return self.prefix / "sbin" / "glexec-sudo"

    @property
    def launcherd(self) -> Path:
        """The socket service; takes no argument."""
        return self.prefix / "sbin" / "airpanda-launcherd"

    @property
    def launcher(self) -> Path:
        """What sudo or root starts instead of ``glexec``."""
        return self.prefix / "sbin" / "airpanda-launcher"


def install(
    prefix: Path,
    *,
    python: Path,
    callers: Sequence[str],
    ca_dir: Path,
    mapfile: Path,
    log_file: Path,
    socket: Path = DEFAULT_SOCKET,
    options: Optional[Mapping[str, str]] = None,
    sudoers: Optional[Path] = None,
    check_python: bool = True,
    dry_run: bool = False,
) -> Installed:
    """Write the launcher below ``prefix``, replacing an older one; an existing configuration is kept.

    Args:
        options: further lines of the configuration. Paths may hold spaces.
        sudoers: where to put the sudo rule as well; None leaves sudo alone.
        check_python: False is for a node that itself makes the interpreter unchangeable.
        dry_run: check everything and write nothing.

    Raises:
        ConfigurationError: not root, an unsafe prefix or interpreter, an option that cannot be, or a rule that sudo
            does not take or that somebody else has written.
    """
    if os.geteuid() != 0:
        raise ConfigurationError("the launcher can only be installed by root")
    packages = _find_packages(python, check=check_python)
    installed = Installed(prefix, socket)
    text = render_config(
        {
            **(options or {}),
            "callers": " ".join(callers),
            "ca_dir": str(ca_dir),
            "mapfile": str(mapfile),
            "log_file": str(log_file),
        }
    )
    rule = rule_text(installed.launcher, installed.glexec_sudo, callers)
    check_rule(rule)
    manifest = Manifest(installed.manifest)
    if sudoers is not None:
        check_place(sudoers)
        if manifest.has_changed(sudoers) and sudoers.read_text(encoding="utf-8", errors="replace") != rule:
            raise ConfigurationError(f"{sudoers} was written or changed by somebody else; move it away first")
    check_trusted(next(place for place in (prefix, *prefix.parents) if place.exists()))
    if dry_run:
        return installed
    with _ordinary_umask():
        before = _owned(prefix)
        _write(installed, python, packages, text, rule)
        if sudoers is not None:
            put_rule(sudoers, rule)
        # What lies there and was not written now is somebody else's, or an older installation's, which knew it.
        written = [path for path, state in _owned(prefix).items() if before.get(path) != state]
        kept = [path for path in manifest.paths() if path != sudoers and path not in written]
        manifest.write([*written, *([sudoers] if sudoers else [])], kept)
    return installed


def _owned(prefix: Path) -> dict[Path, tuple[int, int, int]]:
    """The files where programs are put, each with its inode, time of change and size: new ones if it is written."""
    found = {path: path.lstat() for name in _OWNED for path in files_below(prefix / name)}
    return {path: (state.st_ino, state.st_mtime_ns, state.st_size) for path, state in found.items()}


@contextlib.contextmanager
def _ordinary_umask() -> Iterator[None]:
    """What root's own umask would let others write is code that root runs."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _write(installed: Installed, python: Path, packages: Sequence[str], config: str, rule: str) -> None:
    prefix = installed.prefix
    for directory in ("", "etc", "lib", "sbin", "share"):
        (prefix / directory).mkdir(mode=0o755, parents=True, exist_ok=True)
    check_trusted(prefix)
    _copy_rooms(prefix / "lib")
    _write_programs(installed, python, packages)
    _compile(prefix / "lib", python, packages)
    check_trusted(prefix / "lib" / _ONE_FILE)
    if not installed.config.exists():
        put(installed.config, config, 0o640)
    _write_units(installed, rule)


def uninstall(prefix: Path) -> tuple[bool, list[Path]]:
    """Remove exactly what ``install`` wrote, the sudo rule too; the configuration and logs stay. A repeat is no error.

    Returns:
        Whether anything was installed, and the files that stay because somebody has changed them.
    """
    manifest = Manifest(Installed(prefix, DEFAULT_SOCKET).manifest)
    return len(manifest) > 0, manifest.remove()


def render_config(options: Mapping[str, str]) -> str:
    """The commented configuration file with these options set.

    Raises:
        ConfigurationError: an unknown option or a wrong value.
    """
    known = {name for name, _, _ in _OPTIONS}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigurationError(f"the launcher has no option {unknown[0]!r}")
    lines = ["# The launcher's configuration; read anew for every run. Root's alone, or nothing runs.", f"[{SECTION}]"]
    for name, meaning, default in _OPTIONS:
        lines += ["", f"# {meaning}"]
        value = options.get(name, "").replace("\n", "\n    ")
        lines.append(f"{name} = {value}" if name in options else f"#{name} = {default}".rstrip())
    text = "\n".join(lines) + "\n"
    parse_config(text, where="the new configuration")
    return text


def _find_packages(python: Path, *, check: bool) -> list[str]:
    """The directories of ``cryptography`` and what it needs. With ``check`` they and the interpreter must be root's.

    The launcher gets them as they are found here and starts without ``site``: what other files in them, such as
    ``*.pth``, have an interpreter do is not done as root.
    """
    asked = subprocess.run([python, "-I", "-c", _QUESTION], capture_output=True, text=True, timeout=60)
    if asked.returncode != 0:
        raise ConfigurationError(f"the interpreter {python} does not start or lacks the package cryptography")
    prefix, base_prefix, *files = asked.stdout.splitlines()
    if check:
        for place in (str(python), prefix, base_prefix, *files):
            check_unchangeable(Path(place))
    package, *modules = map(Path, files)
    return list(dict.fromkeys(map(str, (package.parent.parent, *(module.parent for module in modules)))))


def _copy_rooms(lib: Path) -> None:
    source = Path(airpanda.__file__).parent
    target = lib / "airpanda"
    fresh = lib / ".airpanda.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o755)
    shutil.copyfile(source / "__init__.py", fresh / "__init__.py")
    for room in ROOMS:
        shutil.copytree(
            source / room, fresh / room, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
        )
    for directory, _, files in os.walk(fresh):
        os.chmod(directory, 0o755)  # noqa: S103 - programs are for everybody to read
        for name in files:
            os.chmod(os.path.join(directory, name), 0o644)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def _write_programs(installed: Installed, python: Path, packages: Sequence[str]) -> None:
    lib = installed.prefix / "lib"
    places = {"config": str(installed.config), "socket": str(installed.socket)}
    starts = {
        "glexec": ("client", "main({socket!r}, sys.argv[1:])", "-IS"),
        "airpanda-launcherd": ("launcher.daemon", "main(Path({config!r}), Path({socket!r}))", "-IS"),
        "glexec_wrapenv": ("twins", "wrapenv(sys.argv[1:])", "-I"),
        "glexec_unwrapenv": ("twins", "unwrapenv(sys.argv[1:])", "-I"),
        "mkgltempdir": ("twins", "mkgltempdir(sys.argv[1:])", "-I"),
        "airpanda-launcher": ("launcher.direct", "main(Path({config!r}), sys.argv[1:])", "-IS"),
    }
    for name, (module, call, flags) in starts.items():
        start = lib / f"{name}.py"
        function = call.partition("(")[0]
        wanted = f"from airpanda.glexec.{module} import {function}\n"
        body = f"import sys\n\nsys.path.insert(0, {str(lib)!r})\n{wanted}"
        if module.startswith("launcher."):  # the root side
            one_file = _ONE_FILE if module == "launcher.direct" else ""
            body = f"{_lean(lib, packages, one_file)}    from pathlib import Path\n\n    {wanted}"
        body += f"sys.exit({call.format(**places)})\n"
        _write_program(installed.prefix / "sbin" / name, python, flags, body, start)
    for name in ("glexec_wrapenv", "glexec_unwrapenv"):  # gLExec's were perl, and are called by that name
        shutil.copy2(installed.prefix / "sbin" / name, installed.prefix / "sbin" / f"{name}.pl")
    command = f"exec /usr/bin/sudo -n -- {shlex.quote(str(installed.launcher))}"
    put(installed.glexec_sudo, f'#!/bin/sh\n{command} "$@"\n', 0o755)


def _write_program(path: Path, python: Path, flags: str, body: str, start: Path) -> None:
    """The program itself; where a #! line cannot hold the interpreter's path, ``start`` and a shell in front of it."""
    line = f"#!{python} {flags}\n"
    if len(os.fsencode(line)) > _SHEBANG_BYTES or re.search(r"\s", str(python)):
        put(start, body, 0o644)
        line, body = "#!/bin/sh\n", f'exec {shlex.quote(str(python))} {flags} {shlex.quote(str(start))} "$@"\n'
    put(path, line + body, 0o755)


def _lean(lib: Path, packages: Sequence[str], one_file: str = "") -> str:
    """The root side's start; it collects no garbage while it imports, and has little afterwards."""
    path = f"sys.path[:] = [{str(lib)!r}, *sys.path, *{list(packages)!r}]"
    use = f"from airpanda.glexec.launcher import onefile\n\nonefile.use({str(lib / one_file)!r})\n" if one_file else ""
    lean = "from airpanda.glexec.launcher import lean\n\nwith lean.imports():\n"
    return f"import gc\nimport sys\n\ngc.disable()\n{path}\n{use}{lean}"


def _compile(lib: Path, python: Path, packages: Sequence[str]) -> None:
    """Compiled once for all, since nobody but a new installation changes the sources; and tried as it will be used."""
    shutil.rmtree(lib / "__pycache__", ignore_errors=True)  # an older one may be open to others
    compiling = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(lib)]
    modules = "".join(f"    import airpanda.glexec.{name}\n" for name in _NEEDED)
    one_file = lib / _ONE_FILE
    fresh = one_file.with_name(f"{_ONE_FILE}.new")  # a launcher that runs has the old one mapped
    fresh.unlink(missing_ok=True)
    writing = f"with open({str(fresh)!r}, 'xb') as file:\n    file.write(onefile.content())\n"
    trying = ["-c", f"{_lean(lib, packages)}{modules}from airpanda.glexec.launcher import onefile\n{writing}"]
    for flags, words, what in (("-I", compiling, "compile"), ("-IS", trying, "run")):
        done = subprocess.run([python, flags, *words], capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigurationError(
                f"the interpreter {python} cannot {what} the launcher ({reason}); Python 3.9 or later is needed"
            )
    fresh.replace(one_file)


def _write_units(installed: Installed, rule: str) -> None:
    share = installed.prefix / "share"
    put(share / "airpanda-glexec.service", _SERVICE.format(launcherd=f'"{installed.launcherd}"'), 0o644)
    put(share / "airpanda-glexec.socket", _SOCKET.format(socket=installed.socket), 0o644)
    put(share / "sudoers", rule, 0o440)
