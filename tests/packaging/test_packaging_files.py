"""What is shipped beside the code: units, container files and manifests that say only what the code knows."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml

from handclasp.agent.config import parse_config
from handclasp.agent.config.helper import SOCKET
from handclasp.agent.helper.server import USER
from handclasp.cli.agents import DEFAULT_STATE
from handclasp.cli.main import handclasp
from support.needs import needs

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNITS = sorted([*PACKAGING.glob("systemd/*.service"), *PACKAGING.glob("systemd/*.socket")])
CONTAINERS = sorted(PACKAGING.glob("container/Containerfile.*[!e]"))
CONTAINERS = [path for path in CONTAINERS if path.suffix != ".dockerignore"]
MANIFESTS = sorted(PACKAGING.glob("kubernetes/**/*.yaml"))


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGING))


def wrong_usage(words: list[str]) -> str:
    """What is wrong with the arguments of a call of ``handclasp``; empty when every command and option exists."""
    command: click.Command = handclasp
    context = click.Context(command, info_name="handclasp")
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            child = command.get_command(context, word)
            if child is None:
                return f"no command {word}"
            command, context = child, click.Context(child, info_name=word, parent=context)
        elif word.startswith("-") and word not in {name for param in command.get_params(context) for name in param.opts}:
            return f"{context.command_path} has no {word}"
    return "a command is missing" if isinstance(command, click.Group) else ""


# --- systemd ------------------------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=relative)
def test_units_run_what_is_there(path: Path) -> None:
    unit = lines(path)
    program, *words = shlex.split(unit["ExecStart"][0])
    assert program == "/opt/handclasp/bin/handclasp"
    assert wrong_usage(words) == ""
    assert unit["NoNewPrivileges"] == ["yes"]
    assert "CapabilityBoundingSet" in unit


def test_units_agree_with_the_code() -> None:
    agent, helper, listener = (
        lines(PACKAGING / "systemd" / f"handclasp-agent{name}") for name in (".service", "-helper.service", "-helper.socket")
    )
    assert agent["User"] == [USER]
    assert listener["ListenStream"] == [str(SOCKET)]
    assert (listener["SocketUser"], listener["SocketMode"]) == ([USER], ["0600"])
    assert f"/var/lib/{agent['StateDirectory'][0]}" == DEFAULT_STATE
    assert shlex.split(agent["ExecStart"][0])[-1] == shlex.split(helper["ExecStart"][0])[-1], "one configuration for both"
    assert "User" not in helper
    users = {line.split()[1] for line in (PACKAGING / "systemd/handclasp.sysusers").read_text().splitlines() if line.startswith("u ")}
    assert users == {USER, lines(PACKAGING / "systemd/handclasp-server.service")["User"][0]}


def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    program = needs("systemd-analyze")
    for path in UNITS:  # the program that they run need not be installed here
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/handclasp/bin/handclasp", "/bin/true"))
    done = subprocess.run(
        [program, "verify", "--recursive-errors=no", *(tmp_path / path.name for path in UNITS)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "handclasp" in line]
    assert ours == []


@pytest.mark.parametrize(("unit", "most"), [("agent", 20), ("server", 20), ("agent-helper", 35)])
def test_units_are_hardened(unit: str, most: int) -> None:
    program = needs("systemd-analyze")
    arguments = ["security", "--offline=yes", f"--threshold={most}", PACKAGING / "systemd" / f"handclasp-{unit}.service"]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if "Unknown" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("needs systemd-analyze")
    assert done.returncode == 0, done.stdout[-400:]


# --- containers ---------------------------------------------------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    text = path.read_text().replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest) for word, rest in found]


@pytest.mark.parametrize("path", CONTAINERS, ids=relative)
def test_container_files(path: Path) -> None:
    found = instructions(path)
    assert found[0] == ("ARG", "BASE"), "the base image is the builder's choice, and has no default"
    assert {rest.split()[0] for word, rest in found if word == "FROM"} == {"${BASE}"}
    stages = [index for index, (word, _) in enumerate(found) if word == "FROM"]
    assert len(stages) == 2
    final = found[stages[1] :]
    assert [rest for word, rest in final if word == "USER"] == ["65532:65532"]
    assert not any(word == "RUN" for word, _ in final), "nothing is made in the image that is shipped"
    for word, rest in found:
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    (words,) = [yaml.safe_load(rest) for word, rest in final if word == "CMD"]
    assert wrong_usage(words) == ""
    assert "://" not in path.read_text()


@pytest.mark.parametrize("path", CONTAINERS, ids=relative)
def test_containers_install_as_the_tools_do(path: Path) -> None:
    """Hashes for everything that is fetched, nothing fetched for what is ours."""
    script = (ROOT / "tools/venv.sh").read_text()
    calls = [shlex.split(rest) for word, rest in instructions(path) if word == "RUN" and " -m pip " in rest]
    assert len(calls) == 4
    for call in calls:
        options = {word for word in call if word.startswith("--")}
        if "-r" in call:
            assert {"--require-hashes", "--no-deps"} <= options
            assert (ROOT / call[call.index("-r") + 1]).exists()
        else:
            assert {"--no-deps", "--no-index"} <= options
        for option in options - {"--wheel-dir"}:
            assert option in script, f"{option} is not what tools/venv.sh says"


@pytest.mark.parametrize("path", CONTAINERS, ids=relative)
def test_what_a_container_is_built_from_is_not_ignored(path: Path) -> None:
    ignored = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    for word, rest in instructions(path):
        if word == "COPY" and "--from" not in rest:
            assert {source.split("/")[0] for source in rest.split()[:-1]} <= let_in


def test_the_wheel_is_made_without_a_network_and_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    argv = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        ".",
    ]
    subprocess.run([*argv, "--wheel-dir", "out"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "out").iterdir()
    import zipfile

    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(path.relative_to(tmp_path / "src")) for path in (tmp_path / "src").rglob("*") if path.is_file()}
    assert ours <= packed


# --- kubernetes ---------------------------------------------------------------------------------------------------------------------------


def documents() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [document for _, document in documents() if document["kind"] in kinds]


def pods(*wanted: str) -> list[dict[str, Any]]:
    """Every pod that a manifest makes, or those of the workloads with these names."""
    found = [one for one in of_kind("DaemonSet", "Deployment", "StatefulSet", "CronJob") if not wanted or one["metadata"]["name"] in wanted]
    specs = [one["spec"]["jobTemplate"]["spec"] if one["kind"] == "CronJob" else one["spec"] for one in found]
    return [spec["template"]["spec"] for spec in specs]


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(pod, container) for pod in pods() for container in [*pod.get("initContainers", []), *pod["containers"]]]


COLLECTS = ("handclasp-collector", "handclasp-collector-roots", "handclasp-collector-istio", "handclasp-collector-linkerd")
SIDECAR = "web"
_HOMES = {"v1": "core_v1", "apps/v1": "apps_v1", "batch/v1": "batch_v1", "rbac.authorization.k8s.io/v1": "rbac_v1"}


@pytest.mark.parametrize(
    ("path", "document"), list(documents()), ids=lambda value: value["kind"] if isinstance(value, dict) else relative(value)
)
def test_manifests_have_only_fields_that_there_are(path: Path, document: dict[str, Any]) -> None:
    if document["kind"] == "Kustomization":
        assert all((path.parent / one).exists() for one in document["resources"])
        return
    models = pytest.importorskip("lightkube.models")
    module = importlib.import_module(f"{models.__name__}.{_HOMES[document['apiVersion']]}")
    check(document, getattr(module, document["kind"]), document["kind"])


def check(value: Any, model: Any, where: str) -> None:
    """Hold a value to the models, which are made from the API's own description."""
    if typing.get_origin(model) in (typing.Union, types.UnionType):
        kinds = [one for one in typing.get_args(model) if one is not type(None)]
        if len(kinds) > 1:  # IntOrString
            assert type(value) in kinds, f"{where}: {value!r}"
            return
        (model,) = kinds
    if typing.get_origin(model) is list:
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            check(item, typing.get_args(model)[0], f"{where}[{index}]")
    elif isinstance(model, type) and issubclass(model, msgspec.Struct):
        assert isinstance(value, dict), where
        fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
        assert value.keys() <= fields.keys(), f"{where} has no {value.keys() - fields.keys()}"
        needed = {name for name, field in fields.items() if field.required}
        assert needed <= value.keys(), f"{where} lacks {needed - value.keys()}"
        for name, item in value.items():
            check(item, fields[name].type, f"{where}.{name}")
    elif model in (str, int, bool):
        assert isinstance(value, model), f"{where}: {value!r}"


