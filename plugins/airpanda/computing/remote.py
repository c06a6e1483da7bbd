"""What is said to a submit host: shell programs, what they read, and what they answer. No I/O.

Every program travels on standard input in front of its data, so the command line is short and the same for every
login shell. Its arguments are tags, numbers and paths; secrets are data.

One directory below ``[ce] directory`` holds one batch, named by its tag:

====================  =========================================================================================
``job``               the batch system's id of the array, written after the submission and again by each pilot
``copies``            how many copies, and a digest of their PilotIDs: index i is the i-th smallest
``job.sh``            what the batch system runs for each copy
``wrapper.sh``        what finds a Python and becomes the pilot
``I/pilot.json``      configuration and token of copy I, 0600; removed when the pilot has read it, and at its end
``I/pilot.log``       what the pilot printed
``I/exit``            the pilot's exit code
``I/cancelled``       made before a cancel was asked for
====================  =========================================================================================
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shlex
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from airpanda.computing.dialects.port import CEJob, Dialect
from airpanda.computing.pilot_script import RECORD_EXIT, pilot_script

_ANSWER = re.compile(r"airpanda-answer ([a-z]+) ?(.*)")
_FILE = re.compile(r"([A-Za-z0-9_-]{1,64})/(?:([0-9]{1,6})/(exit|cancelled)|(job|copies)):(.*)")

# Reads its program, then runs it; the program finds its data behind itself. head(1) takes no byte more than told.
_BOOT = 'eval "$(head -c %d)"'

_COMMON = """\
umask 077
LC_ALL=C
export LC_ALL
set -f
say() { printf 'airpanda-answer %s\\n' "$*"; }
answer() { say "$@"; cat >/dev/null; exit 0; }
directory=$1
"""

# Arguments: directory, tag, "copies digest", copies, max_pilots, then those of `enqueue`. Data: a gzipped tar.
# Looking for the tag, and submitting when it is not there, happen under one lock: of two that race, one adopts.
_SUBMIT = """\
tag=$2 identity=$3 copies=$4 max=$5
shift 5
for tool in flock tar gzip; do
    command -v "$tool" >/dev/null || answer invalid "the submit host has no program $tool"
done
(umask 066; mkdir -p -- "$directory") || answer invalid "[ce] directory cannot be made on the submit host"
cd -- "$directory" || answer invalid "[ce] directory cannot be entered on the submit host"
[ -O . ] || answer invalid "[ce] directory must belong to the pilots' account"
[ -z "$(find . -prune \\( -perm -020 -o -perm -002 \\))" ] ||
    answer invalid "[ce] directory is writable by others: chmod 0711"
touch .submit.lock || answer unavailable "the lock in [ce] directory cannot be made"
exec 9>>.submit.lock
flock -w 60 9 || answer unavailable "another submission holds the lock in [ce] directory"
adopt() {
    [ ! -f "$tag/copies" ] || [ "$(cat "$tag/copies")" = "$identity" ] ||
        answer invalid "the tag is in use for other pilots"
    answer adopted "$1"
}
ids=$(list_tag "$tag") || answer refused
for id in $(cat "$tag/job" 2>/dev/null) $ids; do adopt "$id"; done
names=$(active_tags) || answer refused
busy=$(printf '%s\\n' "$names" | while read -r name; do
    case $name in '' | *[!A-Za-z0-9_-]*) ;; *) [ ! -d "$name" ] || echo "$name" ;; esac
done | wc -l)
[ $((busy + copies)) -le "$max" ] ||
    answer throttled "$((busy)) pilots are there and $copies more would exceed [ce] max_pilots = $max"
# What ended two days ago goes: nobody purges pilots that ended well, and disks are finite.
find . -mindepth 3 -maxdepth 3 -type f -name exit -mmin +2880 2>/dev/null | while IFS=/ read -r _ old index _; do
    case $index in '' | *[!0-9]*) continue ;; esac
    [ -f "$old/copies" ] || continue
    rm -rf -- "$old/$index"
    [ -n "$(find "$old" -mindepth 1 -maxdepth 1 -type d)" ] || rm -rf -- "$old"
