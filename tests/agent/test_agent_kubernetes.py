"""The Kubernetes Secret target against an API that is held to the real one's rules."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp import faults
from handclasp.agent.config import parse_config
from handclasp.agent.content import Content
from handclasp.agent.deliver import deliver
from handclasp.agent.kubernetes_api import MANAGER, Cluster, KubernetesApi
from handclasp.agent.state import slug
from handclasp.agent.targets.base import Around, Target
from handclasp.agent.targets.kubernetes import KubernetesSecret, served_leaf
from handclasp.errors import HandclaspError, Kind
from support import contents
from support.errors import refused
from support.fake_server import DOMAIN, FakeAuthority
from support.kubernetes import Api, kubernetes

AGENT, WEB = f"spiffe://{DOMAIN}/agent/host1", f"spiffe://{DOMAIN}/prod/web"
AUTHORITY = FakeAuthority()


def content(crl: bytes = b"") -> Content:
    return contents.content(AUTHORITY, crl)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with kubernetes(tmp_path / "kubernetes") as one:
        yield one
        assert one.complaints == []


def target(api: Api, **more: Any) -> Target:
    text = json.dumps({"identities": [{"identity": WEB, "targets": [api.config(**more)]}]})
    return parse_config(text, "agent.yaml", Path("/")).identities[0].targets[0]


def run(one: Target, what: Content, confirmed: str = "", *, agent: str = AGENT) -> str:
    return deliver(one, what, confirmed, identity=WEB, wait=lambda _: False, agent=agent)


def drift(one: Target, confirmed: str) -> str:
    assert isinstance(one.place, KubernetesSecret)
    found = one.place.drift(confirmed, Around(WEB, lambda _: False, 10, AGENT))
    return found.words if found else ""


def leaf(data: bytes) -> str:
    first = data.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----"
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


def test_a_secret_is_made_renewed_and_left_alone_when_it_is_right(api: Api) -> None:
    one, confirmed = target(api, labels={"team": "web"}, annotations={"note": "a b"}, crl=True), ""
    for _ in range(3):
        new = content(crl=b"-----BEGIN X509 CRL-----\n")
        confirmed = run(one, new, confirmed)
        data = api.data()
        assert data == {"tls.crt": new.certificate + new.chain, "tls.key": new.key, "ca.crt": new.bundle, "ca.crl": new.crl}
        assert leaf(data["tls.crt"]) == new.sha256
        assert drift(one, confirmed) == ""
    secret = api.secrets["prod", "web-tls"]
    assert secret["type"] == "kubernetes.io/tls"
    assert secret["metadata"]["labels"]["team"] == "web"
    assert secret["metadata"]["annotations"] | {"handclasp/agent": AGENT, "handclasp/identity": WEB} == secret["metadata"]["annotations"]
    assert set(api.owners["prod", "web-tls"]) == {MANAGER}
    assert api.patches() == 3
    assert run(one, new, confirmed) == confirmed
    assert api.patches() == 3, "what is right already is not written again"
    without = target(api)
    run(without, new)
    assert "ca.crl" not in api.data(), "what is not wanted any more is taken away"


def test_a_key_goes_over_the_wire_only_when_it_must(api: Api) -> None:
    one = target(api)
    confirmed = run(one, content())
    api.asked.clear()
    drift(one, confirmed)
    assert [(method, "PartialObjectMetadata" in accept) for method, _, accept in api.asked] == [("GET", True)]


def test_what_somebody_changed_or_deleted_is_seen_and_repaired(api: Api) -> None:
    one, what = target(api), content()
    confirmed = run(one, what)
    api.edit("web-tls", tls_key=b"not ours")
    assert "changed by somebody" in drift(one, confirmed)
    confirmed = run(one, what, confirmed)
    assert api.data()["tls.key"] == what.key
    del api.secrets["prod", "web-tls"]
    del api.owners["prod", "web-tls"]
    assert "was deleted" in drift(one, confirmed)
    confirmed = run(one, what, confirmed)
    assert api.data()["tls.key"] == what.key
    assert drift(one, confirmed) == ""


def test_a_secret_of_somebody_else_is_never_touched(api: Api) -> None:
    other = {"tls.crt": base64.b64encode(b"theirs").decode(), "tls.key": ""}
    api.put("web-tls", data=other)
    with refused(Kind.DELIVERY_FAILED, "not made by an agent", "kubectl -n prod label", f"handclasp/agent={AGENT}"):
        run(target(api), content())
    assert api.secrets["prod", "web-tls"]["data"] == other
    assert api.patches() == 0


def test_a_secret_of_another_agent_is_never_touched(api: Api) -> None:
    theirs = content()
    run(target(api), theirs, agent=f"spiffe://{DOMAIN}/agent/host2")
    with refused(Kind.DELIVERY_FAILED, "belongs to the agent spiffe://example.org/agent/host2"):
        run(target(api), content())
    assert api.data()["tls.key"] == theirs.key


def handed_over(api: Api) -> None:
    api.put("web-tls", data={"tls.crt": "eA==", "tls.key": "eA=="})
    marks = {"handclasp/agent": slug(AGENT)}, {"handclasp/agent": AGENT}
    api.secrets["prod", "web-tls"]["metadata"] |= {"labels": marks[0], "annotations": marks[1]}


def test_fields_of_another_manager_are_a_conflict_that_says_what_to_do(api: Api) -> None:
    handed_over(api)
    with refused(Kind.DELIVERY_FAILED, "status 409", ".data/tls.crt", "force: true"):
        run(target(api), content())
    what = content()
    run(target(api, force=True), what)
    assert api.data()["tls.key"] == what.key


def test_the_token_and_the_ca_are_read_at_each_use(api: Api) -> None:
    one = target(api)
    confirmed = run(one, content())
    api.tokens = {"token-2"}
    with refused(Kind.DELIVERY_FAILED, "status 401", "token"):
        run(one, content(), confirmed)
    api.token_file.write_text("token-2")
    run(one, content(), confirmed)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda api: api.token_file.unlink(), ["the token in", "cannot be read"]),
        (lambda api: api.token_file.write_text(""), ["no token"]),
        (lambda api: api.token_file.write_text("a\nb"), ["no token"]),
        (lambda api: api.ca.write_text("nothing"), ["CA in", "cannot be read"]),
        (lambda api: api.ca.write_bytes(content().bundle), ["is not signed by"]),
        (lambda api: setattr(api, "status", 403), ["status 403", "service account needs"]),
        (lambda api: setattr(api, "status", 503), ["status 503"]),
        (lambda api: setattr(api, "namespaces", set()), ["status 404", "namespace"]),
        (lambda api: setattr(api, "spoil", True), ["does not hold the new certificate"]),
    ],
)
def test_what_goes_wrong_is_a_failure_in_words(api: Api, spoil: Any, words: list[str]) -> None:
    spoil(api)
    with refused(Kind.DELIVERY_FAILED, *words):
        run(target(api), content())


def test_killed_after_it_was_applied(api: Api) -> None:
    one, what = target(api), content()
    agent = os.fork()
    if agent == 0:
        try:
            faults._ARMED = ("kubernetes.applied", 1, "kill")
            run(one, what)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(agent, 0)[1]) == signal.SIGKILL
    assert run(one, what), "it is found as it is"
    assert api.patches() == 1


def test_nobody_there(tmp_path: Path) -> None:
    with kubernetes(tmp_path / "k") as gone:
        one = target(gone)
    with refused(Kind.DELIVERY_FAILED, "cannot be reached"):
        run(one, content())


def test_in_a_pod_the_environment_names_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert Cluster().address == "https://kubernetes.default.svc"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert Cluster().address == "https://[fd00::1]:6443"


def test_no_key_in_what_a_server_says(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    what = content()
    body = {"kind": "Status", "message": f"invalid value: {base64.b64encode(what.key).decode()}"}
    monkeypatch.setattr(api, "handle", lambda *_: (422, body))
    with pytest.raises(HandclaspError) as caught:
        run(target(api), what)
    assert base64.b64encode(what.key).decode()[:40] not in caught.value.detail


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(
    st.dictionaries(
        st.sampled_from(["metadata", "data", "type"]),
        json_values | st.dictionaries(st.sampled_from(["labels", "annotations", "tls.crt", "uid"]), json_values),
    )
)
def test_no_answer_crashes(found: dict[str, Any]) -> None:
    class Answers(KubernetesApi):
        def secret(self, namespace: str, name: str) -> dict[str, Any] | None:
            return found

    assert served_leaf(found) == ""
    from handclasp.agent.targets import kubernetes as module

    place, before = KubernetesSecret("prod", "web"), module.KubernetesApi
    module.KubernetesApi = Answers  # type: ignore[misc]
    try:
        with refused(Kind.DELIVERY_FAILED, "nothing was changed"):
            place.deliver(WHAT, "", Around(WEB, lambda _: False, 1, AGENT))
    finally:
        module.KubernetesApi = before  # type: ignore[misc]


WHAT = content()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"namespace": "Prod"}, "cannot be the name of a namespace"),
        ({"namespace": None}, "namespace is missing"),
        ({"name": "a/b"}, "cannot be the name of a Secret"),
        ({"labels": {"a": "b c"}}, "cannot be the value of a label"),
        ({"labels": {"handclasp/agent": "x"}}, "is set by the agent"),
        ({"annotations": {"a b": "x"}}, "cannot be a key"),
        ({"api": {"url": "https://x/y"}}, "an address such as"),
        ({"api": {"url": "http://x"}}, "https://"),
        ({"force": "yes"}, "true or false"),
        ({"look": {"connect": "a:1"}}, "look is not known"),
        ({"helper": True}, "helper is not known"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    one = {"type": "kubernetes_secret", "namespace": "prod", "name": "web"} | change
    text = json.dumps({"identities": [{"identity": WEB, "targets": [{k: v for k, v in one.items() if v is not None}]}]})
    with refused(Kind.BAD_SETTING, words):
        parse_config(text, "agent.yaml", tmp_path)


def test_one_secret_is_one_target(tmp_path: Path) -> None:
    one = {"type": "kubernetes_secret", "namespace": "prod", "name": "web"}
    text = json.dumps({"identities": [{"identity": WEB, "targets": [one, one]}]})
    with refused(Kind.BAD_SETTING, "kubernetes_secret:prod/web is there more than once"):
        parse_config(text, "agent.yaml", tmp_path)
