"""Which workloads a process is, how tokens are judged, and what ``socket:`` in agent.yaml may say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent.config import parse_config
from handclasp.agent.config.socket import SocketSettings
from handclasp.agent.socket.match import could_be, entitled, fill, fits, kinds_of, missing, unfilled
from handclasp.errors import HandclaspError, Kind
from support.workload import WEB, workload

K8S = "spiffe://example.org/k8s/{k8s:ns}/{k8s:sa}"
POD = ["k8s:ns:shop", "k8s:sa:web", "unix:uid:0"]


@pytest.mark.parametrize(
    ("selectors", "identity"),
    [
        (POD, "spiffe://example.org/k8s/shop/web"),
        (["k8s:ns:shop"], None),
        ([*POD, "k8s:ns:other"], None),
        (["k8s:ns:a/b", "k8s:sa:web"], None),
        (["k8s:ns:..", "k8s:sa:web"], None),
        (["k8s:ns:{k8s:sa}", "k8s:sa:web"], None),
        (["k8s:ns:*", "k8s:sa:web"], None),
        (["k8s:ns:", "k8s:sa:web"], None),
        (["k8s:ns:ä", "k8s:sa:web"], None),
        (["k8s:ns:x\n", "k8s:sa:web"], None),
    ],
)
def test_placeholders_take_one_whole_segment_or_nothing(selectors: list[str], identity: str | None) -> None:
    assert fill(K8S, selectors) == identity
    assert [one.identity for one in entitled([workload("w", K8S, selectors[0])], selectors)] == ([identity] if identity else [])


@given(st.text(max_size=30))
def test_no_value_makes_more_than_its_segment(value: str) -> None:
    identity = fill(K8S, [f"k8s:ns:{value}", "k8s:sa:web"])
    assert identity is None or (identity.split("/")[4:] == [value, "web"] and fits(K8S, identity))


def test_every_selector_is_needed_and_no_selectors_are_nobody() -> None:
    one, two, nobody = workload("one", WEB, "unix:uid:0"), workload("two", WEB, "unix:uid:0", "k8s:ns:shop"), workload("x", WEB)
    assert [item.workload.name for item in entitled([two, one, nobody], ["unix:uid:0"])] == ["one"]
    assert missing(two, ["unix:uid:0"]) == ["k8s:ns:shop"]
    assert missing(nobody, ["unix:uid:0"])
    assert unfilled(workload("w", K8S, "unix:uid:0"), ["k8s:ns:a"]) == ["k8s:sa"]
    assert kinds_of([two, workload("w", K8S, "unix:path:/x:y")]) == {"unix:uid", "k8s:ns", "k8s:sa", "unix:path"}
    assert could_be([two], ["unix:uid:0"], ["k8s"])
    assert could_be([workload("w", K8S, "unix:uid:0")], ["unix:uid:0"], ["k8s"])
    assert not could_be([two], ["unix:uid:1"], ["k8s"])
    assert not could_be([two], ["unix:uid:0"], [])
    assert not could_be([nobody], ["unix:uid:0"], ["k8s"])


@pytest.mark.parametrize(
    ("identity", "fit"),
    [
        ("spiffe://example.org/k8s/a/b", True),
        ("spiffe://example.org/k8s/a", False),
        ("spiffe://example.org/k8s/a/b/c", False),
        ("spiffe://example.org/k8s/./b", False),
        ("spiffe://other.org/k8s/a/b", False),
    ],
)
def test_what_was_in_use_has_to_fit_the_policy(identity: str, fit: bool) -> None:
    assert fits(K8S, identity) is fit


# --- settings ---------------------------------------------------------------------------------------------------------------------------


def section(text: str) -> SocketSettings:
    config = parse_config(f"version: 1\nsocket: {text}\n", "agent.yaml", Path("/etc/handclasp"))
    assert config.identities == ()
    found = config.section("socket")
    assert isinstance(found, SocketSettings)
    return found


def test_a_socket_needs_no_settings_and_takes_many() -> None:
    assert section("{}") == SocketSettings()
    full = section(
        '{path: w.sock, mode: "0660", group: root, wait: 5s, keep: 1h, connections_per_user: 7, attestors: {hash_limit_mb: 1, kubernetes: '
        "{kubelet: 'https://n1:10250', token_file: token, ca_file: /ca.pem, server_name: n1}, docker: {socket: /d.sock}}, "
        "sds: {certificate: a, bundle: b, all_bundles: c, spiffe_validator: false, crl: true}}"
    )
    assert (full.path, full.mode, full.group, full.wait, full.keep, full.connections) == (
        Path("/etc/handclasp/w.sock"),
        0o660,
        0,
        5,
        3600,
        7,
    )
    assert full.kubelet is not None
    assert (full.kubelet.url, full.kubelet.token_file, full.kubelet.server_name) == ("https://n1:10250", Path("/etc/handclasp/token"), "n1")
    assert (full.docker, full.hash_limit) == (Path("/d.sock"), 1 << 20)
    assert (full.sds.certificate, full.sds.spiffe, full.sds.crl) == ("a", False, True)
    usual = section("{attestors: {kubernetes: {}, docker: {}}}")
    assert usual.kubelet is not None
    assert (usual.kubelet.url, usual.docker) == ("https://127.0.0.1:10250", Path("/var/run/docker.sock"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "a mapping is expected"),
        ("{pathh: x}", "pathh is not known here"),
        ("{mode: '0999'}", "a mode such as 0660"),
        ("{mode: '0066'}", "a mode such as 0660"),
        ("{group: nobody-at-all}", "there is no group"),
        ("{path: /" + "x" * 100 + "}", "too long for a socket"),
        ("{wait: 0s}", "between 500ms and 24h"),
        ("{attestors: {kubernetes: {kubelet: 'ftp://x'}}}", "an address such as"),
        ("{attestors: {kubernetes: {kubelet: 'http://x:10255', token_file: t}}}", "not sent without TLS"),
        ("{attestors: {windows: {}}}", "windows is not known here"),
        ("{sds: {certificate: ALL}}", "must be different"),
    ],
)
def test_a_mistake_in_the_section_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        section(text)
    assert caught.value.kind is Kind.BAD_SETTING
    assert words in caught.value.detail
    assert "agent.yaml:2" in caught.value.detail