done
rm -rf -- "$tag" "$tag.new"
mkdir -- "$tag.new" && tar -xzmf - -C "$tag.new" && chmod 711 "$tag.new" && mv -- "$tag.new" "$tag" || {
    rm -rf -- "$tag.new"
    answer unavailable "the pilots' files cannot be written on the submit host"
}
cd -- "$tag" || answer unavailable "the batch's directory cannot be entered"
id=$(enqueue "$@" 9>&- 2>.said </dev/null)
code=$?
cat .said >&2
if [ "$code" != 0 ] || [ -z "$id" ]; then
    id=$(list_tag "$tag" | head -n 1)
    if [ -z "$id" ]; then
        # A batch system that was too slow may still take the job: then its files must be there.
        grep -qi 'timed out' .said || { cd .. && rm -rf -- "$tag"; }
        answer refused
    fi
fi
rm -f .said
printf '%s\\n' "$id" >job.new && mv job.new job
answer submitted "$id"
"""

# Arguments: directory. Data: tags, one a line. Everything that the queue and the files say about these batches.
_OBSERVE = """\
set +f
jobs=$(list_jobs) || answer refused
printf '%s\\n' "$jobs"
if [ -d "$directory" ]; then
    cd -- "$directory" || answer unavailable "[ce] directory cannot be entered on the submit host"
    xargs -r sh -c 'for tag; do
        [ ! -d "$tag" ] || printf "%s\\n" "$tag/job" "$tag/copies" "$tag"/*/exit "$tag"/*/cancelled
    done' sh | xargs -r grep -sH ""
fi
answer end
"""

# Arguments: directory, then those of `dequeue`. Data: places "tag/index", one a line.
_CANCEL = """\
shift
now=$(date +%s)
cd -- "$directory" || answer unavailable "[ce] directory cannot be entered on the submit host"
while read -r place; do
    [ ! -d "$place" ] || echo "$now" >"$place/cancelled" || answer unavailable "the cancel cannot be put on record"
