"""What torch keeps per thread, so that several forwards can take turns in one.

Greenlets share their thread, and with it grad mode, inference mode, autocast, the stacks of function and dispatch
modes, and the device and stream of an accelerator. A forward that is left in the middle of a ``with torch.no_grad():``
would leave grad off for whoever comes next.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import overrides
from torch.utils import _python_dispatch as dispatch

from act.errors import LockstepStateError

#: What says, and sets, whether a kernel of attention may be used.
_KERNELS: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


@final
@dataclass(frozen=True, eq=False)
class ThreadState:
    """What torch keeps of a forward per thread, besides what it was entered with.

    Args:
        grad: Whether operations are recorded.
        inference: Whether inference mode is on.
        autocast: For each device type whether autocast is on, and its dtype.
        autocast_cache: Whether autocast keeps the weights that it has cast.
        kernels: Which kernels of attention may be used: flash, memory-efficient, plain, cuDNN; the whole process's.
        function_modes: Function modes that the forward entered and has not left, outermost first.
        dispatch_modes: The same of dispatch modes.
        stream: Current stream of the accelerator, and with it the current device; None if it was never used.
    """

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool
    kernels: tuple[bool, ...]
    function_modes: tuple[Any, ...]
    dispatch_modes: tuple[Any, ...]
    stream: Any

    @classmethod
    def here(cls) -> "ThreadState":
        """Returns the state of a forward that begins here: that of its caller, with no modes of its own."""
        return cls(
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=tuple(
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _device_types()
            ),
            autocast_cache=torch.is_autocast_cache_enabled(),
            kernels=tuple(bool(enabled()) for enabled, _ in _KERNELS),
            function_modes=(),
            dispatch_modes=(),
            stream=torch.cuda.current_stream() if _has_stream() else None,
        )

    @contextmanager
    def entered(self) -> Iterator["Turn"]:
        """A context in which this state holds; after it that from before does again, whatever happened inside."""
        before = ThreadState.here()
        with ExitStack() as stack:
            stack.callback(before._restore)
            if self.stream is not None:
                stack.callback(torch.cuda.set_stream, before.stream)
                torch.cuda.set_stream(self.stream)
            # Inference mode first: it turns grad off.
            stack.enter_context(torch.inference_mode(self.inference))
            stack.callback(torch.set_grad_enabled, before.grad)
            torch.set_grad_enabled(self.grad)
            self._restore()
            turn = Turn(len(_function_modes()), len(_dispatch_modes()), _transforms())
            stack.callback(turn.leave)
            for mode in self.function_modes:
                overrides._push_mode(mode)  # type: ignore[no-untyped-call]
            for mode in self.dispatch_modes:
                dispatch._push_mode(mode)
            yield turn

    def _restore(self) -> None:
        for kind, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self.autocast_cache)
        for enabled, (_, enable) in zip(self.kernels, _KERNELS, strict=True):
            enable(enabled)


@final
class Turn:
    """One turn of a forward: how deep the stacks of modes were when it began.

    Args:
        num_function_modes: Function modes of whoever gave the turn.
        num_dispatch_modes: Dispatch modes of whoever gave the turn.
        num_transforms: How many transforms, such as ``vmap``, were running.
    """

    def __init__(self, num_function_modes: int, num_dispatch_modes: int, num_transforms: int) -> None:
        self._num_function_modes, self._num_dispatch_modes = num_function_modes, num_dispatch_modes
        self._num_transforms = num_transforms

    def check(self) -> None:
        """Checks that no transform began in this turn.

        Raises:
            LockstepStateError: One did; its levels cannot be left and entered again.
        """
        if _transforms() != self._num_transforms:
            raise LockstepStateError("a transform such as vmap or grad")

    def state(self) -> ThreadState:
        """Returns the state in which the forward stands, to be entered at its next turn."""
        here = ThreadState.here()
        return ThreadState(
            here.grad,
            here.inference,
            here.autocast,
            here.autocast_cache,
            here.kernels,
            tuple(_function_modes()[self._num_function_modes :]),
            tuple(_dispatch_modes()[self._num_dispatch_modes :]),
            here.stream,
        )

    def leave(self) -> None:
        """Takes the forward's modes off the stacks."""
        for _ in range(len(_function_modes()) - self._num_function_modes):
            overrides._pop_mode()  # type: ignore[no-untyped-call]
        for _ in range(len(_dispatch_modes()) - self._num_dispatch_modes):
            dispatch._pop_mode()


def _function_modes() -> list[Any]:
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _dispatch_modes() -> list[Any]:
    return dispatch._get_current_dispatch_mode_stack()


def _transforms() -> int:
    return int(torch._C._functorch.maybe_current_level() or 0)


def _device_types() -> tuple[str, ...]:
    return ("cpu", "cuda") if _has_stream() else ("cpu",)


def _has_stream() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
