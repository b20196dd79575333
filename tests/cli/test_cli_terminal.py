"""The rules of output: what is shown, what is hidden, and what a stream that is no terminal never sees."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handclasp.cli import terminal
from handclasp.clock import rfc3339

NOW = 1_767_225_600_000


@given(st.text())
def test_no_text_from_outside_ever_controls_a_terminal(text: str) -> None:
    shown = terminal.visible(text)
    assert all(character.isprintable() for character in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert "\n" not in terminal.plain(text)
    assert "\t" not in terminal.plain(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web.example.org", "web.example.org"),
        ("Zürich", "Zürich"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("line\nbreak\ttab", "line\\nbreak\\ttab"),
        ("\u202egro.live", "\\u202egro.live"),
        ("bell\x07\x9b", "bell\\x07\\x9b"),
    ],
)
def test_what_a_hostile_name_looks_like(text: str, shown: str) -> None:
    assert terminal.visible(text) == shown


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "now"),
        (1, "in 1 second"),
        (59, "in 59 seconds"),
        (60, "in 1 minute"),
        (40 * 60, "in 40 minutes"),
        (100 * 60, "in 100 minutes"),
        (2 * 3600, "in 2 hours"),
        (47 * 3600, "in 47 hours"),
        (48 * 3600, "in 2 days"),
        (3650 * 86400, "in 9 years"),
        (-1, "1 second ago"),
        (-3 * 86400, "3 days ago"),
    ],
)
def test_times_in_words(seconds: int, words: str) -> None:
    assert terminal.relative(rfc3339(NOW + seconds * 1000)) == words


def test_a_time_that_is_none_is_shown_and_not_an_error() -> None:
    assert terminal.relative("never\x1b") == "never\\x1b"
    assert terminal.relative("") == ""


def test_json_is_one_line_of_ascii_when_piped_and_indented_at_a_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.write_json({"name": "Zürich\x1b"})
    assert capsys.readouterr().out == '{"name": "Z\\u00fcrich\\u001b"}\n'
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    terminal.write_json({"name": ["a"]})
    assert capsys.readouterr().out == '{\n  "name": [\n    "a"\n  ]\n}\n'


@pytest.mark.parametrize(
    ("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)], ids=str
)
def test_colour_is_for_terminals_that_want_it(env: dict[str, str], colour: bool, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    terminal.error("no", "bad_request")
    assert "\x1b" not in capsys.readouterr().err, "a pipe never gets colour"
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    terminal.error("no", "bad_request")
    terminal.write_verdict("ok", "a", "b")
    terminal.write_table(["verdict"], [["fail"]])
    out, err = capsys.readouterr()
    assert ("\x1b" in err, "\x1b" in out) == (colour, colour)


def test_a_list_of_mistakes_keeps_its_kind_on_the_first_line(capsys) -> None:
    terminal.error("p.yaml:2: one\np.yaml:7: two", "bad_policy", "fix them")
    assert capsys.readouterr().err == "error: p.yaml:2: one (bad_policy)\n  p.yaml:7: two\nhint: fix them\n"


def test_progress_is_drawn_on_a_terminal_only_and_leaves_nothing(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal.progress("copying", 2) as progress:
        progress.advance()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    with terminal.progress("copying", 2) as progress:
        progress.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "copying 1 of 2" in err
    assert err.endswith("\r\x1b[2K")


def test_an_empty_table_says_so_to_people_and_nothing_to_programs(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.write_table(["a"], [], empty="there are none")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    terminal.write_table(["a"], [], empty="there are none")
    assert capsys.readouterr() == ("", "there are none\n")


def test_bytes_are_written_as_they_are(capsysbinary) -> None:
    terminal.write(b"\x00\xff")
    assert capsysbinary.readouterr().out == b"\x00\xff"


def test_json_of_a_wire_list(capsys) -> None:
    from handclasp.wire import Done

    terminal.write_json([Done(log_entry=1), Done(log_entry=2)])
    assert json.loads(capsys.readouterr().out) == [{"log_entry": 1}, {"log_entry": 2}]


def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    with (tmp_path / "x").open("w") as file:
        pass
    assert not terminal.is_terminal(file)
    assert terminal.out() is sys.stdout


def test_a_table_fits_a_narrow_terminal_and_long_names_give_way_first(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    rows = [["confirmed", "spiffe://example.org/" + "long/" * 20, None, "contested"], ["zone", "x", "", "guess"]]
    terminal.write_table(["evidence", "identity", "nothing", "stands"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["EVIDENCE", "IDENTITY", "STANDS"], "a column that nothing is in is left out"
    assert lines[1].startswith("confirmed  spiffe://")
    assert lines[1].rstrip().endswith("contested")
    assert max(map(len, lines)) <= 60


@given(
    st.lists(st.lists(st.text("ab /:", max_size=60), min_size=3, max_size=3), min_size=1, max_size=5),
    st.integers(min_value=8, max_value=140),
)
def test_what_columns_are_given_fits_any_width(rows: list[list[str]], width: int) -> None:
    widths = terminal._widths([["head", *(row[n] for row in rows)] for n in range(3)], width)
    assert all(one >= 1 for one in widths)
    assert sum(widths) + 4 <= max(width, 7)
