"""Foreign text in what is written for a person, but for the report: a steer's README, errors, notices, generations."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from act.steer import README
from jobs import show
from jobs.progress import Lines
from schemas.events import Notice
from tests.hostile.strings import NASTY, NASTY_NAMES, acting
from tests.steers import make_steer

#: What of markdown starts something, outside of code.
MARKS = re.compile(r"[<>\[\]*_~#!\\]|https?:|www\.|&\w")


def readme(tmp_path, **changes):
    """The README of a steer whose card has these texts."""
    steer = make_steer({"norm": 3})
    steer = dataclasses.replace(steer, card=dataclasses.replace(steer.card, **changes))
    steer.save(tmp_path / "steer")
    return (tmp_path / "steer" / README).read_text("utf-8")


def without_code(line):
    """A line of markdown without its code spans, as CommonMark finds them: between runs of as many backticks."""
    return re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", line)


def test_code_spans_are_found_as_commonmark_finds_them():
    assert without_code("a ``b ` c`` d `e` f") == "a  d  f"
    assert without_code("a ``b`` `` c") == "a  `` c"


@pytest.mark.parametrize("what", NASTY)
@pytest.mark.parametrize("field", ["name", "kind", "select", "support", "template", "pooling", "law", "plan"])
def test_text_in_the_readme_of_a_steer_is_code_or_plain_words(tmp_path, what, field):
    plain = readme(tmp_path / "plain", **{field: "plain"}).splitlines()
    page = readme(tmp_path / "nasty", **{field: NASTY[what]})
    assert not acting(page)
    lines = page.splitlines()
    assert len(lines) == len(plain)
    for line, before in zip(lines, plain, strict=True):
        if line != before:
            left = without_code(line.removeprefix("# "))
            assert "`" not in left
            assert not MARKS.search(left), left


@pytest.mark.parametrize("what", NASTY)
def test_a_site_stays_in_its_row_of_the_readme(tmp_path, what):
    steer = make_steer({NASTY[what]: 3})
    site = dataclasses.replace(steer.card.sites[0], module_type=NASTY[what])
    steer = dataclasses.replace(steer, card=dataclasses.replace(steer.card, sites=(site,)))
    steer.save(tmp_path / "steer")
    page = (tmp_path / "steer" / README).read_text("utf-8")
    (row,) = [
        line for line in page.splitlines() if line.endswith("| 3 | 1.100 | 0.667 | 0.250 | 1.000 | 1e-07 | 0.01 | 0 |")
    ]
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 12
    for cell in cells[1:3]:
        assert not MARKS.search(without_code(cell))
    assert not acting(page)


def test_plain_words_stay_as_they_are(tmp_path):
    assert readme(tmp_path, name="less-toxic Grüße 2").startswith("# less-toxic Grüße 2\n")
    assert "`less_toxic`" in readme(tmp_path / "code", name="less_toxic")


@pytest.mark.parametrize("what", NASTY)
def test_json_for_programs_is_one_line_of_ascii(what):
    line = show.as_json({"name": NASTY[what], NASTY[what]: [NASTY[what]]})
    assert line.isascii()
    assert line.count("\n") == 1
    assert not acting(line)


@pytest.mark.parametrize("what", NASTY)
def test_generations_on_a_terminal_show_what_would_act(what):
    row = {"prompt": NASTY[what], "strength": 1.0, "output": NASTY[what]}
    shown = show.as_text(show.generations_page([row]))
    assert not acting(shown)
    assert "7*7" in shown or "{{" not in NASTY[what]


@pytest.mark.parametrize("what", NASTY_NAMES)
def test_an_error_about_a_nasty_place_is_one_line_that_shows_it(capsys, tmp_path, monkeypatch, what):
    from jobs import cli

    place = tmp_path / NASTY_NAMES[what]
    for arguments in (["status", str(place)], ["report", str(place)], ["plan", str(place)]):
        monkeypatch.setattr("sys.argv", ["actmap", *arguments])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        assert ended.value.code == 2
        assert written.out == ""
        assert written.err.count("\n") == 1
        assert not acting(written.err)


@pytest.mark.parametrize("what", ["links", "markup", "dollars"])
def test_a_notice_in_a_log_is_taken_as_it_is(what):
    stream = io.StringIO()
    Lines(Console(file=stream))(Notice(NASTY[what]))
    assert NASTY[what] in stream.getvalue()
