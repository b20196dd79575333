"""How a command fails: exit codes, words, JSON problems, Ctrl-C, and a reader that has gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from handclasp import wire
from handclasp.errors import HandclaspError, Kind
from support.cli_tree import EVERY
from support.fake_api import FakeApi

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HandclaspError(Kind.TOKEN_EXPIRED, "the token has expired", hint="get a new one"), "token_expired"),
        (FileNotFoundError(2, "No such file or directory", "x.pem"), "not_found"),
        (PermissionError(13, "Permission denied", "x.pem"), "not_allowed"),
        (OSError(28, "No space left on device"), "unavailable"),
    ],
)
def test_whatever_fails_is_one_sentence_and_exit_code_1(error: Exception, kind: str, as_json: bool, api: FakeApi, run) -> None:
    api.on("GET", "/v1/authorities", error)
    result = run("ca", "list", *(["--json"] if as_json else []))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert f"({kind})" in result.stderr
    if as_json:
        assert msgspec.json.decode(result.stdout, type=wire.Problem).kind == kind
    else:
        assert result.stdout == ""


@pytest.mark.parametrize("args", [["--json", "ca", "list"], ["ca", "list", "--json"]])
def test_json_may_stand_before_or_after_the_command(args: list[str], api: FakeApi, run) -> None:
    api.on("GET", "/v1/authorities", wire.AuthorityList(items=[]))
    assert json.loads(run(*args).stdout) == {"items": []}
    api.on("GET", "/v1/authorities", HandclaspError(Kind.NOT_ALLOWED, "no"))
    assert json.loads(run(*args).stdout)["kind"] == "not_allowed"


def test_settings_nearest_to_the_command_win(api: FakeApi, run, tmp_path: Path) -> None:
    api.on("GET", "/v1/authorities", wire.AuthorityList(items=[]))
    (tmp_path / "t").write_text("hct_file\n")
    env = {"HANDCLASP_URL": "https://env:1", "HANDCLASP_TOKEN": "hct_env"}
    run("ca", "list", env=env)
    assert (api.settings.url, api.settings.token) == ("https://env:1", "hct_env")
    run("--url", "https://before:1", "--token-file", "t", "ca", "list", env=env)
    assert (api.settings.url, api.settings.token) == ("https://before:1", "hct_file")
    run("--url", "https://before:1", "ca", "list", "--url", "https://after:1", "--ca", "x.pem", env=env)
    assert (api.settings.url, api.settings.ca) == ("https://after:1", "x.pem")


def test_a_token_may_come_from_stdin(api: FakeApi, run) -> None:
    api.on("GET", "/v1/authorities", wire.AuthorityList(items=[]))
    assert run("ca", "list", "--token-file", "-", stdin="hct_stdin\n").exit_code == 0
    assert api.settings.token == "hct_stdin"


def test_no_option_of_any_command_needs_a_secret_on_the_command_line() -> None:
    for name, command in EVERY.items():
        for param in command.params:
            if param.name in ("token", "password", "passphrase", "secret"):
                assert name == "agent enroll"
                assert param.metavar == "TOKEN|-"


@pytest.mark.parametrize("limit", [0, 1, 500, 501, 1200, 5000])
def test_a_list_follows_the_pages_up_to_its_limit(limit: int, api: FakeApi, run) -> None:
    def identity(number: int) -> wire.Identity:
        return wire.Identity(
            identity=f"spiffe://example.org/{number}", owner=None, tier=None, environment=None, created_at="2026-01-01T00:00:00Z",
            certificates=0, newest=None, newest_not_after=None,
        )  # fmt: skip

    api.pages("/v1/identities", [identity(number) for number in range(1200)])
    result = run("identity", "list", "--limit", str(limit), "--json")
    answer = msgspec.json.decode(result.stdout, type=wire.IdentityList)
    wanted = min(limit or 1200, 1200)
    assert [item.identity.rsplit("/")[-1] for item in answer.items] == [str(number) for number in range(wanted)]
    assert (answer.next_cursor is not None) == (wanted < 1200) == ("there are more" in result.stderr)


def test_a_cursor_that_does_not_move_ends_a_list(api: FakeApi, run) -> None:
    api.on("GET", "/v1/identities", wire.IdentityList(items=[], next_cursor="again"))
    assert run("identity", "list", "--limit", "0").exit_code == 0
    assert len(api.asked) == 2


def test_an_empty_page_with_a_cursor_is_not_the_end(api: FakeApi, run) -> None:
    entry = wire.LogEntry(index=0, leaf_hash="", entry={"type": "token.created"})

    def answer(_body: object, params: dict[str, str]) -> wire.LogEntryList:
        left = int(params.get("cursor", "5"))
        return wire.LogEntryList(items=[] if left else [entry], next_cursor=str(left - 1) if left else None)

    api.on("GET", "/v1/log/entries", answer)
    assert run("audit", "list", "--type", "token.created").stdout.startswith("0\t")


def test_ctrl_c_is_quiet_and_130(api: FakeApi, run) -> None:
    def interrupted(_body: object, _params: object) -> None:
        raise KeyboardInterrupt

    api.on("GET", "/v1/authorities", interrupted)
    result = run("ca", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def process(code: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def test_ctrl_c_in_a_real_process() -> None:
    """A command that waits for its input gets the signal that a shell sends."""
    code = (
        "import os, signal, sys, time\nfrom handclasp.cli import files\nfrom handclasp.cli.main import main\n"
        "def wait(name):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(30)\n"
        # A process that was started in the background inherits an ignored SIGINT, also when that was the test run itself.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "files.read_bytes = wait\nsys.argv[1:] = ['cert', 'inspect', '-']\nmain()"
    )
    child = process(code)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err) == (130, b"", b"")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "from handclasp.cli import terminal\nfrom handclasp.cli.command import exit_code_of\nimport sys\n"
        "def run():\n    for number in range(100000): terminal.write(f'line {number}')\n"
        "sys.exit(exit_code_of(run, as_json=False))"
    )
    child = process(code)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(timeout=20) == 1


def test_connections_are_closed_when_a_command_ends(api: FakeApi, run) -> None:
    run("ca", "list")
    assert api.closed == 1
