"""``handclasp agent enroll``: a one-time token, or evidence that the server's policy takes, becomes the agent's own certificate."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Mapping

from handclasp import wire
from handclasp.agent import evidence
from handclasp.agent.anchors import normalized
from handclasp.agent.generations import replace_file
from handclasp.agent.loop import own_identity
from handclasp.agent.obtain import keep
from handclasp.agent.state import AgentFile, Enrolment, IdentityState, StateDirectory
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
    enrolment: Enrolment | None = None,
    clock: Clock = system_clock,
) -> AgentFile:
    """Obtain the agent's certificate and write the state directory; durable on return. Enrolling again replaces the certificate.

    By a token it is ``spiffe://<trust domain>/agent/<name>``, ``name`` the host's by default. By evidence (``enrolment`` says where it is
    found) the policy gives the name, and ``agent.json`` remembers where, so that the running agent can enrol again by itself.
    ``trust_domain`` is needed where the server has several and first contact is not by fingerprint. ``labels`` are kept beside the
    certificate as a note; those that policy looks at come from the token or the policy's rule. Raises what the server refuses with,
    ``conflict`` while an agent runs on ``state_dir``, ``bad_setting``.
    """
    how = evidence.checked(enrolment or Enrolment())
    by_token = how.method == "token"
    token = token or settings.token
    if by_token and not token:
        raise HandclaspError(Kind.BAD_SETTING, "an enrolment needs a token", hint="make one with `handclasp token create NAME --agent`")
    if not by_token and name is not None:
        raise HandclaspError(Kind.BAD_SETTING, "by evidence the policy gives the name", hint="leave --name out")
    state = StateDirectory(state_dir)
    state.prepare()
    with state.lease():
        bundle = _bundle(settings, trust_domain)
        ca = bundle.pem if settings.ca else None
        key, issued = _by_token(settings.url, ca, bundle.trust_domain, name, token) if by_token else _by_evidence(settings.url, ca, how)
        now = clock()
        state.own.prepare()
        replace_file(state.anchors(bundle.trust_domain), normalized(bundle.pem), 0o644)
        keep(state.own, key, issued, own_identity(issued.identity).digest, now, random.SystemRandom().random)
        state.own.save(IdentityState(identity=issued.identity, last_success=now))
        agent = AgentFile(
            url=settings.url,
            identity=issued.identity,
            trust_domain=bundle.trust_domain,
            labels=dict(labels or {}),
            enrolled_at=rfc3339(now),
            enrolment=how,
        )
        state.save_agent(agent)
    return agent


def _by_token(url: str, ca: str | None, trust_domain: str, name: str | None, token: str | None) -> tuple[bytes, wire.Issued]:
    name = name or socket.gethostname()
    if not _NAME.fullmatch(name):
        raise HandclaspError(Kind.BAD_SETTING, f"{name!r} cannot be an agent's name", hint="letters, digits, dots and dashes")
    identity = f"spiffe://{trust_domain}/agent/{name}"
    key, csr = new_request("p256", identity=identity)
    with ApiClient(url, ca=ca, token=token) as client:
        try:
            return key, client.issue(wire.IssueRequest(csr=csr, identity=identity, profile="agent"))
        except HandclaspError as error:
            if error.kind is Kind.NAME_NOT_ALLOWED:
                error.hint = f"is {name} the name that the token was made for? Say another with --name; the token can still be used"
            raise


def _by_evidence(url: str, ca: str | None, how: Enrolment) -> tuple[bytes, wire.Issued]:
    key, csr = new_request("p256", identity=None)
    with ApiClient(url, ca=ca) as client:
        issued = client.enrol(wire.EnrolRequest(csr=csr, evidence=evidence.gather(how, client, csr)))
    how.again = issued.again
    return key, issued


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
