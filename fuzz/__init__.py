"""Coverage-guided fuzzing of whatever reads bytes that others may have written, a file a target.

A target has ``seeds()``, inputs that are accepted, and ``check(data)``, which raises if anything but our own error
comes out, or if what was accepted is not the same after it was written and read again.
"""

TARGETS = ("spec", "records", "card", "steer", "prompts", "checkpoint")
