"""The type checker that `conftest` installs in the project's packages."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception

# `float` takes an int, as it does for mypy and in PEP 484.
CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """Returns the function with its arguments and result checked at each call.

    A function that mentions `Self` or a protocol is returned as it is: the one is known only to the class around
    it, the other answers to no `isinstance`. mypy judges both.
    """
    try:
        return CHECK(function)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):
        return function
