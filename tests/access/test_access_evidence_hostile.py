"""Evidence that is anything at all: refused with a reason, and in no time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handclasp import wire
from handclasp.access.evidence import aws, cms
from handclasp.access.evidence.verifier import EvidenceError
from handclasp.errors import Kind
from handclasp.pki import chains
from support.access import NOW, or_refused
from support.evidence import DeviceAuthority, indented, pem, signed, to_ber
from support.evidence_scene import CSR, Scene

_KINDS = (Kind.NOT_AUTHENTICATED, Kind.NOT_ALLOWED, Kind.TOO_LARGE)

SCENE = Scene()

MESSAGE = SCENE.cloud.message(SCENE.cloud.document())

DEVICE = SCENE.device()


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        wire.Evidence,
        method=st.sampled_from(["oidc", "x509", "kubernetes", "aws", ""]),
        token=st.text(max_size=40) | st.just(SCENE.runner().token[:-9]),
        cluster=st.sampled_from(["", "prod-a", "x"]),
        chain=st.text(max_size=40) | st.just(DEVICE.chain) | st.just(DEVICE.chain[:-40]),
        document=st.text(max_size=40) | st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode()),
        signature=st.text(max_size=40) | st.binary(max_size=80).map(lambda data: base64.b64encode(data).decode()),
        challenge=st.text(max_size=40) | st.just(DEVICE.challenge),
    )
)
def test_no_evidence_makes_the_verifier_fail_otherwise(evidence: wire.Evidence) -> None:
    with or_refused(*_KINDS):
        run(SCENE.verifier.verify(evidence, CSR, SCENE.policy, "10.0.0.1"))
        raise AssertionError("nothing of this proves anything")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_spoilt_message_is_taken_for_another_document(data: st.DataObject) -> None:
    spoilt = bytearray(data.draw(st.sampled_from([MESSAGE, to_ber(MESSAGE)])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        if data.draw(st.booleans()):
            spoilt[at] = data.draw(st.integers(0, 255))
        else:
            del spoilt[at : at + data.draw(st.integers(1, 20))]
        if not spoilt:
            return
    signer = SCENE.cloud.certificate.public_bytes(Encoding.DER)
    with or_refused(Kind.NOT_AUTHENTICATED):
        content, by = cms.verify(bytes(spoilt), (signer,), None)
        assert (content, by) == (SCENE.cloud.document(), signer)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_of_ber_fail_otherwise(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        element = cms.to_der(data)
        assert cms.to_der(element) == element


def test_deep_and_large_messages_are_refused_quickly() -> None:
    for data in (b"\x30\x80" * 6000, b"\x24\x80" * 6000, b"\x30\x82\xff\xff" * 3000, b"\x30\x80" + b"\x04\x00" * 6000, bytes(20_000)):
        with pytest.raises(ValueError, match=r"."):
            cms.to_der(data)


@given(st.text(max_size=100))
def test_no_challenge_but_ours_is_ours(text: str) -> None:
    with or_refused(Kind.NOT_AUTHENTICATED):
        SCENE.challenges.check(text)
        raise AssertionError("nobody guesses a challenge")


def test_certificates_that_cannot_be_read_are_not_current() -> None:
    assert not aws._is_current(b"\x30\x00", NOW)


def test_a_pile_of_authorities_that_look_alike_costs_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shows a chain is nobody yet: each authority of a rule must not be a search of its own for him to pay nothing for."""
    alike = [DeviceAuthority(NOW, "Devices") for _ in range(20)]
    scene = Scene()
    text = indented("".join(one.pem for one in alike))
    scene.policy = scene.parse(**{indented(scene.devices.pem): text})
    looked = 0
    check = chains._check_issued

    def counted(*args: Any) -> None:
        nonlocal looked
        looked += 1
        check(*args)

    monkeypatch.setattr(chains, "_check_issued", counted)
    own, certificate = DeviceAuthority(NOW, "Devices").device(dns=["r1.rack.example.org"])
    chain = "".join(pem(one) for one in (certificate, *(DeviceAuthority(NOW, "Devices").certificate for _ in range(7))))
    with pytest.raises(EvidenceError):
        scene.verify(signed(own, chain, scene.challenges.make()[0], CSR))
    assert 0 < looked <= chains.MAX_CANDIDATES
    own, certificate = alike[13].device(dns=["r1.rack.example.org"])
    found = scene.verify(signed(own, pem(certificate), scene.challenges.make()[0], CSR))
    assert found.facts["anchor"] == chains.fingerprint(alike[13].certificate.public_bytes(Encoding.DER)).hex()
