"""The checks of ``handclasp doctor``. Each yields findings and never raises for what it is there to find."""

from __future__ import annotations

import email.utils
import http.client
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cryptography import x509

from handclasp.cli import connection, terminal
from handclasp.cli.command import State
from handclasp.cli.connection import Api
from handclasp.clock import from_datetime, parse_rfc3339
from handclasp.errors import HandclaspError, Kind

SKEW_WARN = 5.0
"""Seconds between our clock and the server's that deserve a word: certificates may live as short as 20 s."""
SKEW_FAIL = 60.0
"""Certificates are backdated by 60 s: beyond it a new one is not valid yet on one of the two machines."""
CHECKPOINT_WARN, CHECKPOINT_FAIL = 10.0, 120.0
"""Seconds that an entry may wait for a checkpoint; the log promises one second."""
ENDING = 30 * 86400.0
_TIMEOUT = 5.0
_DEAD_TOKEN = (Kind.NOT_AUTHENTICATED, Kind.TOKEN_UNKNOWN, Kind.TOKEN_EXPIRED, Kind.TOKEN_SPENT, Kind.TOKEN_REVOKED)
_TRUST_HINT = "get the bundle with: handclasp ca bundle --ca sha256:ROOT --out FILE, and set HANDCLASP_CA=FILE"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, ``ok`` ``warn`` or ``fail``, what was found, and what to do."""

    check: str
    verdict: str
    detail: str
    hint: str = ""


def examine(state: State, agent_config: str | None, agent_state: str | None) -> Iterator[Finding]:
    """Yield findings, in the order in which things depend on each other; what cannot be looked at is left out."""
    settings = None
    try:
        settings = connection.resolve(state)
    except HandclaspError as error:
        yield Finding("settings", "fail", error.detail, error.hint)
    if settings is not None:
        yield from _settings(state, settings)
        date, finding = _reach(settings.url)
        yield finding
        if finding.verdict == "ok":
            yield _skew(date)
            yield from _server(settings)
    yield from _agent(agent_config, agent_state)


# --- this side --------------------------------------------------------------------------------------------------------------------------


def _settings(state: State, settings: Any) -> Iterator[Finding]:
    trust = settings.ca or "the system's trust store"
    yield Finding("settings", "ok", f"{settings.url}, trusting {trust if not trust.startswith('-----') else 'a bundle in the settings'}")
    file = state.token_file or os.environ.get("HANDCLASP_TOKEN_FILE", "")
    if file and file != "-" and Path(file).exists() and stat.S_IMODE(Path(file).stat().st_mode) & 0o077:
        yield Finding("settings", "warn", f"others on this machine can read {file}", f"chmod 600 {file}")


def _agent(config: str | None, state_dir: str | None) -> Iterator[Finding]:
    from handclasp.cli.agents import agent_status

    try:
        status = agent_status(config, state_dir)
    except HandclaspError as error:
        asked_for = config is not None or state_dir is not None
        yield Finding(
            "agent",
            "fail" if asked_for else "ok",
            error.detail if asked_for else "no agent is enrolled here",
            error.hint if asked_for else "",
        )
        return
    troubled = [item for item in status.identities if item.state != "ok"]
    for item in troubled:
        verdict = "warn" if item.state == "renewing" else "fail"
        yield Finding(
            "agent",
            verdict,
            f"{item.identity} is {item.state}" + (f": {item.last_failure}" if item.last_failure else ""),
            "handclasp agent plan",
        )
    if not troubled:
        yield Finding("agent", "ok", f"{len(status.identities)} identities are fresh")


# --- the way to the server --------------------------------------------------------------------------------------------------------------


def _reach(url: str) -> tuple[str, Finding]:
    """Ask for the server's health without trusting it: all that is taken from the answer is that there is one, and its date."""
    from handclasp.client.connections import unverified_context

    parts = urlsplit(url)
    try:
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=_TIMEOUT, context=unverified_context())
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read(65536)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return "", Finding(
            "reach", "fail", f"{url} does not answer: {reason}", "is the server up, and the address right? (--url, HANDCLASP_URL)"
        )
    return answer.headers.get("Date", ""), Finding("reach", "ok", f"{url} answers")


