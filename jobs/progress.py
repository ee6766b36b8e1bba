"""Progress for a person, on standard error: a bar a stage on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from jobs.text import visible
from schemas.events import Advanced, Event, Listener, Notice, StageFinished, StageStarted

_LABELS = {
    "plan": "check spec, prompts, model",
    "model": "prepare the model",
    "workers": "start workers",
    "repair": "look for damage and mend it",
    "reuse": "take units from other runs",
    "frames": "choose frames",
    "extract": "run prompts",
    "reduce": "merge sketches",
    "fit": "fit maps",
    "save": "write the steer",
}


#: Seconds between two lines of a log, and the least that a stage takes to be worth one.
_EVERY, _WORTH = 30.0, 1.0


class _Rate(ProgressColumn):
    """Work a second, in the stage's own unit."""

    def render(self, task: Task) -> Text:
        """Returns the rate, or nothing for work that is not counted."""
        speed = task.finished_speed or task.speed
        digits = 0 if speed and speed >= 100 else 1
        return Text(f"{speed:,.{digits}f} {task.fields['unit']}/s" if speed and task.fields["unit"] else "")


@contextmanager
def shown(console: Console) -> Iterator[Listener]:
    """A context that gives a listener which draws a bar for every stage."""
    bars = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        _Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    tasks: dict[str, TaskID] = {}

    def listen(event: Event) -> None:
        match event:
            case StageStarted(stage, total, done, unit):
                label = _LABELS.get(stage, stage)
                tasks[stage] = bars.add_task(label, total=total or None, completed=done, unit=unit)
            case Advanced(stage, amount):
                bars.advance(tasks[stage], amount)
            case StageFinished(stage, _):
                task = bars.tasks[bars.task_ids.index(tasks[stage])]
                if task.total is None:
                    bars.update(tasks[stage], total=1, completed=1)
                bars.stop_task(tasks[stage])
            case Notice(text):
                bars.console.print(f"note: {visible(text)}", markup=False, highlight=False, emoji=False)

    with bars:
        yield listen


@final
class Lines:
    """A listener for logs, where a bar would be noise: a line when a stage ends, and now and then while it works.

    Args:
        console: Where the lines go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = self._said = time.monotonic()
        self._stage, self._done = StageStarted(""), 0

    def __call__(self, event: Event) -> None:
        """Prints what an event is worth."""
        match event:
            case StageStarted():
                self._stage, self._done = event, event.done
            case Advanced(stage, amount):
                self._done += amount
                if time.monotonic() - self._said >= _EVERY:
                    self._say(f"{stage}: {self._done:,} of {self._stage.total:,} {self._stage.unit}")
            case StageFinished(stage, seconds) if seconds >= _WORTH:
                self._say(f"{stage} took {seconds:.1f} s")
            case Notice(text):
                self._say(f"note: {text}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        line = f"[{self._said - self._begin:8.1f} s] {visible(text)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)
