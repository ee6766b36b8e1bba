"""How many bytes of tensors a forward keeps alive at once, counted while it runs, on real or on fake tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@final
class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations make, while they live; what was made before does not count.

    Attributes:
        peak: Most bytes alive at once so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Runs one operation and counts what it made."""
        output = func(*args, **(kwargs or {}))
        old = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and _key(leaf) not in old]
        if made:
            self._live = {key: pair for key, pair in self._live.items() if not _expired(pair[0])}
            for tensor in made:
                storage = tensor.untyped_storage()
                self._live[_key(tensor)] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
            self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return output


def _expired(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # the identity of a storage has no public name
