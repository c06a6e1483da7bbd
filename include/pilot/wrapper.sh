#!/bin/sh
# Becomes the pilot: finds a Python >= 3.9 with `cryptography`, verifies and unpacks the bundle, cleans the
# environment, and execs it.
#
#   sh wrapper.sh --code DIR|BUNDLE [--python FILE] pilot.json | sweep.json --sweep
#
# DIR holds the package airpanda; BUNDLE is a file made by `python -m airpanda pilot bundle`, with BUNDLE.sha256
# beside it, and is unpacked beside pilot.json. Exit codes are PanDA's: 67 a file is missing, 73 no software
# directory, or a bundle that is not what its checksum says, 76 no usable Python; afterwards they are the pilot's
# own. Every one comes with a sentence on stderr.

say() { echo "airpanda wrapper: $*" >&2; }

code='' wanted=''
while [ $# -gt 1 ]; do
    case $1 in
    --code) code=$2 ;;
    --python) wanted=$2 ;;
    *) break ;;
    esac
    shift 2
done
config=${1-}

if [ -z "$config" ] || [ ! -f "$config" ] || [ ! -r "$config" ]; then
    say "the pilot's configuration '$config' is no readable file; the computing element must write it"
    exit 67
fi
if [ -f "$code" ]; then
    if [ ! -r "$code" ] || [ ! -r "$code.sha256" ]; then
        say "the bundle '$code' or its '$code.sha256' cannot be read; the site must copy both to the node"
        exit 73
    fi
elif [ ! -r "$code/airpanda/pilot/__main__.py" ]; then
    say "'$code' holds no readable airpanda; the site must correct [pilot] code in the queue file"
    exit 73
fi

# -I: neither the user's site directory nor PYTHON* variables take part. A bundle may bring `cryptography` along.
fits() {
    "$1" -I -c 'import sys, importlib.util, zipfile
def brings(path):
    return zipfile.is_zipfile(path) and any(name.startswith("wheels/") for name in zipfile.ZipFile(path).namelist())
sys.exit(0 if sys.version_info >= (3, 9) and (importlib.util.find_spec("cryptography") or brings(sys.argv[1])) else 1)
' "$code" 2>/dev/null
}

python='' seen=''
for name in "$wanted" python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9; do
    path=$(command -v "$name" 2>/dev/null) || continue
    case $path in /*) ;; *) continue ;; esac
    if fits "$path"; then
        python=$path
        break
    fi
    seen="$seen $path"
done
if [ -z "$python" ]; then
    say "no Python >= 3.9 with the package 'cryptography' on this node (tried:${seen:- none found}); the site must" \
        "install python3-cryptography or set [pilot] python in the queue file"
    exit 76
fi
if [ -n "$wanted" ] && [ "$python" != "$wanted" ]; then
    say "the configured $wanted cannot be used; took $python"
fi

# The bundle is read once: what is verified is what is unpacked. Two pilots in one directory do not disturb each other.
unpack='
import hashlib, io, os, shutil, sys, tempfile, zipfile

def fail(text):
    sys.exit("airpanda wrapper: the bundle %s %s; the site must copy it and its .sha256 again" % (bundle, text))

bundle, home = sys.argv[1:]
with open(bundle, "rb") as file:
    data = file.read()
with open(bundle + ".sha256", encoding="ascii", errors="replace") as file:
    words = file.read(200).split()
digest = hashlib.sha256(data).hexdigest()
if not words or words[0].lower() != digest:
    fail("is not what its checksum says")
tag = "cp%d%d" % sys.version_info[:2]
target = os.path.join(home, "code-%s-%s" % (digest[:16], tag))

def fitting(names):
    """The newest wheel of each distribution that this Python on this machine can use."""
    best = {}
    for name in names:
        python, abi, platform = name[:-4].split("-")[-3:]
        lowest = int(python[3:]) if python[:3] == "cp3" and python[3:].isdigit() else 0
        mine = python == tag or "py3" in python or (abi == "abi3" and 0 < lowest <= sys.version_info[1])
        if mine and (platform == "any" or os.uname().machine in platform):
            key = name.split("-")[0]
            best[key] = max(best.get(key, (0, "")), (lowest, name))
    return [name for _, name in best.values()]

if not os.path.isdir(target):
    fresh = tempfile.mkdtemp(prefix=".code-", dir=home)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(fresh)
        wheels = os.path.join(fresh, "wheels")
        for name in fitting(os.listdir(wheels) if os.path.isdir(wheels) else []):
            with zipfile.ZipFile(os.path.join(wheels, name)) as wheel:
                wheel.extractall(os.path.join(fresh, "packages"))
        shutil.rmtree(wheels, ignore_errors=True)
        os.rename(fresh, target)
    except zipfile.BadZipFile:
        fail("is no archive")
    except OSError as error:
        if not os.path.isdir(target):
            sys.exit("airpanda wrapper: the bundle cannot be unpacked in %s: %s" % (home, error))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
print(target)
'
if [ -f "$code" ]; then
    umask 077
    code=$("$python" -I -c "$unpack" "$code" "$(dirname "$config")") || exit 73
fi

# What batch systems say about the time that is left goes along, and where Grid Engine's qstat finds its master;
# nothing else does.
exec env -i PATH="$PATH" HOME="${HOME:-/}" LANG=C.UTF-8 TMPDIR="${TMPDIR:-/tmp}" \
    ${SLURM_JOB_END_TIME:+"SLURM_JOB_END_TIME=$SLURM_JOB_END_TIME"} ${PBS_WALLTIME:+"PBS_WALLTIME=$PBS_WALLTIME"} \
    ${SGE_ROOT:+"SGE_ROOT=$SGE_ROOT"} ${SGE_CELL:+"SGE_CELL=$SGE_CELL"} ${SGE_ROOT:+${JOB_ID:+"JOB_ID=$JOB_ID"}} \
    ${SGE_ROOT:+${QUEUE:+"QUEUE=$QUEUE"}} ${_CONDOR_JOB_AD:+"_CONDOR_JOB_AD=$_CONDOR_JOB_AD"} \
    ${_CONDOR_MACHINE_AD:+"_CONDOR_MACHINE_AD=$_CONDOR_MACHINE_AD"} \
    "$python" -I -c 'import sys, os, importlib.util
code = sys.argv.pop(1)
sys.path.insert(0, code)
if importlib.util.find_spec("cryptography") is None:
    sys.path.append(os.path.join(code, "packages"))
from airpanda.pilot.__main__ import main
sys.exit(main(sys.argv[1:]))' "$code" "$@"
