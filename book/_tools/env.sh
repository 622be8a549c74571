#!/bin/sh
# Makes .venv and installs the book into it; does nothing when that is already so.
#   VENV    where (default .venv)
#   PYTHON  which interpreter (default: the first suitable one)
# "Already so" means: the same Python version, pyproject.toml and constraints.txt as last time.
# Plain sh, because no Python may be there yet.
set -eu
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-}

say() { printf '%s\n' "$*" >&2; }

# Prints the version when an interpreter runs and is 3.11, 3.12 or 3.13; fails otherwise.
suitable() {
    "$1" -c 'import platform, sys
sys.exit(1) if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None
print(platform.python_implementation(), platform.python_version())' 2>/dev/null
}

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

find_python() {
    if [ -n "$PYTHON" ]; then
        if suitable "$PYTHON" >/dev/null; then command -v "$PYTHON"; return; fi
        found=$(version_of "$PYTHON" || true)
        if [ -n "$found" ]; then
            say "PYTHON=$PYTHON is Python $found. The book needs Python 3.11, 3.12 or 3.13."
        else
            say "PYTHON=$PYTHON cannot be run. Give the name or path of Python 3.11, 3.12 or 3.13."
        fi
        exit 1
    fi
    seen=""
    for name in python3 python3.13 python3.12 python3.11 python; do
        if suitable "$name" >/dev/null; then command -v "$name"; return; fi
        found=$(version_of "$name" || true)
        [ -z "$found" ] || seen="$seen $name is $found;"
    done
    say "The book needs Python 3.11, 3.12 or 3.13, and none was found on this machine."
    [ -z "$seen" ] || say "What was found:${seen%;}."
    say "Install one (https://www.python.org/downloads/, or 'apt-get install python3.11 python3.11-venv',"
    say "or 'brew install python@3.13'), or name it: make book PYTHON=/path/to/python3.13"
    exit 1
}

now=""
if [ -x "$VENV/bin/python" ]; then now=$(suitable "$VENV/bin/python" || true); fi

# Keep a working .venv, whatever python3 has become meanwhile, unless PYTHON asks for another version.
base=""
if [ -z "$now" ] || [ -n "$PYTHON" ]; then
    base=$(find_python)
    [ "$now" = "$(suitable "$base")" ] || now=""
fi

if [ -z "$now" ]; then
    if ! "$base" -c 'import venv, ensurepip' 2>/dev/null; then
        short=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        say "$base has no venv module, so .venv cannot be made."
        say "On Debian or Ubuntu: apt-get install python$short-venv; then the same command again."
        exit 1
    fi
    say "Making $VENV with $base ($(suitable "$base"))"
    rm -rf "$VENV"
    "$base" -m venv "$VENV"
    now=$(suitable "$VENV/bin/python")
fi

want="$now $(cat pyproject.toml constraints.txt | cksum)"
stamp="$VENV/installed"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    say "Installing the book's packages into $VENV (the first time takes minutes: torch is large)"
    rm -f "$stamp"
    quiet="-qq"
    [ ! -t 1 ] || quiet="--progress-bar=on"
    "$VENV/bin/python" -m pip install "$quiet" --disable-pip-version-check \
        -c constraints.txt -e '.[book,test,interop]'
    printf '%s\n' "$want" > "$stamp"
fi
