import io
import time

import pytest
from rich.console import Console

from jobs import progress
from jobs.progress import Lines, shown
from jobs.stages import Stages
from schemas.events import Advanced, Event, Notice, StageFinished, StageStarted


@pytest.fixture
def log():
    return io.StringIO()


def test_a_log_has_a_line_for_a_long_stage_and_for_a_notice_and_none_for_a_short_stage(log):
    listen = Lines(Console(file=log, width=40))
    for event in (
        StageStarted("plan"),
        StageFinished("plan", 0.01),
        StageStarted("extract", 10, 2, "prompts"),
        Advanced("extract", 4),
        StageFinished("extract", 61.5),
        Notice("a sentence that is a good deal longer than the log is wide"),
    ):
        listen(event)
    lines = log.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        "extract took 61.5 s",
        "note: a sentence that is a good deal longer than the log is wide",
    ]


def test_a_log_says_now_and_then_how_far_a_stage_is(log, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    listen = Lines(Console(file=log))
    for event in (StageStarted("extract", 1000, 200, "prompts"), Advanced("extract", 40), Advanced("extract", 60)):
        listen(event)
    assert [line.partition("] ")[2] for line in log.getvalue().splitlines()] == [
        "extract: 240 of 1,000 prompts",
        "extract: 300 of 1,000 prompts",
    ]


def test_a_terminal_has_a_bar_a_stage_with_its_rate_on_one_line(log):
    console = Console(file=log, force_terminal=True, width=80, color_system=None)
    with shown(console) as listen:
        stages = Stages(listen)
        with stages.stage("plan"):
            pass
        with stages.stage("extract", 19, 9, "prompts"):
            for _ in range(10):
                time.sleep(0.001)
                stages.advance("extract", 1)
    lines = log.getvalue().splitlines()
    assert any("check spec, prompts, model" in line for line in lines)
    assert any("run prompts" in line and "19/19" in line and "prompts/s" in line for line in lines)


def test_a_stage_that_fails_is_not_announced_as_finished():
    events: list[Event] = []
    stages = Stages(events.append)
    with pytest.raises(KeyError), stages.stage("fit"):
        raise KeyError
    with stages.stage("save"):
        pass
    assert [type(event) for event in events] == [StageStarted, StageStarted, StageFinished]
    assert list(stages.seconds) == ["save"]