def test_the_check_of_manifests_finds_mistakes() -> None:
    models = pytest.importorskip("lightkube.models.core_v1")
    with pytest.raises(AssertionError, match="has no"):
        check({"containers": [{"name": "a", "imagee": "b"}]}, models.PodSpec, "spec")
    with pytest.raises(AssertionError, match="lacks"):
        check({"containers": [{"image": "b"}]}, models.PodSpec, "spec")
    with pytest.raises(AssertionError):
        check({"containers": [{"name": "a", "ports": [{"containerPort": "x"}]}]}, models.PodSpec, "spec")


def test_every_container_gives_up_what_it_does_not_need() -> None:
    assert len(containers()) == 7
    for pod, container in containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
        assert ":" not in container["image"], "images are named by an overlay, with their digest"
    (daemonset,), (sidecar,) = pods("handclasp-agent"), pods(SIDECAR)
    assert sidecar["securityContext"]["runAsNonRoot"] is True
    assert daemonset["hostPID"] is True
    assert "hostPID" not in sidecar


def test_every_command_in_the_manifests_exists() -> None:
    seen = 0
    for _, container in containers():
        if container["image"] not in ("handclasp-agent", "handclasp-server"):
            continue
        if "args" in container:
            assert wrong_usage(container["args"]) == ""
            seen += 1
        for script in container.get("command", [])[2:]:
            for call in re.findall(r"handclasp (agent [^;|}&]*)", script):
                assert wrong_usage([word for word in shlex.split(call) if not word.startswith("$")]) == ""
                seen += 1
    assert seen == 6


