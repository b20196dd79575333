"""What is said of a process: from control groups, executables, the kubelet and Docker, none of which is believed more than it must be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.agent.socket.attest import Memory, attest
from handclasp.agent.socket.attest.base import NotYetError, clean
from handclasp.agent.socket.attest.cgroup import Place, read_cgroup
from handclasp.agent.socket.attest.docker import DockerAttestor
from handclasp.agent.socket.attest.kubernetes import Kubelet, KubernetesAttestor
from handclasp.agent.socket.attest.systemd import SystemdAttestor
from handclasp.agent.socket.attest.unix import UnixAttestor
from handclasp.agent.socket.proc import Process
from handclasp.errors import HandclaspError, Kind
from support.fake_server import FakeAuthority

A, B = "a" * 64, "b" * 64
UID, OTHER = "0123abcd-0000-4000-8000-0123456789ab", "99999999-0000-4000-8000-0123456789ab"
SLICED = UID.replace("-", "_")

# --- control groups ---------------------------------------------------------------------------------------------------------------------

PLACES = [
    ("", Place()),
    ("0::/\n", Place()),
    ("0::/system.slice/nginx.service\n", Place("nginx.service")),
    ("0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n", Place("postgresql@15-main.service")),
    ("0::/system.slice/ssh.service/payload\n", Place("ssh.service")),
    ("1:name=systemd:/system.slice/cron.service\n0::/x\n", Place("cron.service")),
    ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service\n", Place("user@1000.service")),
    ("0::/user.slice/user-1000.slice/session-3.scope\n", Place("session-3.scope")),
    (f"0::/system.slice/docker-{A}.scope\n", Place(f"docker-{A}.scope", A)),
    (f"5:cpu:/docker/{A}\n1:name=systemd:/docker/{A}\n", Place("", A)),
    (f"0::/machine.slice/libpod-{A}.scope/container\n", Place(f"libpod-{A}.scope", A)),
    (f"0::/kubepods/burstable/pod{UID}/{A}\n", Place("", A, UID)),
    (f"0::/kubepods/pod{UID}/{A}\n", Place("", A, UID)),
    (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICED}.slice/cri-containerd-{A}.scope\n",
        Place(f"cri-containerd-{A}.scope", A, UID),
    ),
    (f"0::/kubepods.slice/kubepods-pod{SLICED}.slice/crio-{A}.scope/init\n", Place(f"crio-{A}.scope", A, UID)),
    (f"0::/../../kubepods-besteffort-pod{SLICED}.slice/cri-containerd-{A}.scope\n", Place("", A, UID)),
    (f"0::/../cri-containerd-{A}.scope\n", Place("", A)),
    (
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICED}.slice/cri-containerd-{A}.scope\n",
        Place(f"cri-containerd-{A}.scope", A, UID),
    ),
    # What a workload made below its own group says nothing.
    (f"0::/kubepods/pod{UID}/{A}/kubepods/pod{OTHER}/{B}\n", Place("", A, UID)),
    (f"0::/system.slice/evil.service/docker/{A}\n", Place("evil.service")),
    (f"0::/system.slice/evil.service/kubepods/pod{UID}/{A}\n", Place("evil.service")),
    # Each user's manager is given its groups, and can make scopes of any name: systemd-run --user --scope --unit docker-ID.
    (f"0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{A}.scope\n", Place("user@1000.service")),
    (f"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{A}\n", Place("user@1000.service")),
    (f"0::/../../user.slice/user-1000.slice/user@1000.service/kubepods-pod{SLICED}.slice/cri-containerd-{A}.scope\n", Place()),
    (f"0::/user.slice/user-1000.slice/session-3.scope/docker/{A}\n", Place("session-3.scope")),
    (f"4:freezer:/user/ann/0/docker/{A}\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n", Place("session-3.scope")),
    (f"0::/lxc.payload.theirs/docker/{A}\n", Place()),
    (f"3:cpu:/lxc/theirs/docker/{A}\n", Place()),
    (f"0::/kubepods/pod{UID}/x/{A}\n", Place()),
    (f"0::/kubepods/pod{UID[:-1]}/{A}\n", Place("", A)),
    (f"0::/docker/{A[:-1]}\n", Place()),
    (f"0::/docker/{A.upper()}\n", Place()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place"), PLACES, ids=range(len(PLACES)))
def test_where_a_control_group_is(text: str, place: Place) -> None:
    assert read_cgroup(text.encode()) == place


@pytest.mark.parametrize(
    "text", [f"2:cpu:/docker/{A}\n1:pids:/docker/{B}\n", f"2:a:/kubepods/pod{UID}/{A}\n1:b:/kubepods/pod{OTHER}/{A}\n"]
)
def test_hierarchies_that_disagree_are_not_believed(text: str) -> None:
    with pytest.raises(HandclaspError):
        read_cgroup(text.encode())


PARTS = st.one_of(st.sampled_from(["..", A, f"pod{UID}", f"docker-{B}.scope", "x.service", "kubepods.slice"]), st.text(max_size=20))


@given(st.one_of(st.binary(), st.lists(PARTS, max_size=10).map(lambda parts: f"0::/{'/'.join(parts)}\n".encode())))
def test_no_control_group_does_harm(data: bytes) -> None:
    try:
        place = read_cgroup(data)
    except HandclaspError:
        return
    assert len(place.container) in (0, 64)
    assert "/" not in place.unit


MINE = st.sampled_from(
    [A, f"docker-{B}.scope", f"pod{UID}", "kubepods", f"kubepods-pod{SLICED}.slice", f"cri-containerd-{A}.scope", "docker"]
)
GIVEN = st.sampled_from([
    "user.slice/user-1000.slice/user@1000.service", "user.slice/user-7.slice/session-2.scope", "system.slice/evil.service", "user/ann/0",
    "../../system.slice/system-x.slice/x@1.service", "lxc/theirs",
])  # fmt: skip


@given(GIVEN, st.lists(MINE, max_size=6))
def test_who_owns_its_groups_is_never_taken_for_a_container(given_to: str, made: list[str]) -> None:
    place = read_cgroup(f"0::/{'/'.join([given_to, *made])}\n".encode())
    assert (place.container, place.pod) == ("", "")


# --- a /proc of our own -----------------------------------------------------------------------------------------------------------------


def process(root: Path, cgroup: str = "0::/\n", exe: str = "") -> Process:
    home = root / "proc" / "42"
    home.mkdir(parents=True, exist_ok=True)
    (home / "stat").write_text("42 (x) S " + " ".join(["1"] * 18) + " 100 0\n")
    (home / "status").write_text("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 4 123456 x -1\n")
    (home / "cgroup").write_text(cgroup)
    if exe:
        (home / "exe").unlink(missing_ok=True)
        (home / "exe").symlink_to(exe)
    return Process(42, 0, 0, root=root / "proc")


def test_users_and_groups_have_names_and_numbers(tmp_path: Path) -> None:
    found = UnixAttestor().selectors(process(tmp_path), None)
    assert {"unix:uid:0", "unix:user:root", "unix:gid:0", "unix:group:root", "unix:supplementary_gid:4"} <= set(found)
    assert "unix:supplementary_gid:123456" in found
    assert not [one for one in found if "path" in one or "-1" in one or ":x" in one]


def test_an_executable_is_hashed_once_when_somebody_asks_and_again_when_it_is_another(tmp_path: Path) -> None:
    exe = tmp_path / "tool"
    exe.write_bytes(b"one")
    who, attestor = process(tmp_path, exe=str(exe)), UnixAttestor()
    assert not [one for one in attestor.selectors(who, frozenset({"unix:uid"})) if "sha256" in one or "path" in one]
    assert attestor._hashes == {}
    assert f"unix:sha256:{hashlib.sha256(b'one').hexdigest()}" in attestor.selectors(who, frozenset({"unix:sha256"}))
    state = exe.stat()
    exe.write_bytes(b"two")
    os.utime(exe, ns=(state.st_atime_ns, state.st_mtime_ns))  # the size and the time that its owner can set are what they were
    found = attestor.selectors(who, None)
    assert f"unix:sha256:{hashlib.sha256(b'two').hexdigest()}" in found
    assert f"unix:path:{exe}" in found
    assert not [one for one in UnixAttestor(hash_limit=2).selectors(who, None) if "sha256" in one]


def test_a_path_is_given_only_when_that_file_is_what_runs(tmp_path: Path) -> None:
    """In a mount namespace of his own anybody can have anything at /usr/sbin/nginx."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    place = tmp_path / "nginx"
    place.write_bytes(b"the real one")
    script = f"mount --bind /bin/sleep {place} && exec {place} 30"
    child = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stderr=subprocess.PIPE)
    try:
        while Path(f"/proc/{child.pid}/exe").readlink().name != "nginx":
            if child.poll() is not None:
                pytest.skip("needs unshare")
        who = Process.of_pid(child.pid)
        assert who.link("exe") == str(place)
        found = UnixAttestor().selectors(who, None)
        assert not [one for one in found if one.startswith("unix:path")]
        assert f"unix:sha256:{hashlib.sha256(Path('/bin/sleep').resolve().read_bytes()).hexdigest()}" in found
        who.close()
    finally:
        child.kill()
        child.communicate()