def _skew(date: str) -> Finding:
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return Finding("clock", "warn", "the server does not say what time it is")
    skew = terminal.clock() / 1000 - there - 0.5  # the header has whole seconds, cut off
    words = f"this clock is {terminal.span(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the server's"
    if abs(skew) > SKEW_FAIL:
        return Finding("clock", "fail", words, "set the clock (chrony, systemd-timesyncd): new certificates look not valid yet, or ended")
    if abs(skew) > SKEW_WARN:
        return Finding("clock", "warn", words, "keep the clock set (chrony, systemd-timesyncd)")
    return Finding("clock", "ok", "this clock and the server's agree")


def _server(settings: Any) -> Iterator[Finding]:
    from handclasp.wire import Health

    api = connection.open_api(settings, timeout=_TIMEOUT, attempts=1)
    try:
        health = api.get("/readyz", Health)
        yield Finding("trust", "ok", "the server's certificate is the one that is trusted")
        problems = health.problems
        yield Finding("server", "warn" if problems else "ok", "; ".join(problems) or f"it is {health.status}")
    except HandclaspError as error:
        if error.kind in (Kind.VERIFY_FAILED, Kind.BAD_CERTIFICATE, Kind.BAD_SETTING, Kind.BAD_KEY):
            yield Finding("trust", "fail", error.detail, error.hint or _TRUST_HINT)
            return
        yield Finding("server", "fail", error.detail, error.hint or "look at the server's log")
    checks: tuple[tuple[str, Callable[[Api, Any], Iterator[Finding]]], ...] = (
        ("token", _token),
        ("authorities", _authorities),
        ("crl", _crls),
        ("log", _log),
    )
    for name, check in checks:
        try:
            yield from check(api, settings)
        except HandclaspError as error:
            yield Finding(name, "fail", error.detail, error.hint)


def _token(api: Api, settings: Any) -> Iterator[Finding]:
    from handclasp.wire import Token, TokenList

    token = settings.token
    if not token:
        yield Finding("token", "warn", "there is no token: only public commands work", "set HANDCLASP_TOKEN, or --token-file")
        return
    parts = token.split("_")
    try:
        if token.startswith("hct_") and len(parts) == 3:
            yield _known_token(api.get(f"/v1/tokens/{quote(parts[1], safe='')}", Token))
        else:
            api.get("/v1/tokens", TokenList, limit=1)
            yield Finding("token", "ok", "the server takes it")
    except HandclaspError as error:
        if error.kind in _DEAD_TOKEN:
            yield Finding("token", "fail", error.detail, error.hint or "get a new one: handclasp token create")
        elif error.kind in (Kind.NOT_ALLOWED, Kind.NOT_FOUND):
            yield Finding("token", "ok", "the server takes it (it may not look at itself)")
        else:
            raise


def _known_token(found: Any) -> Finding:
    left = (parse_rfc3339(found.expires_at) - terminal.clock()) / 1000
    detail = f"{found.name} ({found.id}) ends {terminal.relative(found.expires_at)}"
    if found.state != "active":
        return Finding("token", "fail", f"{found.name} ({found.id}) is {found.state}", "get a new one: handclasp token create")
    if left < 3600 and found.scopes:
        return Finding("token", "warn", detail, "make the next one in time: handclasp token create")
    return Finding("token", "ok", detail)


# --- what the server publishes ----------------------------------------------------------------------------------------------------------


