"""What forwards change in the modules of a model, and so in each other's way."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn

from act.errors import LockstepStateError

#: What a module keeps for torch itself, or about how it is called.
_OWN = frozenset({"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})


@final
class ModuleState:
    """The tensors and numbers that the modules of a model keep, as they were when this was made.

    Args:
        modules: The model's modules by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._before = {name: (value, _version(value)) for name, value in self._values()}

    def replaced(self) -> list[str]:
        """Returns the attributes that are another object or number now, or came or went.

        Each is named as in ``model.rotary_emb.inv_freq``.
        """
        now, gone = dict(self._values()), object()
        names = sorted({*self._before, *now})
        return [name for name in names if _other(self._before.get(name, (gone, 0))[0], now.get(name, gone))]

    def written(self) -> list[str]:
        """Returns the tensors that are the same object and were written to."""
        now = dict(self._values())
        return sorted(
            name
            for name, (value, version) in self._before.items()
            if now.get(name) is value and _version(value) != version
        )

    def check_unwritten(self) -> None:
        """Checks that no forward wrote into a tensor: what it held before is gone.

        Raises:
            LockstepStateError: One did.
        """
        for name in self.written():
            raise LockstepStateError(f"that its forward writes into {name}; leave the model to a simultaneous fit")

    def restore(self, names: Sequence[str]) -> None:
        """Puts back what some attributes were, and takes away those that were not there."""
        _put(self._modules, {name: self._before[name][0] if name in self._before else _ABSENT for name in names})

    def _values(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._modules.items():
            for kept in (module._parameters, module._buffers):
                for attribute, value in kept.items():
                    yield f"{name}.{attribute}", value
            for attribute, value in vars(module).items():
                if attribute not in _OWN and isinstance(value, torch.Tensor | int | float | str | None):
                    yield f"{name}.{attribute}", value


@contextmanager
def unchanged(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """A context in which forwards may change nothing of a model.

    Raises:
        LockstepStateError: One did; named after it.
    """
    state = ModuleState(modules)
    yield
    state.check_unwritten()
    for name in state.replaced():
        raise LockstepStateError(f"that its forward changes {name}; leave the model to a simultaneous fit")


@final
class Isolation:
    """Gives each passage its own value of what forwards replace in the modules, as if the model were its own.

    Each begins with what is there when this is made; after each turn that is there again.

    Args:
        modules: The model's modules by name.
        names: What is replaced, as `ModuleState.replaced` names it.
    """

    def __init__(self, modules: Mapping[str, nn.Module], names: Sequence[str]) -> None:
        self._modules, self._names = modules, tuple(names)
        self._before = self._now()
        self._of: dict[int, dict[str, Any]] = {}

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """A context for one turn of a passage: the model has what the passage left there."""
        _put(self._modules, self._of.get(number, self._before))
        try:
            yield
        finally:
            self._of[number] = self._now()
            _put(self._modules, self._before)

    def _now(self) -> dict[str, Any]:
        found = {}
        for name in self._names:
            module, _, attribute = name.rpartition(".")
            found[name] = getattr(self._modules[module], attribute, _ABSENT)
        return found


_ABSENT = object()


def _put(modules: Mapping[str, nn.Module], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        module, _, attribute = name.rpartition(".")
        if value is not _ABSENT:
            setattr(modules[module], attribute, value)
        elif hasattr(modules[module], attribute):
            delattr(modules[module], attribute)


def _version(value: Any) -> int:  # noqa: ANN401
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


def _other(before: Any, now: Any) -> bool:  # noqa: ANN401
    if before is now:
        return False
    plain = not isinstance(before, torch.Tensor) and not isinstance(now, torch.Tensor)
    return not (plain and type(before) is type(now) and bool(before == now))
