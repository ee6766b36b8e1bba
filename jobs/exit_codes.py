"""Exit codes of the command line, the same for every command."""

from enum import IntEnum

from jobs.errors import JobError

_STOPPED = "stopped; run the same command again to go on from what is done"


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    REFUSED = 2
    TOO_MANY_LOST = 65
    OUR_BUG = 70
    STORAGE_FAILED = 74
    STOPPED = 75


def exit_code(error: BaseException) -> ExitCode:
    """Returns the exit code that an error stands for."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.STOPPED
    # Imported once something failed: `act` takes torch with it, and the help needs neither.
    from act.errors import ActError, SpillError
    from pipeline.errors import InputError, LossError, ResumableError, StorageError
    from schemas.document import SpecError

    match error:
        case SpillError():
            return ExitCode.STORAGE_FAILED
        case JobError() | SpecError() | InputError() | ActError():
            return ExitCode.REFUSED
        case LossError():
            return ExitCode.TOO_MANY_LOST
        case ResumableError():
            return ExitCode.STOPPED
        case StorageError() | OSError():
            return ExitCode.STORAGE_FAILED
        case _:
            return ExitCode.OUR_BUG


def sentence(error: BaseException) -> str:
    """Returns one sentence for a person."""
    if isinstance(error, KeyboardInterrupt):
        return _STOPPED
    from act.errors import ActError
    from pipeline.errors import StorageError

    code = exit_code(error)
    if code is ExitCode.OUR_BUG:
        return f"a bug in actmap, please report it: {type(error).__name__}: {error}; --debug shows where"
    if (
        isinstance(error, OSError)
        and code is ExitCode.STORAGE_FAILED
        and not isinstance(error, StorageError | ActError)
    ):
        place, problem = error.filename or "the output", error.strerror or error
        return f"{place} cannot be used: {problem}; mend that and run the same command again"
    return str(error)
