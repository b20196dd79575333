"""Where client settings come from, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.client.settings import DEFAULT_URL, ClientSettings
from handclasp.errors import HandclaspError, Kind
from support.errors import allowing

CONFIG = '[default]\nurl = "https://file.example:1"\ntoken = "from-file"\nca = "ca.pem"\n'


def resolve(tmp_path: Path, flags: dict[str, str | None], env: dict[str, str], config: str | None = None) -> ClientSettings:
    path = None
    if config is not None:
        path = tmp_path / "config.toml"
        path.write_text(config)
    return ClientSettings.resolve(flags, {"HANDCLASP_CONFIG": str(path)} | env if path else {"HOME": str(tmp_path)} | env, path)


@pytest.mark.parametrize(
    ("case", "flags", "env", "config", "url", "token"),
    [
        ("the file is enough", {}, {}, CONFIG, "https://file.example:1", "from-file"),
        ("the environment beats the file", {}, {"HANDCLASP_URL": "https://e"}, CONFIG, "https://e", "from-file"),
        ("a flag beats both", {"url": "https://f/"}, {"HANDCLASP_URL": "https://e"}, CONFIG, "https://f", "from-file"),
        ("an empty flag is no flag", {"url": None, "token": ""}, {"HANDCLASP_TOKEN": "t"}, CONFIG, "https://file.example:1", "t"),
        ("a token has no surrounding space", {"token": " t\n"}, {}, CONFIG, "https://file.example:1", "t"),
    ],
)
def test_order(tmp_path: Path, case: str, flags: dict[str, str | None], env: dict[str, str], config: str, url: str, token: str) -> None:
    settings = resolve(tmp_path, flags, env, config)
    assert (settings.url, settings.token) == (url, token), case


def test_nothing_set_means_this_machine_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ClientSettings.resolve({}, {}) == ClientSettings(DEFAULT_URL)


def test_token_files_are_read_in_the_place_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-token-file\n")
    assert resolve(tmp_path, {"token_file": str(tmp_path / "t")}, {"HANDCLASP_TOKEN": "env"}, CONFIG).token == "from-token-file"
    assert resolve(tmp_path, {}, {"HANDCLASP_TOKEN_FILE": str(tmp_path / "t")}, CONFIG).token == "from-token-file"
    assert resolve(tmp_path, {}, {}, '[default]\ntoken_file = "t"\n').token == "from-token-file"


def test_files_in_the_configuration_are_beside_it(tmp_path: Path) -> None:
    assert resolve(tmp_path, {}, {}, CONFIG).ca == str(tmp_path / "ca.pem")
    assert resolve(tmp_path, {}, {}, '[default]\nca = "sha256:00"\n').ca == "sha256:00"


@pytest.mark.parametrize(
    ("case", "flags", "config"),
    [
        ("an address without TLS", {"url": "http://x"}, ""),
        ("an unknown setting", {}, '[default]\nurll = "x"\n'),
        ("not text", {}, "[default]\nurl = 1\n"),
        ("no table", {}, "default = 1\n"),
        ("not TOML", {}, "[default\n"),
        ("a token with a line break inside", {"token": "a\nb"}, ""),
        ("a token file that is not there", {"token_file": "/nonexistent/token"}, ""),
        ("an empty token file", {"token_file": "/dev/null"}, ""),
    ],
)
def test_refused(tmp_path: Path, case: str, flags: dict[str, str | None], config: str) -> None:
    with pytest.raises(HandclaspError) as caught:
        resolve(tmp_path, flags, {}, config)
    assert caught.value.kind is Kind.BAD_SETTING, case


def test_a_named_configuration_must_exist(tmp_path: Path) -> None:
    with pytest.raises(HandclaspError, match="there is no configuration file"):
        ClientSettings.resolve({}, {}, tmp_path / "missing.toml")


def test_the_token_is_not_in_the_representation() -> None:
    assert "secret" not in repr(ClientSettings(token="secret"))


@given(st.binary(max_size=200))
def test_no_configuration_crashes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz-config.toml"
    path.write_bytes(data)
    with allowing(Kind.BAD_SETTING):
        ClientSettings.resolve({}, {}, path)
