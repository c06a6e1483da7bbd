"""The end of every script that becomes a pilot: the pilot runs, is told to end in time, and is cleaned up after.

Before it each computing element puts the pilot's files in place, in its own words. The script begins in the pilot's own
directory, with ``pilot.json`` in it.
"""

from __future__ import annotations

import shlex

SIGNALS = "TERM INT HUP QUIT USR1 USR2 XCPU"
"""With which batch systems ask for the end of a pilot, or say that it is near."""

RECORD_EXIT = 'echo "$code" >exit.new && mv exit.new exit'
"""A last command that puts the exit code where ``airpanda.computing.remote`` looks."""

TIME_LEFT = (
    "SLURM_JOB_END_TIME",
    "PBS_WALLTIME",
    "SGE_ROOT",
    "SGE_CELL",
    "JOB_ID",
    "QUEUE",
    "_CONDOR_JOB_AD",
    "_CONDOR_MACHINE_AD",
)
"""All of a batch system's environment that reaches a pilot: how long it may run (``airpanda.pilot.timeleft``)."""

_RUN = (
    """\
run() {{
    exec env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME="$PWD" LANG=C.UTF-8 TMPDIR="$PWD/tmp" \\
"""
    + "".join(f"""        ${{{{{name}:+"{name}=${name}"}}}} \\\n""" for name in TIME_LEFT)
    + """\
        sh {wrapper} --code {code} --python {python} "$@"
}}
"""
)
# A caught signal is reset in the pilot; an ignored one would stay ignored, hence the empty command. The shell outlives
# signals to clean up.
_AMONG_ALL = f"""\
trap : {SIGNALS}
(run pilot.json)
code=$?
"""
# A signal ends `wait`, not the pilot. What begins behind a trap has it for its first moments, and a signal in them is
# lost: so the trap comes last, or the watcher of a pilot that ends at once would stay for ever.
_ALONE = f"""\
(run pilot.json) &
pilot=$!
%strap 'kill -TERM "$pilot" 2>/dev/null' {SIGNALS}
while :; do
    wait "$pilot"
    code=$?
    kill -0 "$pilot" 2>/dev/null || break
done
%s"""
_WATCH = """\
(
    %s
    kill -TERM "$pilot"
) 2>/dev/null &
watcher=$!
"""
_UNWATCH = 'kill "$watcher" 2>/dev/null\n'
_CLEAN = """\
rm -f pilot.json
[ ! -f sweep.json ] || (run sweep.json --sweep)
"""


def pilot_script(
    code: str,
    python: str,
    *,
    wrapper: str = "./wrapper.sh",
    passes_signals: bool = True,
    watch: str = "",
    last: str = "",
) -> str:
    """Shell that runs the pilot in an environment of its own, and ends with its exit code.

    Args:
        code: ``[pilot] code``.
        python: ``[pilot] python``.
        wrapper: shell words for the file of the wrapper.
        passes_signals: False where the batch system signals every process of a job, and the pilot by itself.
        watch: a command that returns when the pilot is to end although no signal came; only where signals are passed.
        last: a command for when all is cleaned up; ``$code`` is the pilot's exit code.
    """
    run = _RUN.format(wrapper=wrapper, code=shlex.quote(code), python=shlex.quote(python))
    alone = _ALONE % ((_WATCH % watch, _UNWATCH) if watch else ("", ""))
    return "".join(
        (run, alone if passes_signals else _AMONG_ALL, _CLEAN, f"{last}\n" if last else "", 'exit "$code"\n')
    )
