"""What GRAM's own machine is asked about the pilots' directories. No I/O.

GRAM has no list of jobs and no look-up: what is there is known by files beside the pilots, in the layout of
``airpanda.computing.remote``. A copy of a batch has two more of them:

===============  ==============================================================================================
``I/contact``    GRAM's name of the job, written after the submission, or by the job itself when it begins
``I/started``    a directory: the job that makes it becomes the pilot. A second job for the same copy, sent after
                 an answer was lost, finds it and ends
===============  ==============================================================================================
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from airpanda.computing.dialects.port import BatchSpec, CEJob, ErrorTable
from airpanda.computing.elements import Limits, PilotJobState
from airpanda.computing.gram_rsl import is_contact
from airpanda.computing.pilot_script import RECORD_EXIT, pilot_script

JOB = "gram"
"""The part of a handle that is a job's id elsewhere: GRAM's own is not known before it has answered."""

PROXY_MARK = "@proxy@"
_COPY = re.compile(r"airpanda-copy (started|waiting) ([A-Za-z0-9_-]{1,64})/([0-9]{1,6}) (\S+)")

# The job manager ends a job's process group with TERM, and KILL five seconds later. A cancel also reaches a pilot whose
# contact nobody knows: by its file.
_START = """\
#!/bin/sh
umask 077
cd -- {directory}/"$1" || exit 71
[ ! -e cancelled ] && mkdir started 2>/dev/null || exit 0
[ ! -e cancelled ] || exit 0
case ${{GLOBUS_GRAM_JOB_CONTACT-}} in
'') ;; # what was put on record after the submission stays
*) printf '%s\\n' "$GLOBUS_GRAM_JOB_CONTACT" >contact.new && mv contact.new contact ;;
esac
[ -s ../job ] || {{ echo {job} >"../job.$1" && mv "../job.$1" ../job; }}
exec >>pilot.log 2>&1 </dev/null
mkdir -p tmp
fail() {{ echo "airpanda: $1"; rm -f pilot.json; echo 71 >exit; exit 71; }}
if grep -q '"{mark}"' pilot.json; then
    case ${{X509_USER_PROXY-}} in
    '' | *[!A-Za-z0-9/._-]*) fail "GRAM gave the job no usable X509_USER_PROXY; the site's administrator must look" ;;
    esac
    sed "s|{mark}|$X509_USER_PROXY|" pilot.json >pilot.new && mv pilot.new pilot.json || fail "no space for the pilot"
fi
"""


class Gram:
    """Pilots' directories on a GRAM CE. The jobs themselves are submitted from outside, one for each copy."""

    kind = "gram"
    limits = Limits(max_batch=100, max_handles=200)
    index = ""
    job_id = JOB
    functions = """\
list_tag() { :; }
list_jobs() { (
    set +f
    cd -- "$directory" 2>/dev/null || exit 0
    for place in */[0-9]*; do
        [ -d "$place" ] && [ ! -e "$place/exit" ] || continue
        state=waiting
        if [ -d "$place/started" ]; then state=started; elif [ -e "$place/cancelled" ]; then continue; fi
        contact=
        [ ! -s "$place/contact" ] || read -r contact <"$place/contact"
        printf 'airpanda-copy %s %s %s\\n' "$state" "$place" "${contact:--}"
    done
) }
active_tags() { list_jobs | grep -v ' waiting .* -$' | sed 's,^[^ ]* [^ ]* \\([^/]*\\)/.*,\\1,'; }
enqueue() { echo gram; }
dequeue() { :; }
"""
    errors: ErrorTable = ()

    def submit_arguments(self, spec: BatchSpec) -> tuple[str, ...]:
        """Nothing: the batch is only put in place."""
        return ()

    def cancel_arguments(self, jobs: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Nothing: each copy has its mark, and GRAM is told from outside."""
        return ()

    def parse_jobs(self, text: str) -> list[CEJob]:
        """The copies that have not ended, as far as files tell."""
        return [_job(*match.groups()) for match in filter(None, map(_COPY.fullmatch, text.splitlines()))]

    def parse_contacts(self, text: str) -> dict[tuple[str, int], str]:
        """GRAM's names of those copies, by tag and index; without those that nobody knows."""
        found = filter(None, map(_COPY.fullmatch, text.splitlines()))
        return {(match[2], int(match[3])): match[4] for match in found if is_contact(match[4])}


def _job(state: str, tag: str, index: str, contact: str) -> CEJob:
    if state == "started":
        known = f", as {contact}" if is_contact(contact) else "; GRAM's name of its job is not known"
        return CEJob(JOB, int(index), tag, PilotJobState.RUNNING, f"the pilot has begun{known}")
    if not is_contact(contact):
        return CEJob(JOB, int(index), tag, PilotJobState.SUBMITTED, "put in place; GRAM has not said that it has it")
    return CEJob(JOB, int(index), tag, PilotJobState.QUEUED, f"waits as {contact}")


def start_script(directory: str, tag: str, *, code: str, python: str) -> str:
    """What each job runs, with the index of its copy as argument."""
    start = _START.format(directory=shlex.quote(f"{directory}/{tag}"), job=JOB, mark=PROXY_MARK)
    return start + pilot_script(
        code,
        python,
        wrapper="../wrapper.sh",
        watch="until [ -e cancelled ]; do sleep 5; done",
        last=RECORD_EXIT,
    )
