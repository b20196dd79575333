"""Profiles and the YAML they are written in: read whole, or refused with every problem and its line."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.errors import HandclaspError, Kind
from handclasp.pki.profiles import BUILT_IN, all_profiles, load_profiles
from handclasp.pki.yamlfile import MAX_BYTES, MAX_NODES, Problems, read_yaml
from support.errors import allowing, refused

_GOOD = """\
version: 1
profiles:
  # ours
  edge:
    extend: server
    description: servers at the edge
    authority: edge-1
    key_types: [p256, p384]
    lifetime: 12h
    max_lifetime: 3d
    backdate: 5m
    names: [dns]
    require: [dns]
  legacy:
    key_types: [rsa2048]
    key_usage: [digital_signature, key_encipherment]
    extended_key_usage: [server_auth, client_auth]
    renew_same_key: true
"""


def _lines(text: str) -> list[str]:
    with pytest.raises(HandclaspError) as caught:
        load_profiles(textwrap.dedent(text), "p.yaml")
    assert caught.value.kind is Kind.BAD_PROFILE
    return caught.value.detail.splitlines()


def test_profiles_are_read_and_extend_built_in_ones():
    profiles = load_profiles(_GOOD)
    edge, legacy = profiles["edge"], profiles["legacy"]
    assert edge.authority == "edge-1"
    assert edge.key_types == {"p256", "p384"}
    assert (edge.lifetime, edge.min_lifetime, edge.max_lifetime, edge.backdate) == (43200, 10, 259200, 300)
    assert edge.extended_key_usage == ("server_auth",)
    assert edge.require == edge.names == {"dns"}
    assert not edge.built_in
    assert legacy.renew_same_key
    assert edge.extensions_der != legacy.extensions_der != b""
    assert set(all_profiles(profiles)) == {*BUILT_IN, "edge", "legacy"}
    assert load_profiles("version: 1\n") == {}


def test_the_built_in_profiles_are_what_the_documentation_says():
    assert set(BUILT_IN) == {"workload", "server", "client", "agent", "mesh", "probe"}
    for profile in BUILT_IN.values():
        assert profile.built_in
        assert 10 <= profile.min_lifetime <= profile.lifetime <= profile.max_lifetime
        assert profile.backdate == (120 if profile.name == "mesh" else 60)
        assert profile.require <= profile.names
    assert BUILT_IN["workload"].require == {"spiffe"}
    assert BUILT_IN["probe"].max_lifetime == 600
    assert BUILT_IN["agent"].lifetime == 86400


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("profiles: {}\n", 1, "version: 1"),
        ("version: 2\n", 1, "version: 1"),
        ("version: true\n", 1, "version: 1"),
        ("version: 1\nother: 1\n", 2, "unknown key 'other'"),
        ("version: 1\nprofiles: [a]\n", 2, "mapping"),
        ("version: 1\nprofiles:\n  a: 1\n", 3, "mapping"),
        ("version: 1\nprofiles:\n  A b: {}\n", 3, "lower-case"),
        ("version: 1\nprofiles:\n  server: {}\n", 3, "built in"),
        ("version: 1\nprofiles:\n  a:\n    extend: nothing\n", 4, "'nothing'"),
        ("version: 1\nprofiles:\n  a:\n    extend: [server]\n", 4, "not a built-in"),
        ("version: 1\nprofiles:\n  a:\n    lifetme: 1h\n", 4, "unknown key 'lifetme'"),
        ("version: 1\nprofiles:\n  a:\n    lifetime: 3600\n", 4, "not a duration"),
        ("version: 1\nprofiles:\n  a:\n    lifetime: [1h]\n", 4, "not a duration"),
        ("version: 1\nprofiles:\n  a:\n    lifetime: 2d\n", 4, "must hold"),
        ("version: 1\nprofiles:\n  a:\n    min_lifetime: 100ms\n", 4, "must hold"),
        ("version: 1\nprofiles:\n  a:\n    max_lifetime: 367d\n", 4, "must hold"),
        ("version: 1\nprofiles:\n  a:\n    backdate: 2h\n", 4, "backdate"),
        ("version: 1\nprofiles:\n  a:\n    key_types: [p256, p257]\n", 4, "'p257'"),
        ("version: 1\nprofiles:\n  a:\n    key_types: p256\n", 4, "list"),
        ("version: 1\nprofiles:\n  a:\n    key_types: []\n", 4, "empty"),
        ("version: 1\nprofiles:\n  a:\n    key_types: [p256, p256]\n", 4, "twice"),
        ("version: 1\nprofiles:\n  a:\n    names: [1]\n", 4, "list"),
        ("version: 1\nprofiles:\n  a:\n    names: [dns]\n    require: [spiffe]\n", 5, "spiffe"),
        ("version: 1\nprofiles:\n  a:\n    key_usage: [key_cert_sign]\n", 4, "'key_cert_sign'"),
        ("version: 1\nprofiles:\n  a:\n    key_usage: []\n", 4, "digital_signature"),
        ("version: 1\nprofiles:\n  a:\n    key_usage: [digital_signature, key_encipherment]\n", 4, "RSA"),
        ("version: 1\nprofiles:\n  a:\n    key_usage: [digital_signature, key_agreement]\n", 4, "p256"),
        ("version: 1\nprofiles:\n  a:\n    extended_key_usage: [code_signing]\n", 4, "'code_signing'"),
        ("version: 1\nprofiles:\n  a:\n    renew_same_key: no\n", 4, "true or false"),
        ("version: 1\nprofiles:\n  a:\n    authority: 1\n", 4, "text"),
        ("version: 1\nprofiles:\n  a: {}\n  a: {}\n", 4, "twice"),
        ("version: 1\nprofiles:\n  a: &x {}\n", 3, "anchors"),
        ("version: 1\nprofiles:\n  a: *x\n", 3, "aliases"),
        ("version: 1\nprofiles:\n  a: !!python/object:os.system {}\n", 3, "tag"),
        ("version: 1\nprofiles:\n  a: {<<: {}}\n", 3, "plain text"),
        ("version: 1\nprofiles:\n  [a]: {}\n", 3, "plain text"),
        ("version: 1\n\tprofiles: 1\n", 2, "not YAML"),
        ("version: 1\n---\nversion: 1\n", 2, "not YAML"),
        ("- a\n", 1, "mapping"),
        ("version: 1\nprofiles: {a: \x07}\n", 1, "not YAML"),
        ("[" * 5000, 1, "nested"),
    ],
)
def test_each_problem_is_named_with_its_line(text, line, words):
    lines = _lines(text)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"p.yaml:{line}: ")
    assert words in lines[0]


def test_all_problems_are_told_at_once_in_order():
    lines = _lines(
        """\
        version: 1
        profiles:
          server: {}
          a:
            lifetime: forever
            names: [uri]
          b:
            backdate: 1d
            colour: red
        """
    )
    assert [int(line.split(":")[1]) for line in lines] == [3, 5, 6, 8, 9]


def test_scalars_stay_what_they_look_like():
    text = "a: no\nb: 012\nc: 1:30\nd: 2026-01-01\ne: 7\nf: 1.5\ng: true\nh: '7'\ni:\nj: 99999999999999999999\nk: ~\n"
    document = read_yaml(text, "s", Kind.BAD_POLICY)
    assert document.value == {
        "a": "no",
        "b": "012",
        "c": "1:30",
        "d": "2026-01-01",
        "e": 7,
        "f": 1.5,
        "g": True,
        "h": "7",
        "i": None,
        "j": "99999999999999999999",
        "k": None,
    }
    assert document.line(("c",)) == 3
    assert document.line(("c", "deeper", 3)) == 3
    assert document.line(("missing",)) == 1
    assert read_yaml("", "s", Kind.BAD_POLICY).value == {}
    lists = read_yaml("a:\n  - b: 1\n  - c: 2\n", "s", Kind.BAD_POLICY)
    assert lists.line(("a", 1, "c")) == 3


def test_files_that_are_too_large_are_refused_and_long_lists_of_problems_cut():
    with refused(Kind.BAD_POLICY, "larger"):
        read_yaml("a: " + "x" * MAX_BYTES, "s", Kind.BAD_POLICY)
    with refused(Kind.BAD_POLICY, f"more than {MAX_NODES} keys and values"):
        read_yaml("a: [" + "a," * MAX_NODES + "]", "s", Kind.BAD_POLICY)
    problems = Problems("s", Kind.BAD_POLICY)
    problems.raise_if_any()
    for line in range(80):
        problems.add(line, "wrong")
    with refused(Kind.BAD_POLICY, "30 more"):
        problems.raise_if_any()


@given(st.one_of(st.text(max_size=300), st.text(alphabet="ab:-[]{}&*!<>|?'\"#%@`, \n\t0123", max_size=200)))
def test_random_text_raises_only_our_error(text):
    for candidate in (text, "version: 1\nprofiles:\n  a:\n    " + text):
        with allowing(Kind.BAD_PROFILE):
            load_profiles(candidate)


@given(st.integers(0, len(_GOOD) - 1), st.characters(codec="utf-8"))
def test_a_changed_file_raises_only_our_error(at, character):
    with allowing(Kind.BAD_PROFILE):
        load_profiles(_GOOD[:at] + character + _GOOD[at + 1 :])