def test_every_configuration_in_the_manifests_is_one() -> None:
    texts = [document["data"]["agent.yaml"] for document in of_kind("ConfigMap") if "agent.yaml" in document["data"]]
    assert len(texts) == 2
    node, sidecar = (parse_config(text.replace("@NODE@", "node-1"), "agent.yaml", Path("/etc/handclasp")) for text in texts)
    (pod, other) = pods("handclasp-agent", SIDECAR)
    sockets = node.section("socket")
    assert sockets.kubelet.server_name == "node-1"
    mounted = {mount["mountPath"] for _, container in containers() for mount in container.get("volumeMounts", [])}
    assert {str(sockets.path.parent), str(sockets.kubelet.token_file.parent), DEFAULT_STATE} <= mounted
    assert sidecar.identities[0].targets[0].place.name == "files:/run/tls"
    probe = other["initContainers"][1]["startupProbe"]["exec"]["command"]
    assert probe[-1] == "test -e /run/tls/current/key.pem"
    assert str(sockets.path) in pod["containers"][0]["readinessProbe"]["exec"]["command"][-1]


def test_rights_are_few_and_belong_to_somebody() -> None:
    accounts = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in of_kind("ServiceAccount")}
    roles = {one["metadata"]["name"]: one for one in of_kind("Role", "ClusterRole")}
    for binding in of_kind("RoleBinding", "ClusterRoleBinding"):
        assert binding["roleRef"]["name"] in roles
        for subject in binding["subjects"]:
            assert (subject["namespace"], subject["name"]) in accounts
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in rule["resources"] + rule["verbs"]
    assert [rule["verbs"] for rule in roles["handclasp-agent"]["rules"]] == [["get"]]
    collector = [rule for name, role in roles.items() if name.startswith("handclasp-collector") for rule in role["rules"]]
    assert len(collector) > 15
    for rule in collector:
        assert set(rule["verbs"]) <= ({"get"} if "pods/proxy" in rule["resources"] else {"list", "watch"})
    assert not any("secrets" in rule["resources"] for name in COLLECTS for rule in roles[name]["rules"]), "Secrets are opt-in"
    writes = roles["handclasp-agent-secrets"]["rules"]
    assert {verb for rule in writes for verb in rule["verbs"]} == {"get", "patch", "create"}
    assert all("resourceNames" in rule for rule in writes if rule["verbs"] != ["create"])
