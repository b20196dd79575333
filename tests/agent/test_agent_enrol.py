"""Evidence on the agent's side: where it is found, what is refused before anybody is asked, and when a person is told to act."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp import wire
from handclasp.agent import enroll, evidence
from handclasp.agent.state import AgentFile, Enrolment, Obtained, StateDirectory
from handclasp.client.api import ApiClient
from handclasp.client.csr import new_request
from handclasp.client.settings import ClientSettings
from handclasp.errors import HandclaspError, Kind
from support.access import or_refused
from support.evidence import metadata_service
from support.fake_server import FakeServer
from support.programs import free_port

NOBODY = ApiClient("https://127.0.0.1:9", attempts=1, timeout=1)
CSR = new_request("p256", identity=None)[1]


def test_what_is_usual_is_filled_in() -> None:
    assert evidence.checked(Enrolment()) == Enrolment()
    kubernetes = evidence.checked(Enrolment(method="kubernetes", cluster="a"))
    assert kubernetes.token_file == evidence.KUBERNETES_TOKEN
    assert evidence.checked(Enrolment(method="aws")).metadata_url == evidence.METADATA
    assert Path(evidence.checked(Enrolment(method="oidc", token_file="t")).token_file).is_absolute()  # the agent runs elsewhere


@pytest.mark.parametrize(
    ("made", "hint"),
    [
        (Enrolment(method="tpm"), "one of"),
        (Enrolment(method="oidc"), "--token-file"),
        (Enrolment(method="kubernetes"), "--cluster"),
        (Enrolment(method="x509", cert_file="c"), "--key"),
        (Enrolment(method="x509", key_file="k"), "--cert"),
        (Enrolment(method="aws", document_file="d"), "--aws-signature"),
    ],
)
def test_what_is_missing_is_said(made: Enrolment, hint: str) -> None:
    with pytest.raises(HandclaspError) as refused:
        evidence.checked(made)
    assert refused.value.kind is Kind.BAD_SETTING
    assert hint in refused.value.hint


def test_tokens_are_read_anew_each_time(tmp_path: Path) -> None:
    how = Enrolment(method="kubernetes", cluster="a", token_file=str(tmp_path / "t"))
    for token in ("a.b.c", "d.e.f"):
        (tmp_path / "t").write_text(token + "\n")
        assert evidence.gather(how, NOBODY, CSR) == wire.Evidence(method="kubernetes", cluster="a", token=token)
    (tmp_path / "t").unlink()
    with pytest.raises(HandclaspError) as refused:
        evidence.gather(how, NOBODY, CSR)
    assert refused.value.kind is Kind.BAD_SETTING


def test_a_one_time_token_is_no_evidence_for_another_time() -> None:
    with pytest.raises(HandclaspError, match="serves once"):
        evidence.gather(Enrolment(), NOBODY, CSR)


def test_a_metadata_service_is_asked_by_its_second_version() -> None:
    with metadata_service(b'{"accountId": "1"}', b"signature") as url:
        found = evidence.gather(Enrolment(method="aws", metadata_url=url), NOBODY, CSR)
    assert (found.document, found.signature) == ("eyJhY2NvdW50SWQiOiAiMSJ9", "c2lnbmF0dXJl")


@pytest.mark.parametrize("url", ["https://169.254.169.254", "http://", "http://127.0.0.1/x", "file:///etc/passwd", "", "http://[::1"])
def test_what_is_no_metadata_service_is_not_asked(url: str) -> None:
    with pytest.raises(HandclaspError) as refused:
        evidence.gather(Enrolment(method="aws", metadata_url=url), NOBODY, CSR)
    assert refused.value.kind is Kind.BAD_SETTING


def test_a_metadata_service_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(HandclaspError) as refused:
        evidence.gather(Enrolment(method="aws", metadata_url=f"http://127.0.0.1:{free_port()}"), NOBODY, CSR)
    assert refused.value.kind is Kind.UNAVAILABLE


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("no certificate")
    (tmp_path / "key").write_text("no key")
    (tmp_path / "large").write_bytes(bytes(70_000))
    for how in (
        Enrolment(method="x509", cert_file=str(tmp_path / "cert"), key_file=str(tmp_path / "key")),
        Enrolment(method="x509", cert_file=str(tmp_path / "gone"), key_file=str(tmp_path / "key")),
        Enrolment(method="aws", document_file=str(tmp_path / "large"), signature_file=str(tmp_path / "key")),
    ):
        with pytest.raises(HandclaspError) as refused:
            evidence.gather(how, NOBODY, CSR)
        assert refused.value.kind in (Kind.BAD_SETTING, Kind.BAD_KEY)


def test_an_old_agent_file_is_one_of_a_token(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.prepare()
    known = {"version": 1, "url": "https://x", "identity": "spiffe://td/agent/a", "trust_domain": "td", "labels": {}, "enrolled_at": "x"}
    (tmp_path / "agent.json").write_text(json.dumps(known))
    assert state.agent().enrolment == Enrolment()
    assert evidence.reenrol(state, state.agent(), "https://x", None) is None


@given(st.binary(max_size=60) | st.dictionaries(st.sampled_from(["method", "again", "token_file"]), st.text() | st.booleans()))
def test_no_agent_file_makes_the_agent_fail_otherwise(enrolment: Any) -> None:
    known = {"version": 1, "url": "u", "identity": "i", "trust_domain": "t", "enrolled_at": "x", "enrolment": enrolment}
    try:
        agent = msgspec.json.decode(msgspec.json.encode(known), type=AgentFile)
    except msgspec.ValidationError:
        return
    with or_refused(Kind.BAD_SETTING):
        evidence.checked(agent.enrolment)


def test_evidence_has_no_name_of_its_own_choice(tmp_path: Path) -> None:
    how = Enrolment(method="kubernetes", cluster="a")
    with pytest.raises(HandclaspError) as refused:
        enroll(ClientSettings("https://127.0.0.1:9"), None, tmp_path, "host", enrolment=how)
    assert refused.value.kind is Kind.BAD_SETTING
    assert "--name" in refused.value.hint


# --- when a person is told --------------------------------------------------------------------------------------------------------------

OWN = Obtained(
    sha256="00", identity="spiffe://td/agent/a", serial="1", authority="a", not_after=1000, renew_after=600, renew_before=800, renew_at=700,
    obtained_at=0, wanted="",
)  # fmt: skip


def agent_of(**changes: Any) -> AgentFile:
    return AgentFile(url="https://x", identity="spiffe://td/agent/a", trust_domain="td", enrolled_at="x", enrolment=Enrolment(**changes))


@pytest.mark.parametrize(
    ("changes", "now", "words"),
    [
        ({}, 800, ""),
        ({}, 801, "a one-time token"),
        ({}, 999, "handclasp token create"),
        ({}, 1000, ""),
        ({"method": "aws"}, 801, "revoke its last certificate"),
        ({"method": "aws", "again": True}, 801, ""),
        ({"method": "kubernetes", "again": True}, 999, ""),
    ],
)
def test_who_cannot_enrol_again_is_told_while_there_is_time(changes: dict[str, Any], now: int, words: str) -> None:
    said = evidence.warning(agent_of(**changes), OWN, now)
    assert bool(said) is bool(words)
    assert words in said
    assert evidence.warning(agent_of(**changes), None, now) == ""


def test_who_may_enrol_again_does_so_without_the_certificate_that_has_ended(tmp_path: Path) -> None:
    assert evidence.reenrol(StateDirectory(tmp_path), agent_of(method="aws"), "https://x", None) is None
    with FakeServer() as server:
        (tmp_path / "t").write_text("a.b.c")
        how = agent_of(method="oidc", again=True, token_file=str(tmp_path / "t"))
        again = evidence.reenrol(StateDirectory(tmp_path), how, server.url, server.ca_file(tmp_path))
        assert again is not None
        with pytest.raises(HandclaspError):
            again(CSR)  # this server has no such address; what counts is who asked it
        (seen,) = [one for one in server.seen if one.path == "/v1/agents:enroll"]
        assert (seen.peer, seen.token) == ("", "")
