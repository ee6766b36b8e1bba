"""The watch: time, and which place is past its deadline."""

from typing import final

from pipeline.errors import WorkerLostError
from pipeline.scheduling.crew import AbstractCrew, Event
from pipeline.scheduling.pace import Pace, Policy
from pipeline.scheduling.roster import Place, Roster

FOREVER = float("inf")


@final
class Watch:
    """Watches the places of a crew.

    Time counts only while the crew is waited for: a driver that was busy, or stopped, did not watch its workers.

    Args:
        crew: The crew.
        roster: Its places.
        pace: What units take.
        policy: How patient to be.
    """

    def __init__(self, crew: AbstractCrew, roster: Roster, pace: Pace, policy: Policy) -> None:
        self._crew, self._roster, self._pace, self._policy = crew, roster, pace, policy
        self.time = 0.0
        self._ready_at = 0.0
        self._alarm = FOREVER  # no place is past its deadline before that; so that few turns look at all of them

    def wait(self, until: float) -> list[Event]:
        """Waits until something happens, a deadline passes, or for the time given."""
        until = min(until, self._alarm)
        if not self._roster.num_ready:
            until = min(until, self._ready_at + self._policy.start_deadline)
        before, patience = self._crew.now(), max(0.0, until - self.time)
        events = self._crew.wait(patience)
        self.time += min(self._crew.now() - before, patience)
        if self._roster.num_ready:
            self._ready_at = self.time
        return events

    def started(self, place: Place) -> None:
        """A place loads its model from now on."""
        place.allowed = self._policy.start_deadline
        self._set_due(place, self.time)

    def began(self, place: Place) -> None:
        """The first entry of a place's queue runs from now on, if there is one."""
        if place.queue:
            place.queue[0].since, place.queue[0].begun = self.time, True
            self._allow(place)
        else:
            place.due = FOREVER

    def pace_is_known(self) -> None:
        """Sets the deadlines of all that runs, of which nothing could be told before."""
        for place in self._roster:
            if place.queue:
                self._allow(place)

    def overdue(self) -> list[Place]:
        """Returns the places whose task or start has taken too long.

        Raises:
            WorkerLostError: For as long as a start may take, no worker was ready.
        """
        if not self._roster.num_ready and self.time - self._ready_at >= self._policy.start_deadline:
            raise WorkerLostError("the run", 1, f"no worker was ready for {self._policy.start_deadline:g} s")
        if self.time < self._alarm:
            return []
        late = [place for place in self._roster if place.due <= self.time]
        self._alarm = min((place.due for place in self._roster if place.due > self.time), default=FOREVER)
        return late

    def _allow(self, place: Place) -> None:
        entry = place.queue[0]
        place.allowed = self._pace.deadline(entry.case.unit, entry.case.patience)
        self._set_due(place, entry.since)

    def _set_due(self, place: Place, since: float) -> None:
        place.due = since + place.allowed
        self._alarm = min(self._alarm, place.due)
