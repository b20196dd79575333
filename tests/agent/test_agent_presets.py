"""Presets: each is a target that passes every check, what is written over it counts, and the guide shows exactly these."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from handclasp.agent.config import Config, Look, Reload, parse_config
from handclasp.agent.presets import load_preset, preset_names
from handclasp.agent.targets.files import Files
from handclasp.agent.targets.keystore import NAMES, Keystore
from handclasp.agent.targets.words import steps
from handclasp.errors import HandclaspError, Kind
from support import services
from support.contents import content
from support.errors import refused
from support.fake_server import FakeAuthority

AUTHORITY = FakeAuthority()
WANTED = {
    "nginx", "apache", "haproxy", "caddy", "envoy", "postgresql", "mysql", "mariadb", "redis", "rabbitmq", "mongodb", "kafka", "prometheus",
    "etcd", "systemd",
}  # fmt: skip


def read(target: dict[str, object], base: Path = Path("/etc/handclasp")) -> Config:
    return parse_config(json.dumps({"identities": [{"dns": ["a.example.org"], "targets": [target]}]}), "agent.yaml", base)


def filled(name: str, **written: object) -> dict[str, object]:
    """A target with a preset, and what is not on every machine (the group) written out."""
    preset = load_preset(name)
    needed = {word: "some.service" for word, default in preset.parameters.items() if not default}
    return {"preset": name, **needed, **({"group": 0} if "group" in preset.target else {}), **written}


def test_they_are_all_there() -> None:
    assert set(preset_names()) == WANTED
    tried = {kind.preset for kind in vars(services).values() if isinstance(kind, type) and getattr(kind, "preset", "")}
    assert {name for name in WANTED if load_preset(name).tried} == tried, "what is said to be tried is tried"


@pytest.mark.parametrize("name", sorted(WANTED))
def test_each_is_a_target_that_passes_every_check(name: str) -> None:
    target = read(filled(name)).identities[0].targets[0]
    assert target.preset == name
    assert isinstance(target.place, Files | Keystore)
    home = str(target.place.directory)
    assert home in load_preset(name).snippet_for(parameters={"unit": "some.service"})
    assert len(steps(target)) == 1 + bool(target.validate) + (target.reload is not None) + (target.look is not None)
    assert target.place.mode in (0o600, 0o640)
    files = set(target.place.render(content(AUTHORITY)) if isinstance(target.place, Files) else NAMES[target.place.format].values())
    assert set(re.findall(r"/current/([a-z0-9.]+)", load_preset(name).as_text())) <= files, "it names what is delivered"
    for text in (load_preset(name).as_text(), json.dumps(load_preset(name).as_json())):
        assert "{directory}" not in text
        assert "{unit}" not in text


def test_a_plan_says_what_every_kind_of_target_does() -> None:
    words = {
        "exec": steps(read({"type": "exec", "command": ["app", "a b"], "directory": "app", "on_change": "HUP"}).identities[0].targets[0]),
        "secret": steps(read({"type": "kubernetes_secret", "namespace": "prod", "name": "web"}).identities[0].targets[0]),
        "helper": steps(read({"directory": "/etc/web", "helper": True}).identities[0].targets[0]),
    }
    assert words["exec"][0].startswith("write: key, certificate and bundle below /etc/handclasp/app/current")
    assert words["exec"][1] == "run: app 'a b'; SIGHUP on a change, and it must run for 1 s to count"
    assert words["secret"] == ["apply: the Secret prod/web at the API server of the cluster that this pod is in, and read it back"]
    assert words["helper"][0].endswith("by the helper at /run/handclasp-agent-helper/socket")


def test_everything_written_in_the_target_counts_more() -> None:
    written = filled(
        "postgresql", directory="tls", look={"connect": "127.0.0.1:5433"}, reload={"command": ["pg_ctl", "reload"]}, timeout="5s"
    )
    target = read(written).identities[0].targets[0]
    assert isinstance(target.place, Files)
    assert target.place.directory == Path("/etc/handclasp/tls")
    assert target.look == Look("127.0.0.1", 5433, "a.example.org", "postgresql"), "the rest of the look is still the preset's"
    assert (target.reload, target.timeout) == (Reload(("pg_ctl", "reload")), 5)
    assert read(filled("nginx", look=None, validate=None)).identities[0].targets[0].look is None


def test_a_directory_is_put_in_everywhere() -> None:
    target = read(filled("redis", directory="/srv/redis")).identities[0].targets[0]
    assert target.reload is not None
    assert "/srv/redis/current/cert.pem" in target.reload.command
    assert not any("{directory}" in word or "/etc/redis" in word for word in target.reload.command)


def test_parameters() -> None:
    target = read({"preset": "systemd", "unit": "billing.service"}).identities[0].targets[0]
    assert target.reload == Reload(unit="billing.service", action="try-restart")
    assert target.name == "files:/etc/handclasp/tls/billing.service"
    assert "3" in (read(filled("kafka", broker=3)).identities[0].targets[0].reload or Reload()).command
    for written, words in (
        ({"preset": "systemd"}, "unit is missing"),
        ({"preset": "systemd", "unit": "a b"}, "unit: "),
        ({"preset": "systemd", "unit": "../../etc"}, "unit: "),
        ({"preset": "nginx", "unit": "x"}, "unit is not known"),
        ({"preset": "ngnix"}, "not a preset; there are apache, caddy"),
        ({"preset": 3}, "preset: text"),
        ({"preset": "nginx", "type": "jks"}, "is for the type files"),
        ({"preset": "nginx", "look": "x"}, "a mapping"),
        ({"preset": "nginx", "directory": 3}, "directory: text"),
    ):
        with pytest.raises(HandclaspError) as caught:
            read(written)
        assert caught.value.kind is Kind.BAD_SETTING
        assert words in caught.value.detail
        assert all(line.startswith("agent.yaml:1: ") for line in caught.value.detail.splitlines())
    with refused(Kind.NOT_FOUND):
        load_preset("../nginx")
