"""Progress for a person: a bar a stage, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

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
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from schemas.events import Advanced, Event, Listener, Notice, StageFinished, StageStarted

_LABELS = {
    "plan": "plan: check spec, prompts and model",
    "model": "prepare the model",
    "workers": "start workers",
    "extract": "run prompts",
    "fit": "fit maps",
    "save": "write the steer",
    "generate": "generate",
    "report": "write the report",
}


class _Rate(ProgressColumn):
    """Work a second, in the stage's own unit."""

    def render(self, task: Task) -> Text:
        """Returns the rate, or nothing for work that is not counted."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed and task.fields["unit"] else "")


@contextmanager
def shown(console: Console) -> Iterator[Listener]:
    """A context that gives a listener which draws a bar for every stage."""
    bars = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
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
                bars.console.print(f"note: {text}", markup=False, highlight=False)

    with bars:
        yield listen
