#!/usr/bin/env bash
# Usage: tools/venv.sh DIRECTORY LOCKFILE…
# Makes the virtual environment when there is none that works, installs the locked packages (every file checked against its hash), and
# installs this project into it as editable. Python's own venv and pip are all it needs.
set -euo pipefail
venv=$1
shift

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Prints the first Python that is new enough.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "No Python 3.11 or later found. Install one, or name it: make venv PYTHON=/path/to/python3"
}

# Debian splits the part of Python that puts pip into a new environment into a package of its own.
ensure_venv_module() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    local package
    package="python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $package" >&2
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >&2
        apt-get install -qq -y --no-install-recommends "$package" >&2
    else
        fail "This Python cannot make virtual environments. Install it, e.g.: apt-get install $package"
    fi
}

usable() {
    [ -x "$venv/bin/python" ] || return 1
    # The recorded location is compared because a copied environment would run, and would import the tree it was copied from.
    [ "$("$venv/bin/python" -c 'import pip, sys; print(sys.prefix)' 2>/dev/null)" = "$(cd "$venv" 2>/dev/null && pwd -P)" ] &&
        grep -qs "$(cd "$venv" && pwd -P)" "$venv/bin/activate"
}

if ! usable; then
    python=$(find_python)
    ensure_venv_module "$python"
    echo "making $venv with $("$python" --version)" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

locks=()
for lock in "$@"; do
    locks+=(-r "$lock")
done
echo "installing $*" >&2
# --no-deps: a lock file is the whole answer, so there is nothing to resolve.
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --root-user-action ignore)
"${pip[@]}" --require-hashes --no-deps "${locks[@]}"
# --no-index and --no-build-isolation: building this project fetches nothing, its build backend is among the locked packages.
"${pip[@]}" --no-deps --no-index --no-build-isolation --editable .