def _authorities(api: Api, _settings: Any) -> Iterator[Finding]:
    from handclasp.cli.pem import load_certificates
    from handclasp.client.first_contact import Bundles

    roots, troubled = 0, False
    for item in api.get("/v1/bundles", Bundles).items:
        for certificate in load_certificates(item.pem.encode(), f"the bundle of {item.trust_domain}"):
            roots += 1
            left = (_at(certificate.not_valid_after_utc) - terminal.clock()) / 1000
            if left < ENDING:
                troubled = True
                words = f"a root of {item.trust_domain} " + (f"ends in {terminal.span(left)}" if left > 0 else "has ended")
                yield Finding("authorities", "warn" if left > 0 else "fail", words, "make the next one: handclasp ca root create")
    if not roots:
        yield Finding("authorities", "fail", "no root is published", "make one: handclasp init")
    elif not troubled:
        yield Finding("authorities", "ok", f"{roots} root{'' if roots == 1 else 's'} published")


def _crls(api: Api, _settings: Any) -> Iterator[Finding]:
    from handclasp.cli.pem import blocks
    from handclasp.client.first_contact import Bundles

    count, troubled = 0, False
    for item in api.get("/v1/bundles", Bundles).items:
        for label, text in blocks(api.raw(f"/v1/crls/{quote(item.trust_domain, safe='')}.pem")):
            if label == "X509 CRL":
                count += 1
                finding = _crl(item.trust_domain, text)
                if finding is not None:
                    troubled = True
                    yield finding
    if not count:
        yield Finding("crl", "warn", "no revocation list is published")
    elif not troubled:
        yield Finding("crl", "ok", f"{count} revocation list{'' if count == 1 else 's'} published")


def _crl(trust_domain: str, text: bytes) -> Finding | None:
    """Return what is wrong with one revocation list."""
    now = terminal.clock()
    try:
        crl = x509.load_pem_x509_crl(text)
        begins, ends = _at(crl.last_update_utc), _at(crl.next_update_utc) if crl.next_update_utc else None
        hint = _crl_hint(crl)
    except ValueError:
        return Finding("crl", "fail", f"a revocation list of {trust_domain} cannot be read", "look at the server's log")
    if ends is not None and ends < now:
        return Finding("crl", "fail", f"a revocation list of {trust_domain} ended {terminal.span((now - ends) / 1000)} ago", hint)
    if ends is not None and ends - now < (ends - begins) / 4:
        return Finding("crl", "warn", f"a revocation list of {trust_domain} ends in {terminal.span((ends - now) / 1000)}", hint)
    return None


def _crl_hint(crl: x509.CertificateRevocationList) -> str:
    issuer = crl.issuer.rfc4514_string()
    return f"{issuer}: is the server publishing? An offline root's list is renewed with: handclasp ca root crl DIR"


def _log(api: Api, _settings: Any) -> Iterator[Finding]:
    """The oldest entry that is in no checkpoint yet tells how old the checkpoint is; a checkpoint itself has no time."""
    from handclasp.log.checkpoint import parse_checkpoint
    from handclasp.log.notes import parse_note
    from handclasp.wire import LogEntry

    try:
        size = parse_checkpoint(parse_note(api.raw("/v1/log/checkpoint")).text).size
        waiting = api.get(f"/v1/log/entries/{size}", LogEntry)
    except HandclaspError as error:
        if error.kind in (Kind.NOT_ALLOWED, *_DEAD_TOKEN):
            yield Finding("log", "warn", "this token may not read the log", "use one with --scope log:read")
        elif error.kind is Kind.NOT_FOUND:
            yield Finding("log", "ok", "every entry is in the checkpoint")
        else:
            raise
        return
    age = (terminal.clock() - parse_rfc3339(str(waiting.entry.get("at", "")))) / 1000
    words = f"entry {size} has waited {terminal.span(max(age, 0))} for a checkpoint"
    if age > CHECKPOINT_FAIL:
        yield Finding("log", "fail", words, "the sequencer stands still: look at the server's log, then handclasp audit verify")
    elif age > CHECKPOINT_WARN:
        yield Finding("log", "warn", words, "the sequencer is behind: look at the server's load and disk")
    else:
        yield Finding("log", "ok", f"the checkpoint of {size} entries is fresh")


def _at(value: datetime) -> int:
    return from_datetime(value)
