#!/bin/sh
# Becomes the pilot: finds a Python >= 3.9 with `cryptography`, cleans the environment, and execs it.
#
#   sh wrapper.sh --code DIR [--python FILE] pilot.json | sweep.json --sweep
#
# DIR holds the package airpanda. Exit codes are PanDA's: 67 a file is missing, 73 no software directory,
# 76 no usable Python; afterwards they are the pilot's own. Every one comes with a sentence on stderr.

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
if [ ! -r "$code/airpanda/pilot/__main__.py" ]; then
    say "'$code' holds no readable airpanda; the site must correct [pilot] code in the queue file"
    exit 73
fi

# -I: neither the user's site directory nor PYTHON* variables take part.
fits() {
    "$1" -I -c 'import sys, importlib.util
sys.exit(0 if sys.version_info >= (3, 9) and importlib.util.find_spec("cryptography") else 1)' 2>/dev/null
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

exec env -i PATH="$PATH" HOME="${HOME:-/}" LANG=C.UTF-8 TMPDIR="${TMPDIR:-/tmp}" \
    "$python" -I -c 'import sys
sys.path.insert(0, sys.argv.pop(1))
from airpanda.pilot.__main__ import main
sys.exit(main(sys.argv[1:]))' "$code" "$@"
