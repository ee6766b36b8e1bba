"""Many forwards that go through a model together, each suspended inside its hook while a site's map is fitted."""

try:
    import greenlet  # noqa: F401
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError("a sequential fit needs greenlet, which is not installed; pip install greenlet") from exc

from act.lockstep.hub import Lockstep, Passage

__all__ = ["Lockstep", "Passage"]
