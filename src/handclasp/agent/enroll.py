"""``handclasp agent enroll``: a one-time token becomes the agent's own certificate; the token is needed nowhere after that."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Mapping

from handclasp import wire
from handclasp.agent.anchors import normalized
from handclasp.agent.generations import replace_file
from handclasp.agent.keeper import keep
from handclasp.agent.loop import own_identity
from handclasp.agent.state import AgentFile, IdentityState, StateDirectory
from handclasp.client.api import ApiClient
from handclasp.client.csr import new_request
from handclasp.client.first_contact import Bundle, Bundles, fetch_bundle
from handclasp.client.settings import ClientSettings
from handclasp.clock import Clock, rfc3339, system_clock
from handclasp.errors import HandclaspError, Kind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def enroll(
    settings: ClientSettings,
    token: str | None,
    state_dir: str | os.PathLike[str],
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    trust_domain: str | None = None,
    clock: Clock = system_clock,
) -> AgentFile:
    """Obtain the certificate of ``spiffe://<trust domain>/agent/<name>`` and write the state directory; durable on return.

    ``name`` is the host's by default. ``trust_domain`` is needed where the server has several and first contact is not by fingerprint.
    ``labels`` are kept beside the certificate as a note; those that policy looks at come from the token. Enrolling again replaces the
    certificate. Raises what the server refuses with, ``conflict`` while an agent runs on ``state_dir``, ``bad_setting``.
    """
    token = token or settings.token
    if not token:
        raise HandclaspError(Kind.BAD_SETTING, "an enrolment needs a token", hint="make one with `handclasp token create NAME --agent`")
    name = name or socket.gethostname()
    if not _NAME.fullmatch(name):
        raise HandclaspError(Kind.BAD_SETTING, f"{name!r} cannot be an agent's name", hint="letters, digits, dots and dashes")
    state = StateDirectory(state_dir)
    state.prepare()
    with state.lease():
        bundle = _bundle(settings, trust_domain)
        identity = f"spiffe://{bundle.trust_domain}/agent/{name}"
        key, csr = new_request("p256", identity=identity)
        with ApiClient(settings.url, ca=bundle.pem if settings.ca else None, token=token) as client:
            issued = client.issue(wire.IssueRequest(csr=csr, identity=identity, profile="agent"))
        now = clock()
        state.own.prepare()
        replace_file(state.anchors(bundle.trust_domain), normalized(bundle.pem), 0o644)
        keep(state.own, key, issued, own_identity(identity).digest, now, random.SystemRandom().random)
        state.own.save(IdentityState(identity=identity, last_success=now))
        agent = AgentFile(
            url=settings.url, identity=identity, trust_domain=bundle.trust_domain, labels=dict(labels or {}), enrolled_at=rfc3339(now)
        )
        state.save_agent(agent)
    return agent


def _bundle(settings: ClientSettings, trust_domain: str | None) -> Bundle:
    """The trust bundle that this agent starts with: the server's, over a connection that is verified or pinned to a root."""
    if settings.ca and settings.ca.startswith("sha256:"):
        found = [fetch_bundle(settings.url, settings.ca)]
    else:
        with ApiClient(settings.url, ca=settings.ca) as client:
            found = client.call("GET", "/v1/bundles", response=Bundles).items
    if trust_domain is not None:
        found = [item for item in found if item.trust_domain == trust_domain]
    if len(found) != 1:
        known = ", ".join(item.trust_domain for item in found) or "none that matches"
        raise HandclaspError(
            Kind.BAD_SETTING, f"which trust domain is the agent of? The server has {known}", hint="say it with --trust-domain"
        )
    return found[0]