def test_the_unit_of_a_process(tmp_path: Path) -> None:
    assert SystemdAttestor().selectors(process(tmp_path, "0::/system.slice/web.service\n"), None) == ["systemd:id:web.service"]
    assert SystemdAttestor().selectors(process(tmp_path), None) == []


# --- the kubelet ------------------------------------------------------------------------------------------------------------------------


class Fake:
    """An HTTP server that answers with what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = {}
        self.status = 200
        self.raw: bytes | None = None
        self.asked: list[tuple[str, str, str]] = []


@contextmanager
def answering(fake: Fake, *, path: Path | None = None, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.asked.append((self.path, self.headers.get("Authorization") or "", self.headers.get("Host") or ""))
            body = fake.raw if fake.raw is not None else json.dumps(fake.answer).encode()
            self.send_response(fake.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

        def address_string(self) -> str:
            return ""

    class UnixServer(HTTPServer):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(self.server_address)  # type: ignore[arg-type]
            self.server_name, self.server_port = "unix", 0

    class Quiet(HTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass

    server: HTTPServer = UnixServer(str(path), Handler) if path is not None else Quiet(("127.0.0.1", 0), Handler)  # type: ignore[arg-type]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield int(server.server_address[1]) if path is None else 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pod(uid: str = UID, container: str = A, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": "web-0", "uid": uid, "labels": {"app": "web", "a.b/c": "d", "x:y": "z"}, **metadata},
        "spec": {"serviceAccountName": "web", "nodeName": "n1"},
        "status": {"containerStatuses": [{"containerID": f"containerd://{container}", "name": "app", "image": "registry/app:1"}]},
    }


IN_POD = f"0::/kubepods/pod{UID}/{A}\n"
EXPECTED = {
    "k8s:ns:shop", "k8s:sa:web", "k8s:pod-name:web-0", f"k8s:pod-uid:{UID}", "k8s:node-name:n1", "k8s:container-name:app",
    "k8s:container-image:registry/app:1", "k8s:pod-label:app:web", "k8s:pod-label:a.b/c:d",
}  # fmt: skip


def test_the_kubelet_is_asked_over_tls_with_a_token_by_the_name_in_its_certificate(tmp_path: Path) -> None:
    authority, fake = FakeAuthority(), Fake()
    fake.answer = {"items": [pod(OTHER, B), pod()]}
    certificate, key = authority.credential(dns=["node1"])
    (tmp_path / "tls.pem").write_bytes(certificate + key)
    from support.fake_server import pem

    (tmp_path / "ca.pem").write_text(pem(authority.root))
    (tmp_path / "token").write_text("secret-1\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    with answering(fake, tls=context) as port:
        kubelet = Kubelet(f"https://127.0.0.1:{port}", tmp_path / "token", tmp_path / "ca.pem", "node1")
        assert set(KubernetesAttestor(kubelet).selectors(process(tmp_path, IN_POD), None)) == EXPECTED
        (tmp_path / "token").write_text("secret-2\n")
        KubernetesAttestor(kubelet).selectors(process(tmp_path, IN_POD), None)
        assert [(path, token) for path, token, _ in fake.asked] == [("/pods", "Bearer secret-1"), ("/pods", "Bearer secret-2")]
        fake.asked.clear()
        for wrong in (
            Kubelet(kubelet.url, kubelet.token_file, kubelet.ca_file),  # not the name in its certificate
            Kubelet(kubelet.url, kubelet.token_file, None, "node1"),  # not an authority of the system's
            Kubelet(kubelet.url, tmp_path / "nothing", kubelet.ca_file, "node1"),
        ):
            with pytest.raises(HandclaspError) as caught:
                KubernetesAttestor(wrong).selectors(process(tmp_path, IN_POD), None)
            assert caught.value.kind is Kind.UNAVAILABLE
            assert "secret" not in str(caught.value)
        assert fake.asked == []  # nobody but the kubelet sees the token


def kubelet_says(tmp_path: Path, answer: Any, cgroup: str = IN_POD) -> Callable[[], list[str]]:
    fake = Fake()
    fake.answer = answer

    def do() -> list[str]:
        with answering(fake) as port:
            return KubernetesAttestor(Kubelet(f"http://127.0.0.1:{port}")).selectors(process(tmp_path, cgroup), None)

    return do


def test_pods_that_are_not_listed_yet_and_those_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(NotYetError):
        kubelet_says(tmp_path, {"items": [pod(container=B)]})()
    assert kubelet_says(tmp_path, {"items": []}, f"0::/docker/{A}\n")() == []
    assert kubelet_says(tmp_path, {"items": [pod()]}, "0::/system.slice/x.service\n")() == []
    assert set(kubelet_says(tmp_path, {"items": [pod()]}, f"0::/../cri-containerd-{A}.scope\n")()) == EXPECTED
    with pytest.raises(HandclaspError, match="different pods"):
        kubelet_says(tmp_path, {"items": [pod(uid=OTHER)]})()
    static = pod(uid=OTHER, annotations={"kubernetes.io/config.hash": UID})
    assert f"k8s:pod-uid:{OTHER}" in kubelet_says(tmp_path, {"items": [static]})()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(f"x://{A}") | st.just(A),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["items", "metadata", "status", "containerStatuses", "containerID", "labels", "Config", "Labels", "Id", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JUNK)
def test_a_hostile_answer_makes_selectors_or_an_error(answer: Any) -> None:
    from handclasp.agent.socket.attest.docker import _selectors as docker_selectors
    from handclasp.agent.socket.attest.kubernetes import _selectors, _statuses

    for _identifier, status in _statuses(answer):
        assert all(one.startswith("k8s:") for one in clean(_selectors(answer, status)))
    assert all(one.startswith("docker:") for one in clean(docker_selectors(answer)))


@pytest.mark.parametrize("raw", [b"", b"x", b"[" * 100_000, b'{"items": {"a": 1}}', b"\xff\xfe", b"null"])
def test_bytes_that_are_no_answer_are_no_pod(tmp_path: Path, raw: bytes) -> None:
    fake = Fake()
    fake.raw = raw
    with answering(fake) as port, pytest.raises(HandclaspError):
        KubernetesAttestor(Kubelet(f"http://127.0.0.1:{port}")).selectors(process(tmp_path, IN_POD), None)


# --- Docker -----------------------------------------------------------------------------------------------------------------------------

CONFIG = {"Image": "nginx:1.29", "Labels": {"team": "a b", "x:y": "z"}, "Env": ["S=x"]}
CONTAINER = {"Id": A, "Name": "/web", "Image": "sha256:" + "1" * 64, "Config": CONFIG}


def test_docker_is_asked_for_the_container_of_the_process(tmp_path: Path) -> None:
    fake = Fake()
    fake.answer = CONTAINER
    attestor = DockerAttestor(str(tmp_path / "d.sock"))
    inside = process(tmp_path, f"0::/system.slice/docker-{A}.scope\n")
    with answering(fake, path=tmp_path / "d.sock"):
        assert set(attestor.selectors(inside, None)) == {
            "docker:label:team:a b", "docker:image:nginx:1.29", f"docker:image_id:sha256:{'1' * 64}", "docker:name:web",
        }  # fmt: skip
        assert [path for path, _, _ in fake.asked] == [f"/containers/{A}/json"]
        assert attestor.selectors(process(tmp_path, "0::/x\n"), None) == []
        assert attestor.selectors(process(tmp_path, IN_POD), None) == []
        fake.answer = CONTAINER | {"Id": B}
        inside = process(tmp_path, f"0::/system.slice/docker-{A}.scope\n")
        with pytest.raises(HandclaspError, match="another container"):
            attestor.selectors(inside, None)
        fake.status = 404
        assert attestor.selectors(inside, None) == []
        fake.status = 500
        with pytest.raises(HandclaspError, match="status 500"):
            attestor.selectors(inside, None)
    with pytest.raises(OSError):
        attestor.selectors(inside, None)


# --- all together -----------------------------------------------------------------------------------------------------------------------


class Told:
    """An attestor that says what it is told to."""

    def __init__(self, name: str, *said: str) -> None:
        self.name, self.said = name, list(said)
        self.fails: Exception | None = None

    def selectors(self, process: Process, wanted: frozenset[str] | None) -> list[str]:
        if self.fails is not None:
            raise self.fails
        return self.said


def test_one_that_fails_is_left_out_and_all_that_fail_are_an_error(tmp_path: Path) -> None:
    who, one, two = process(tmp_path), Told("unix", "unix:uid:0", "bad\nline", "x" * 2000), Told("k8s", "k8s:ns:a")
    assert attest(who, [one, two]).selectors == ("unix:uid:0", "k8s:ns:a")
    assert attest(who, [one, two], frozenset({"unix:uid"})).selectors == ("unix:uid:0",)
    two.fails = NotYetError(Kind.UNAVAILABLE, "later")
    found = attest(who, [one, two])
    assert (found.selectors, found.failed, found.pending) == (("unix:uid:0",), ("k8s",), ("k8s",))
    one.fails = PermissionError("no")
    with pytest.raises(HandclaspError) as caught:
        attest(who, [one, two])
    assert caught.value.kind is Kind.UNAVAILABLE


def test_what_was_said_before_stands_in_while_the_process_is_the_same(tmp_path: Path) -> None:
    who, one, two, memory = process(tmp_path), Told("unix", "unix:uid:0"), Told("k8s", "k8s:ns:a"), Memory()
    attest(who, [one, two], None, memory)
    two.fails = ConnectionRefusedError("away")
    assert attest(who, [one, two], None, memory).selectors == ("unix:uid:0", "k8s:ns:a")
    (tmp_path / "proc/42/cgroup").write_text(f"0::/docker/{A}\n")
    found = attest(who, [one, two], None, memory)
    assert (found.selectors, found.failed) == (("unix:uid:0",), ("k8s",))
