"""Claims about every command: documented, with an example, with --json, quick to show its help, and usable without the server's parts."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

from handclasp.cli.command import Command
from handclasp.cli.lazy import LazyGroup
from handclasp.cli.main import SECTIONS, handclasp
from handclasp.server.settings import SETTINGS
from support.cli_tree import EVERY

SOURCE = Path(__file__).resolve().parents[2] / "src"
HEAVY = (
    "httpx2",
    "rich",
    "cryptography",
    "msgspec",
    "yaml",
    "sqlalchemy",
    "starlette",
    "handclasp.client",
    "handclasp.agent",
    "handclasp.server",
)

WANTED = """
up serve init demo doctor
token create, token list, token show, token revoke
cert issue, cert sign, cert renew, cert revoke, cert show, cert list, cert inspect
identity list, identity show
agent enroll, agent run, agent check, agent plan, agent status, agent list
policy show, policy diff, policy apply, policy test
profile list, profile show, profile diff, profile apply
ca list, ca show, ca bundle, ca crl, ca root create, ca request, ca sign-issuing, ca import, ca issuing create
audit list, audit show, audit export, audit prove, audit verify, audit erase, audit witness
"""


def python(code: str, *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **(env or {})}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_every_command_that_was_promised_is_there() -> None:
    first, *rest = WANTED.strip().splitlines()
    wanted = {*first.split(), *(name.strip() for line in rest for name in line.split(","))}
    assert wanted - {"demo"} <= set(EVERY)
    assert "demo" in handclasp.list_commands(click.Context(handclasp))


@pytest.mark.parametrize("name", EVERY)
def test_every_command_has_help_an_example_of_itself_and_json(name: str) -> None:
    command = EVERY[name]
    assert isinstance(command, Command)
    assert f"handclasp {name}" in command.example
    assert command.help
    options = {option for param in command.get_params(click.Context(command)) for option in param.opts}
    assert "--json" in options
    for param in command.get_params(click.Context(command)):
        assert isinstance(param, click.Argument | click.Option)
        assert param.help, f"{param.name} of {name} has no help"


@pytest.mark.parametrize("name", EVERY)
def test_help_of_every_command_ends_with_its_example(name: str, run) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout
    assert EVERY[name].example.splitlines()[0] in result.stdout
    assert result.stderr == ""
    arguments = [param for param in EVERY[name].params if isinstance(param, click.Argument)]
    assert result.stdout.lower().count("arguments:\n") == bool(arguments), "told once"


@pytest.mark.parametrize("name", [name for name, command in EVERY.items() if command.connection])
def test_connection_options_are_taken_before_and_after_the_command(name: str) -> None:
    assert {option.name for option in EVERY[name].connection} <= {"url", "token_file", "ca"}


def test_one_line_help_of_the_lazy_groups_is_that_of_the_command() -> None:
    for section in SECTIONS.values():
        for name, (_, text) in section.items():
            assert text.endswith("."), name
            command = handclasp.get_command(click.Context(handclasp), name) if name != "demo" else None
            assert command is None or command.help, name


@pytest.mark.parametrize(
    "words", ["", "token", "cert", "cert issue", "ca", "audit verify", "policy test", "agent", "doctor", "token create"]
)
def test_help_imports_nothing_heavy(words: str) -> None:
    code = (
        "import sys\nfrom handclasp.cli.main import handclasp\n"
        f"try: handclasp(args={[*words.split(), '--help']!r}, prog_name='handclasp')\nexcept SystemExit as end: assert end.code == 0\n"
        f"print([name for name in sys.modules if name in {HEAVY!r} or name.split('.')[0] in {HEAVY!r}], file=sys.stderr)"
    )
    result = python(code)
    assert result.stderr.strip() == "[]"
    assert "Usage: handclasp" in result.stdout


def test_a_piped_list_does_not_import_rich_and_a_drawn_one_does() -> None:
    code = (
        "import sys\nfrom handclasp.cli import terminal\n{}\nterminal.write_table(['a'], [['b']])\n"
        "print('rich.table' in sys.modules, file=sys.stderr)"
    )
    assert python(code.format("")).stderr.strip() == "False"
    assert python(code.format("terminal.is_terminal = lambda stream: True")).stderr.strip() == "True"


@pytest.mark.parametrize("name", ["up", "serve", "init"])
def test_every_setting_of_the_server_is_an_option(name: str) -> None:
    command = EVERY[name]
    options = {param.name: param for param in command.get_params(click.Context(command))}
    for setting in SETTINGS:
        option = options[setting.name]
        assert setting.flag in option.opts
        assert isinstance(option, click.Option)
        assert setting.env in (option.help or "")


def test_a_setting_reaches_the_server_as_it_was_given(monkeypatch: pytest.MonkeyPatch, run) -> None:

    seen = []
    module = types.ModuleType("handclasp.server.run")
    module.up = lambda settings: seen.append(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handclasp.server.run", module)
    result = run(
        "up", "--trust-domain", "example.org", "--dns-zone", "a.example", "--dns-zone", "b.example", "--tls12", "--crl-lifetime", "2h"
    )
    assert result.exit_code == 0, result.stderr
    settings = seen[0]
    assert (settings.trust_domain, settings.dns_zone, settings.tls12, settings.crl_lifetime) == (
        "example.org",
        ("a.example", "b.example"),
        True,
        7200,
    )


def test_a_bad_setting_is_refused_before_anything_starts(run) -> None:
    result = run("serve", "--crl-lifetime", "soon")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --crl-lifetime: 'soon' is not a duration")


def test_a_server_command_that_is_a_coroutine_is_run_to_its_end(monkeypatch: pytest.MonkeyPatch, run) -> None:

    async def serve(_settings: object) -> int:
        return 1

    module = types.ModuleType("handclasp.server.run")
    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handclasp.server.run", module)
    assert run("serve").exit_code == 1


def test_without_the_servers_parts_the_rest_works_and_up_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('uvicorn', 'starlette', 'sqlalchemy', 'uvloop', 'alembic', 'joserfc', 'structlog'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import types\n"
        "run = types.ModuleType('handclasp.server.run')\n"
        "def getattr_(name):\n"
        "    import uvicorn\n"
        "run.__getattr__ = getattr_\n"
        "sys.modules['handclasp.server.run'] = run\n"
        "from handclasp.cli.main import handclasp\n"
        "handclasp(args=sys.argv[1:] or ARGS, prog_name='handclasp')\n"
    )
    up = python(code.replace("ARGS", "['up']"))
    assert (up.returncode, up.stdout) == (1, "")
    assert up.stderr == (
        "error: this command needs the server's parts, and uvicorn is not installed (unavailable)\nhint: pip install 'handclasp[server]'\n"
    )
    help_text = python(code.replace("ARGS", "['up', '--help']"))
    assert help_text.returncode == 0
    assert "--trust-domain" in help_text.stdout
    for args in (["ca", "root", "create", "--help"], ["policy", "test", "--help"]):
        assert python(code.replace("ARGS", repr(args))).returncode == 0


def test_offline_work_needs_no_server_part(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\ngrants: []\n")
    (tmp_path / "cases.yaml").write_text(
        "version: 1\ncases:\n  - {name: nobody, principal: {certificate: 'spiffe://example.org/a'},"
        " request: {identity: 'spiffe://example.org/b'}, expect: deny}\n"
    )
    (tmp_path / "passphrase").write_text("correct horse battery staple\n")
    (tmp_path / "passphrase").chmod(0o600)
    code = (
        "import sys\n"
        "for name in ('uvicorn', 'starlette', 'sqlalchemy', 'uvloop', 'alembic', 'joserfc', 'structlog'): sys.modules[name] = None\n"
        "from handclasp.cli.main import handclasp\n"
        "handclasp(args=ARGS, prog_name='handclasp')\n"
    )
    where = str(tmp_path)
    for args in (
        ["policy", "test", "-f", f"{where}/cases.yaml", "--policy", f"{where}/policy.yaml"],
        ["ca", "root", "create", f"{where}/root", "--trust-domain", "example.org", "--passphrase-file", f"{where}/passphrase"],
        ["cert", "inspect", f"{where}/root/root.crt"],
    ):
        result = python(code.replace("ARGS", repr(args)))
        assert result.returncode == 0, result.stderr


def test_version(run) -> None:
    from handclasp import __version__

    assert run("--version").stdout == f"handclasp {__version__}\n"


def test_without_arguments_the_help_is_said_and_it_is_wrong_usage(run) -> None:
    result = run()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Who may have what:" in result.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [("handclasp to", ["token"]), ("handclasp token re", ["revoke"]), ("handclasp cert issue --out", ["--out-dir"])],
)
def test_shell_completion(words: str, found: list[str]) -> None:
    count = len(words.split()) - 1
    env = {"_HANDCLASP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    result = python("from handclasp.cli.main import main; main()", env=env)
    assert [line.split(",")[1] for line in result.stdout.splitlines()] == found


def test_groups_hold_their_names_without_importing() -> None:
    assert isinstance(handclasp, LazyGroup)
    result = python("import sys; import handclasp.cli.main; print([n for n in sys.modules if n.startswith('handclasp.cli')])")
    assert "tokens" not in result.stdout


def test_init_says_what_it_made_and_how_to_go_on(monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path) -> None:
    module = types.ModuleType("handclasp.server.run")
    module.init = lambda settings: {"made": True, "data": str(settings.data)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handclasp.server.run", module)
    result = run("init", "--data", "/srv/x")
    assert (result.stdout, result.stderr) == ("made\tyes\ndata\t/srv/x\n", "start it with: handclasp serve --data /srv/x\n")
    (tmp_path / "s.toml").write_text("")
    more = run("init", "--config", "s.toml", "--passphrase-file", "a b")
    assert more.stderr == "start it with: handclasp serve --config s.toml --passphrase-file 'a b'\n"
    both = run("init", "--config", "s.toml", "--data", "/srv/x")
    assert both.stderr == "start it with: handclasp serve --config s.toml --data /srv/x\n"
    assert run("init", "--data", "/srv/x", "--json").stdout == '{"made": true, "data": "/srv/x"}\n'
