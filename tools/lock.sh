#!/usr/bin/env bash
# Usage: tools/lock.sh [--upgrade]
# Writes requirements/*.txt from pyproject.toml: pinned, hashed, for every platform and Python this project supports, and free of index
# addresses, paths and comments, so that the same files work behind any mirror. dev.txt is resolved first and constrains the others, so
# that all of them agree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    python3 -m venv .make/uv
    .make/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
    uv=.make/uv/bin/uv
fi

lock() {
    local output=requirements/$1
    shift
    "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@" pyproject.toml -o "$output"
}

mkdir -p requirements
lock dev.txt "$@" --extra server --extra pkcs11 --group dev
lock server.txt -c requirements/dev.txt --extra server
lock runtime.txt -c requirements/dev.txt
for group in build assets; do
    "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links -c requirements/dev.txt --group "$group" -o "requirements/$group.txt"
done
