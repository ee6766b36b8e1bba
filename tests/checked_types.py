"""The type checker that `conftest` installs in the project's packages."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import (
    BeartypeDecorHintPep604Exception,
    BeartypeDecorHintPep673Exception,
    BeartypeDecorHintPep3119Exception,
)

# `float` takes an int, as it does for mypy and in PEP 484.
CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """Returns the function with its arguments and result checked at each call.

    A function that mentions `Self`, a protocol, or a union with a NumPy scalar is returned as it is: the first is
    known only to the class around it, the second answers to no `isinstance`, the third has a name that beartype
    refuses. mypy judges all three.
    """
    try:
        return CHECK(function)
    except (
        BeartypeDecorHintPep604Exception,
        BeartypeDecorHintPep673Exception,
        BeartypeDecorHintPep3119Exception,
    ):
        return function
