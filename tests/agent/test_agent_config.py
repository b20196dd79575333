"""agent.yaml: what it turns into, and every mistake told with its line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent import check
from handclasp.agent.config import Look, Reload, parse_config
from handclasp.errors import HandclaspError, Kind
from support.errors import allowing

FULL = """\
version: 1
server: {url: "https://ca.example.org:8443", ca: ca.pem}
state_dir: state
poll: 30s
identities:
  - identity: spiffe://example.org/prod/web
    dns: [web.example.org]
    ip: ["10.0.0.1"]
    profile: workload
    ttl: 1h
    key_type: p384
    targets:
      - type: files
        directory: /etc/web/tls
        combine: true
        include_root: true
        owner: 0
        group: root
        mode: "0640"
        validate: [nginx, -t]
        reload: {signal: HUP, pidfile: /run/nginx.pid}
        look: {connect: "[::1]:443"}
        timeout: 10s
      - paths: {key: tls/key.pem, certificate: tls/cert.pem, crl: tls/crl.pem}
        reload: {command: [systemctl, reload, web]}
  - dns: [db.example.org]
"""


def test_everything(tmp_path: Path) -> None:
    config = parse_config(FULL, "agent.yaml", tmp_path)
    web, db = config.identities
    first, second = web.targets
    assert (config.url, config.ca, config.state_dir, config.poll) == (
        "https://ca.example.org:8443",
        f"{tmp_path}/ca.pem",
        tmp_path / "state",
        30,
    )
    assert (web.name, web.profile, web.key_type, web.ttl) == ("spiffe://example.org/prod/web", "workload", "p384", "1h")
    assert (db.name, db.profile, db.targets) == ("dns:db.example.org", "server", ())
    assert (first.place.mode, first.place.owner, first.place.group, first.place.combine) == (0o640, 0, 0, "certificate-first")
    assert first.reload == Reload((), signal.SIGHUP, Path("/run/nginx.pid"))
    assert first.look == Look("::1", 443, "web.example.org")
    assert second.reload == Reload(("systemctl", "reload", "web"))
    assert second.place.crl
    assert second.place.directory.parent == tmp_path / "tls"
    assert second.place.links[0] == ("key.pem", tmp_path / "tls/key.pem")


def test_another_ttl_is_another_certificate_and_another_target_is_not(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        return parse_config(text, "agent.yaml", tmp_path).identities[0].digest

    assert digest(FULL) == digest(FULL.replace("/etc/web/tls", "/etc/other"))
    assert digest(FULL) != digest(FULL.replace("1h", "2h"))


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("version: 1", "version: 2", 1, "version must be 1"),
        ("https://ca", "http://ca", 2, "https://"),
        ("poll: 30s", "poll: 30", 4, "poll"),
        ("poll: 30s", "pol: 30s", 4, "pol is not known"),
        ("spiffe://example.org/prod/web", "spiffe://Example.org/x", 6, "identity"),
        ("[web.example.org]", "web.example.org", 7, "a list is expected"),
        ("[web.example.org]", '["a b"]', 7, "dns"),
        ("p384", "p521", 11, "key_type"),
        ("type: files", "type: floppy", 13, "floppy"),
        ("directory: /etc/web/tls", "direcotry: /etc/web/tls", 14, "direcotry is not known"),
        ("combine: true", "combine: please", 15, "true or false"),
        ("group: root", "group: no-such-group", 18, "no group"),
        ('"0640"', '"0644"', 19, "not for everybody"),
        ("[nginx, -t]", "nginx -t", 20, "there is no shell"),
        ("signal: HUP", "signal: KILL", 21, "not a signal"),
        (", pidfile: /run/nginx.pid", "", 21, "either a command"),
        ("[::1]:443", "localhost", 22, "host:port"),
        ("- dns: [db.example.org]", "- profile: server", 26, "needs a SPIFFE ID"),
        ("- dns: [db.example.org]", "- identity: spiffe://example.org/prod/web", 26, "more than once"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in FULL
    with pytest.raises(HandclaspError) as caught:
        parse_config(FULL.replace(old, new), "agent.yaml", tmp_path)
    assert caught.value.kind is Kind.BAD_SETTING
    assert any(problem.startswith(f"agent.yaml:{line}: ") and words in problem for problem in caught.value.detail.splitlines()), (
        caught.value
    )


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(HandclaspError) as caught:
        parse_config(FULL.replace("p384", "p521").replace("30s", "x").replace("HUP", "KILL"), "agent.yaml", tmp_path)
    assert len(caught.value.detail.splitlines()) >= 3


def test_check_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(FULL)
    assert len(check(tmp_path / "agent.yaml").identities) == 2
    with pytest.raises(HandclaspError, match="cannot read"):
        check(tmp_path / "missing.yaml")


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda data: data.decode("latin1")))
def test_no_text_crashes(text: str) -> None:
    with allowing(Kind.BAD_SETTING):
        parse_config(text, "x", Path(os.sep))


@given(st.data())
def test_no_mutation_crashes(data: st.DataObject) -> None:
    lines = FULL.splitlines()
    index = data.draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[index].partition(":")
    lines[index] = (
        key
        + colon
        + " "
        + data.draw(
            st.sampled_from(["", "[]", "{}", "[{}]", "-1", "1.5", "true", "~", '"\\0"', "[[]]", "x: y", "'*'"]) | st.text(max_size=10)
        )
    )
    with allowing(Kind.BAD_SETTING):
        parse_config("\n".join(lines), "x", Path(os.sep))
