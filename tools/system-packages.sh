#!/usr/bin/env bash
# Installs the programs that some tests drive, when they are missing and this is root on a machine with apt. Never fails: a test whose
# program is missing is skipped, and the last lines of the test run say which.
set -uo pipefail

# Debian keeps the PostgreSQL server's programs off the PATH.
present() {
    command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null || [ -x "/usr/sbin/$1" ]
}

missing=()
for pair in nginx:nginx initdb:postgresql softhsm2-util:softhsm2 openssl:openssl curl:curl haproxy:haproxy \
    apache2:apache2-bin redis-server:redis-server mariadbd:mariadb-server-core mariadb:mariadb-client-core chromium:chromium \
    exim4:exim4-daemon-light dovecot:dovecot-imapd slapd:slapd; do
    present "${pair%%:*}" || missing+=("${pair##*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0

echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "could not install them; the tests that need them are skipped" >&2
fi
rm -f "$log"
