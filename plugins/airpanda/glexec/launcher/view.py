"""The payload's own view of the file system: private temporary directories, nothing of the pilot or the site."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from airpanda.glexec.launcher import kernel
from airpanda.glexec.launcher.plan import TEMPORARY, Place, Plan, is_below

_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV


def make_private_view(plan: Plan) -> None:
    """Enter a mount namespace of its own. To be called by the first process of a new PID namespace, as root.

    What the payload needs of a hidden place stays visible: its proxy's directory, and its working directory where that
    is the caller's or its own.

    Raises:
        OSError: the kernel refused a step; nothing may be started then.
    """
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    temporary = [path for path in TEMPORARY if os.path.isdir(path)] if plan.private_tmp else []
    roots = outermost([*plan.hide, *temporary])
    shown = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in plan.show if _is_covered(path, roots)]
    kept = _open_kept(plan, roots)
    for root in roots:
        _cover(root, f"mode=1777,size={plan.tmp_mib}m" if root in temporary else "mode=0711,size=1m")
    for path, descriptor in shown:
        _make_path(path)
        kernel.bind(f"/proc/self/fd/{descriptor}", path, read_only=True)
        os.close(descriptor)
    for place, descriptor in kept:
        _make_path(place.path)
        kernel.bind(f"/proc/self/fd/{descriptor}", place.path)
        os.close(descriptor)
    if plan.transient:
        _show_account(plan)
        _protect(plan, [*temporary, *(place.path for place, _ in kept)])
    kernel.mount("proc", "/proc", "proc", _FLAGS | kernel.MS_NOEXEC)


def _show_account(plan: Plan) -> None:
    """A passwd and a group file with the payload's account, so that it finds its own name."""
    account = plan.account
    lines = {
        "/etc/passwd": f"{account.name}:x:{account.uid}:{account.gids[0]}::{plan.home}:/bin/sh\n",
        "/etc/group": f"{account.name}:x:{account.gids[0]}:\n",
    }
    for path, line in lines.items():
        copy = f"{TEMPORARY[0]}/.{os.path.basename(path)}"
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
        with open(copy, "x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text + ("" if text.endswith("\n") else "\n") + line)
        os.chmod(copy, 0o644)
        kernel.bind(copy, path)
        os.unlink(copy)


def _protect(plan: Plan, private: Sequence[str]) -> None:
    """Everything is read-only but private directories and the site's places for payloads.

    So whatever a passing account can leave behind lies where it will be looked for.
    """
    places = [path for path in plan.writable if _is_plain_directory(path) and not _is_covered(path, private)]
    for path in places:
        kernel.mount(path, path, None, kernel.MS_BIND)
    kernel.set_read_only("/", True, below=True)
    allowed = [path for path in private if path in TEMPORARY or _is_in(path, plan.writable)]
    for path in [*places, *allowed]:
        kernel.set_read_only(path, False)


def _is_plain_directory(path: str) -> bool:
    return os.path.isdir(path) and os.path.realpath(path) == path


def _is_in(path: str, places: Sequence[str]) -> bool:
    return any(path == place or is_below(path, place) for place in places)


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths without those that lie below another one."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(is_below(path, root) for root in found):
            found.append(path)
    return found


def _is_covered(path: str, roots: Sequence[str]) -> bool:
    return os.path.isdir(path) and any(is_below(path, root) for root in roots)


def _open_kept(plan: Plan, roots: Sequence[str]) -> list[tuple[Place, int]]:
    """Descriptors of what must stay visible, outermost first; opened before anything is covered."""
    wanted = [plan.directory if plan.keep_directory else None, plan.proxy.directory if plan.proxy else None]
    places = {p.path: p for p in wanted if p is not None and _is_covered(p.path, roots)}
    kept = []
    for path in outermost(places):
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (places[path].device, places[path].inode):
            raise OSError(f"{path} changed while the payload was being prepared")
        kept.append((places[path], descriptor))
    return kept


def _cover(path: str, options: str) -> None:
    if os.path.isdir(path):
        kernel.mount("tmpfs", path, "tmpfs", _FLAGS, options)
    elif os.path.exists(path):
        kernel.mount("/dev/null", path, None, kernel.MS_BIND)


def _make_path(path: str) -> None:
    """The directories up to ``path``: root's, and passable without being listable."""
    for parent in [*reversed(_parents(path)), path]:
        if not os.path.isdir(parent):
            os.mkdir(parent)
            os.chmod(parent, 0o711)  # noqa: S103 - passable, not listable


def _parents(path: str) -> list[str]:
    parents = []
    while path != "/":
        path = os.path.dirname(path)
        parents.append(path)
    return parents