done
dequeue "$@" </dev/null && answer end
answer refused
"""

# Arguments: directory. Data: places "tag/index", one a line; answers with those that were there.
_PURGE = """\
cd -- "$directory" || answer end
while read -r place; do
    [ -d "$place" ] || continue
    rm -rf -- "$place" || answer unavailable "$place cannot be removed"
    say gone "$place"
    tag=${place%/*}
    [ -n "$(find "$tag" -mindepth 1 -maxdepth 1 -type d)" ] || rm -rf -- "$tag"
done
answer end
"""

# Arguments: directory, place "tag/index", number of bytes.
_FETCH = """\
cd -- "$directory" && [ -f "$2/pilot.log" ] || answer missing
answer log "$(tail -c "$3" "$2/pilot.log" | base64 | tr -d '\\n')"
"""

# Arguments: directory, file, number of bytes. Data: the pilots' credential, which is put in the file's place when it
# has arrived whole. What stands there must be the account's own file.
_RENEW = """\
[ ! -e "$2" ] && [ ! -L "$2" ] || { [ -f "$2" ] && [ ! -L "$2" ] && [ -O "$2" ]; } ||
    answer invalid "[pilot] proxy is not a file of the pilots' account on the submit host"
new=$(mktemp -- "$2.XXXXXX") || answer invalid "[pilot] proxy cannot be written on the submit host"
cat >"$new" && [ "$(wc -c <"$new")" -eq "$3" ] && chmod 600 "$new" && mv -f -- "$new" "$2" || {
    rm -f -- "$new"
    answer unavailable "the credential has not arrived whole, or cannot be written"
}
answer end
"""

# Arguments: directory. Data: "tag/index contact", one a line: jobs that were submitted from elsewhere. A job that has
# begun has written its own already.
_RECORD = """\
cd -- "$directory" || answer unavailable "[ce] directory cannot be entered on the submit host"
while read -r place contact; do
    [ -d "$place" ] || continue
    (set -C; echo "$contact" >"$place/contact") 2>/dev/null || [ -s "$place/contact" ] ||
        answer unavailable "a contact cannot be put on record"
done
answer end
"""

PROGRAMS = {
    "submit": _SUBMIT,
    "observe": _OBSERVE,
    "cancel": _CANCEL,
    "purge": _PURGE,
    "fetch": _FETCH,
    "renew": _RENEW,
    "record": _RECORD,
}

_JOB = """\
#!/bin/sh
umask 077
index={index}
cd -- {directory}/"$index" || exit 71
[ -s ../job ] || {{ echo {job_id} >"../job.$index" && mv "../job.$index" ../job; }}
exec >>pilot.log 2>&1
mkdir -p tmp
"""


def command(dialect: Dialect, operation: str, arguments: Sequence[str], data: bytes = b"") -> tuple[list[str], bytes]:
    """The argv of one remote program and its standard input."""
    program = (_COMMON + dialect.functions + PROGRAMS[operation]).encode("ascii")
    return ["sh", "-c", _BOOT % len(program), "airpanda", *arguments], program + data


def job_script(dialect: Dialect, directory: str, tag: str, *, code: str, python: str) -> str:
    """What each copy runs. It knows its place from its index, and puts its exit code where ``observe`` looks."""
    start = _JOB.format(index=dialect.index, job_id=dialect.job_id, directory=shlex.quote(f"{directory}/{tag}"))
    return start + pilot_script(code, python, wrapper="../wrapper.sh", passes_signals=False, last=RECORD_EXIT)


def identity(pilot_ids: Sequence[int]) -> str:
    """The content of ``copies``."""
    text = ",".join(map(str, sorted(pilot_ids)))
    return f"{len(pilot_ids)} {hashlib.sha256(text.encode()).hexdigest()}"


def pack(files: Mapping[str, str], pilots: Sequence[str]) -> bytes:
    """A gzipped tar with the batch's files and each copy's ``pilot.json``, all 0600."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        named = [*files.items(), *((f"{index}/pilot.json", text) for index, text in enumerate(pilots))]
        for name, text in named:
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o600, len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@dataclass(frozen=True)
class Answer:
    """What a program answered: its last word and text, and the lines before it that were no answer."""

    word: str
    text: str
    lines: Sequence[tuple[str, str]] = ()
    other: str = ""


def parse_answer(stdout: bytes) -> Answer | None:
    """The answer in the output, whatever the login shell printed around it; None where there is no whole one."""
    text = stdout.decode("utf-8", "replace")
    if not text.endswith("\n"):
        return None
    lines = text.splitlines()
    answers = [(m[1], m[2]) for line in lines if (m := _ANSWER.fullmatch(line))]
    if not answers:
        return None
    word, rest = answers.pop()
    return Answer(word, rest, tuple(answers), "\n".join(line for line in lines if not _ANSWER.fullmatch(line)))


@dataclass
class Observation:
    """What queue and files say about some batches."""

    jobs: dict[tuple[str, int | None, str], CEJob] = field(default_factory=dict)
    job_of: dict[str, str] = field(default_factory=dict)
    copies_of: dict[str, int] = field(default_factory=dict)
    exits: dict[tuple[str, int], int] = field(default_factory=dict)
    cancelled: set[tuple[str, int]] = field(default_factory=set)


def parse_observation(dialect: Dialect, text: str, tags: Iterable[str]) -> Observation:
    """Read the output of ``observe``; jobs of other tags are not ours to speak of."""
    wanted = set(tags)
    seen = Observation()
    seen.jobs = {(job.job, job.index, job.tag): job for job in dialect.parse_jobs(text) if job.tag in wanted}
    for match in filter(None, map(_FILE.fullmatch, text.splitlines())):
        tag, value = match[1], match[5].strip()
        if match[3] == "cancelled":
            seen.cancelled.add((tag, int(match[2])))
        elif match[3] == "exit" and re.fullmatch(r"[0-9]{1,3}", value):
            seen.exits[tag, int(match[2])] = int(value)
        elif match[4] == "job":
            seen.job_of[tag] = value
        elif match[4] == "copies" and re.match(r"[0-9]{1,6} ", value):
            seen.copies_of[tag] = int(value.split()[0])
    return seen
