"""Which tensors a suspended forward keeps alive: every storage that its operations made and that has not died."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final
from weakref import ref

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _push_mode,
    is_traceable_wrapper_subclass,
)

from act.capture import hooked
from act.clock import AbstractClock, StillClock
from act.errors import LockstepStateError
from act.hookpoint import Hookpoint
from schemas.plan import Site

#: After so many operations dead references are forgotten. Each pins a piece of the heap: kept for longer, they cost
#: thousands of page faults a forward.
_FORGET = 64


@final
class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps a weak reference to every storage that operations of a passage make.

    A storage is made by an operation that returns it and was not given it. Schemas do not tell: in inference mode
    ``contiguous`` promises a view and may return a copy, ``dropout`` promises a copy and returns what it was given.
    So parameters, buffers and inputs, which were there before, are never in it, nor are their views. Neither are
    tensors without a storage of their own, such as sparse ones, nor what tensor subclasses wrap.

    Args:
        emptied: Storages that hold no bytes for now, by identity.
        refill: Gives one of them its bytes back, before an operation is given it.
    """

    #: Operators that call functions, such as ``cond``, are operations like others.
    supports_higher_order_operators = True

    def __init__(
        self, emptied: Mapping[int, object] | None = None, refill: Callable[[int], None] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._emptied, self._refill = {} if emptied is None else emptied, refill
        self._made: dict[int, dict[int, StorageWeakRef]] = {}
        self._running: dict[int, StorageWeakRef] = {}
        self._num_operations = 0
        self._passage, self._begun = 0, True
        self._runners = dict[int, ref[greenlet]]()

    def ended(self, number: int) -> bool:
        """Returns whether a passage's forward has ended: the last one whose operations belonged to it."""
        runner = self._runners.get(number)
        forward = None if runner is None else runner()
        return runner is not None and (forward is None or forward.dead)

    @contextmanager
    def following(self, number: int) -> Iterator[None]:
        """A context in which operations belong to a passage.

        Raises:
            LockstepStateError: The passage stopped inside an operation that calls modules. Two forwards that leave
                such operations in another order than they entered them end the process.
        """
        self._running, self._passage = self._made.setdefault(number, {}), number
        self._begun = False
        self.__enter__()  # type: ignore[no-untyped-call]
        inside = False
        try:
            yield
        finally:
            # Torch puts a mode aside while it runs an operation for it.
            inside = all(mode is not self for mode in _get_current_dispatch_mode_stack())
            if inside:
                _push_mode(self)
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if inside:
            raise LockstepStateError("one that stops inside an operation; leave what that calls out of the hookpoints")

    def alive(self, number: int) -> list[tuple[StorageWeakRef, torch.UntypedStorage]]:
        """Returns the storages that a passage made and that live, oldest first, each with a reference to it."""
        found = []
        for reference in _forget_dead(self._made.get(number, {})).values():
            storage = storage_of(reference)
            if storage is not None:
                found.append((reference, storage))
        return found

    def live(self, number: int) -> int:
        """Returns how many bytes they hold."""
        return sum(storage.nbytes() for _, storage in self.alive(number))

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Runs one operation and notes what it made."""
        given = {key(storage) for storage in _storages((args, kwargs))}
        if self._refill is not None:
            for needed in given & self._emptied.keys():
                self._refill(needed)
        if not self._begun:
            self._begun, self._runners[self._passage] = True, ref(getcurrent())
        output = func(*args, **(kwargs or {}))
        for storage in _storages((output,)):
            made = key(storage)
            if made not in given and made not in self._running:
                self._running[made] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._num_operations += 1
        if self._num_operations % _FORGET == 0:
            _forget_dead(self._running)
        return output


def live_bytes(
    modules: Mapping[str, nn.Module],
    sites: Sequence[Site],
    forward: Callable[[], object],
    clock: AbstractClock | None = None,
) -> list[int]:
    """Returns how many bytes a forward would keep alive at each site if it stopped there, besides weights and inputs.

    It runs once and does not stop. On fake tensors it takes no memory; enter the fake mode around the call, not
    inside the forward.

    Args:
        modules: The model's modules by name.
        sites: The sites.
        forward: Runs the model once.
        clock: The model's clock.

    Returns:
        For each site the bytes at its first visit; 0 for one that is not visited.
    """
    clock, ledger = clock or StillClock(), Ledger()
    numbers = {Hookpoint.parse(site.hookpoint): number for number, site in enumerate(sites)}
    found: dict[int, int] = {}

    def look(hookpoint: Hookpoint, module: nn.Module, output: Any) -> None:  # noqa: ANN401
        rows = clock.rows(len(hookpoint.of(output)))
        number = numbers.get(Hookpoint(hookpoint.module, hookpoint.output, clock.step))
        if number is not None and rows.stop > rows.start and number not in found:
            found[number] = ledger.live(0)

    places = dict.fromkeys(site.place for site in numbers)
    with clock.following(), hooked(modules, list(places), look), ledger.following(0):
        forward()
    return [found.get(number, 0) for number in range(len(sites))]


def key(storage: torch.UntypedStorage) -> int:
    """Returns the identity of a storage: no other has it while this one, or a weak reference to it, is there."""
    return int(storage._cdata)  # it has no public name


def storage_of(reference: StorageWeakRef) -> torch.UntypedStorage | None:
    """Returns the storage that is referred to, or None if it is dead."""
    found: object = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return found if isinstance(found, torch.UntypedStorage) else None


def has_storage(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor's values lie in a storage of its own: not so of sparse ones and of those that wrap."""
    kind = type(tensor)
    plain = kind is torch.Tensor or kind is nn.Parameter or not is_traceable_wrapper_subclass(tensor)
    return plain and tensor.layout is torch.strided


def _forget_dead(references: dict[int, StorageWeakRef]) -> dict[int, StorageWeakRef]:
    for number in [number for number, reference in references.items() if reference.expired()]:  # type: ignore[no-untyped-call]
        del references[number]
    return references


def _storages(values: Iterable[Any]) -> list[torch.UntypedStorage]:
    """Returns the storages of all tensors in the arguments or results of an operation, however nested."""
    found: list[torch.UntypedStorage] = []
    waiting = [values]
    while waiting:
        for value in waiting.pop():
            if isinstance(value, torch.Tensor):
                if has_storage(value):
                    found.append(value.untyped_storage())
            elif isinstance(value, list | tuple):
                waiting.append(value)
            elif isinstance(value, dict):
                waiting.append(value.values())
    return found
