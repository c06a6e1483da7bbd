"""What an ARC CE is told of pilots: one ADL document for a batch, each pilot's start with it. No I/O.

A job of ARC has no input file unless its client uploads one, and that is a request for each pilot. So everything is
in the description, which the CE's logs, its `diagnose` and the batch system behind it show. The token is therefore
sealed for the key of the delegated proxy: the CE gives that to the pilot as a 0600 file of its account and to nobody
else, and keeps the key when the delegation is renewed. ADL rather than xRSL: A-REX reads it four times as fast.

Source: EMI ES 2.0 (ADL); A-REX 6.17; measured with Debian 12's.
"""

from __future__ import annotations

import base64
import gzip
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from xml.etree import ElementTree

from airpanda.computing.pilot_script import pilot_script
from airpanda.computing.queues import PandaQueue

LOG = "pilot.log"
PROXY_MARK = "@proxy@"
_ADL = "http://www.eu-emi.eu/es/2010/12/adl"
_NORDUGRID = "http://www.nordugrid.org/es/2011/12/nordugrid-adl"
_NAME = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,19})")

# The session directory becomes passable for the sandboxes of payload accounts; what is in it stays 0700 and 0600. A
# batch system that kills the job's script alone leaves this shell with another parent, and ARC's fork back-end does
# not even kill that: the pilot is asked to end when its parent or its session directory has gone. What differs between
# the pilots of a batch stands between the two parts: what is the same is packed once.
_BEFORE = """\
umask 077
fail() {{ echo "airpanda: $1" >&2; exit 71; }}
proxy=${{X509_USER_PROXY-}}
case $proxy in
'' | *[!A-Za-z0-9/._-]*) fail "the CE gave the job no usable X509_USER_PROXY; its administrator must look" ;;
esac
chmod 711 . && mkdir -p pilot/tmp && cd pilot || fail "the session directory cannot be used"
printf '%s' {wrapper} >wrapper.sh && printf '%s' """
_AFTER = """\
 | sed "s|{mark}|$proxy|" >pilot.json ||
    fail "the pilot cannot be unpacked"
"""
_WATCH = """\
while read -r _ _ _ parent _ <"/proc/$$/stat" && [ "$parent" = "$PPID" ] && [ -e ../start.sh ]; do
        sleep 2
    done"""


@dataclass(frozen=True)
class PilotStart:
    """What one pilot brings along: its ``pilot.json``, with a sealed token, and the text of the wrapper."""

    json: str
    wrapper: str
    code: str
    python: str


def job_name(tag: str, pilot_id: int) -> str:
    """What the CE calls a pilot's job; it is found again by it."""
    return f"{tag}.{pilot_id}"


def parse_job_name(name: str) -> tuple[str, int] | None:
    """Tag and PilotID of a job's name, or None for a job of somebody else's."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def start_script(start: PilotStart) -> str:
    """The shell program that becomes the pilot; the place of the delegated proxy is only known to it."""
    return "".join(_parts(start))


def _parts(start: PilotStart) -> tuple[str, str, str]:
    """What all pilots of a batch have, what is one's own, and the rest that all have."""
    after = _AFTER.format(mark=PROXY_MARK) + pilot_script(start.code, start.python, watch=_WATCH)
    return _BEFORE.format(wrapper=shlex.quote(start.wrapper)), shlex.quote(start.json), after


def describe(queue: PandaQueue, ce_queue: str, delegation: str, starts: Mapping[str, PilotStart]) -> bytes:
    """The ADL document of one submission: a job for each name, in the order of ``starts``."""
    root = ElementTree.Element("ActivityDescriptions")
    for name, start in starts.items():
        root.append(_activity(queue, ce_queue, delegation, name, _packed(*_parts(start))))
    return ElementTree.tostring(root, encoding="unicode").encode()


def _activity(queue: PandaQueue, ce_queue: str, delegation: str, name: str, packed: str) -> ElementTree.Element:
    slot = queue.slot
    activity = ElementTree.Element("ActivityDescription", {"xmlns": _ADL, "xmlns:nordugrid-adl": _NORDUGRID})
    _add(_add(activity, "ActivityIdentification"), "Name", name)
    application = _add(activity, "Application")
    executable = _add(application, "Executable")
    _add(executable, "Path", "/bin/sh")
    # A-REX puts arguments between double quotes of a shell: no "$", "`" or quote may be in one.
    for argument in ("-c", f"umask 077;echo {packed}|base64 -d|gzip -d>start.sh;exec sh ./start.sh"):
        _add(executable, "Argument", argument)
    for stream in ("Output", "Error"):
        _add(application, stream, LOG)
    resources = _add(activity, "Resources")
    _add(_add(resources, "SlotRequirement"), "NumberOfSlots", str(slot.cores))
    _add(resources, "IndividualPhysicalMemory", str(slot.memory_mib * 1024 * 1024))
    _add(resources, "WallTime", str(slot.walltime_s))
    if ce_queue:
        _add(resources, "QueueName", ce_queue)
    staging = _add(activity, "DataStaging")
    _add(staging, "nordugrid-adl:DelegationID", delegation)
    _add(_add(staging, "OutputFile"), "Name", LOG)
    return activity


def _add(parent: ElementTree.Element, tag: str, text: str = "") -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text or None
    return child


def _packed(before: str, own: str, after: str) -> str:
    """Three members of one gzip file: gzip(1) puts their contents together."""
    return base64.b64encode(_once_gzipped(before) + _gzipped(own) + _once_gzipped(after)).decode("ascii")


def _gzipped(text: str) -> bytes:
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


_once_gzipped = lru_cache(maxsize=8)(_gzipped)
