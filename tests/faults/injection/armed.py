"""Faults that really happen, in whatever process loads this: at the k-th operation on files, or at a named method.

Nothing of this is in the product. `arm` wraps `os.open`, `os.write` and their like, through which all the work of
`pipeline.storage.local` goes, and methods, which are named ``module:Class.method``. A process started with
`sitecustomize.py` of this folder on its path arms itself from the environment, and so does every worker below it.
"""

import ctypes
import errno
import functools
import importlib
import importlib.abc
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

#: Names the faults, as `written` gives them.
VARIABLE = "INJECTED_FAULTS"

#: What changes a disk: each is a point at which a process can die.
CHANGES = ("create", "write", "fsync", "link", "replace", "unlink", "mkdir", "symlink", "rmdir")

#: What a full disk refuses.
GROWTH = ("create", "write", "fsync", "link", "replace", "mkdir", "symlink")

#: What is added to the factor 1 of embeddings.
_SPOILS = {"nan": float("nan"), "twice": 1.0}

_GROUPS = {"change": CHANGES, "growth": GROWTH}

_REAL = {name: getattr(os, name) for name in ("open", "fdopen", *CHANGES[1:])}


@final
@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        point: An operation (one of `CHANGES`, or ``read``), ``change`` or ``growth`` for any of those, ``forward`` of
            a language model, or a method: ``module:Class.method``.
        does: ``kill``, ``tear`` (half of a write, then ``kill``), ``stop``, ``hang``, ``segfault``, ``exit:CODE``,
            ``signal:NUMBER``, ``sleep:SECONDS``, ``errno:NAME``, ``memory`` (torch is asked for too much),
            ``balloon:BYTES`` (the machine is), ``clock:SECONDS`` (the wall clock jumps), ``set:NAME=VALUE`` (a
            constant of a module), ``count:FILE``; at a ``forward`` also ``nan`` or ``twice`` (embeddings).
        at: At which of the operations that match.
        last: Up to which of them it happens again; None for the first alone, 0 for all that follow.
        when: ``before`` the operation, or ``after`` it.
        match: Expression found in the path, or in the arguments of a method; of ``forward`` the number of a token.
        once: File that is made when the fault happens, so that it happens once in all processes together.
    """

    point: str
    does: str = "kill"
    at: int = 1
    last: int | None = None
    when: str = "before"
    match: str = ""
    once: str = ""
    counted: list[int] = field(default_factory=lambda: [0], compare=False)

    def meets(self, point: str, subject: str) -> bool:
        """Counts an operation, and returns whether the fault happens at it."""
        if point != self.point and point not in _GROUPS.get(self.point, ()):
            return False
        if re.search(self.match, subject) is None:
            return False
        self.counted[0] += 1
        last = self.at if self.last is None else self.last
        return self.at <= self.counted[0] and (last == 0 or self.counted[0] <= last) and self._first()

    def happen(self, data: bytes | None = None, descriptor: int = -1) -> None:
        """Does what it does; may not return."""
        what, _, value = self.does.partition(":")
        if what == "tear":
            _tear(data, descriptor)
        _DEEDS[what](value)

    def _first(self) -> bool:
        if not self.once:
            return True
        try:
            os.close(_REAL["open"](self.once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True


def written(faults: Sequence[Fault]) -> str:
    """Returns faults as the environment carries them."""
    return json.dumps([{name: value for name, value in asdict(one).items() if name != "counted"} for one in faults])


def arm(faults: Sequence[Fault]) -> None:
    """Makes faults happen in this process from now on; once a process."""
    points = {one.point for one in faults}
    if points & {*CHANGES, *_GROUPS, "read"}:
        for name, operation in _operations(faults).items():
            setattr(os, name, operation)
    if "forward" in points:
        _after_import("pipeline.models.causal_lm", lambda module: _wrap_forward(module, faults))
    for point in points:
        if ":" in point:
            module = point.partition(":")[0]
            _after_import(module, functools.partial(_wrap_method, point, faults))


def arm_from_environment() -> None:
    """Arms what the environment names."""
    if VARIABLE in os.environ:
        arm([Fault(**one) for one in json.loads(os.environ[VARIABLE])])


def _around(faults: Sequence[Fault], point: str, subject: str, call: Callable[[], Any], **torn: Any) -> Any:
    met = [one for one in faults if one.meets(point, subject)]
    for one in met:
        if one.when == "before":
            one.happen(**torn)
    result = call()
    for one in met:
        if one.when == "after":
            one.happen()
    return result


def _operations(faults: Sequence[Fault]) -> dict[str, Callable[..., Any]]:
    """Returns what stands in for functions of `os`."""

    def named(point: str, place: int) -> Callable[..., Any]:
        real = _REAL[point]

        def stand_in(*args: Any, **settings: Any) -> Any:
            subject = _path(args[place], settings.get("dir_fd"))
            return _around(faults, point, subject, lambda: real(*args, **settings))

        return stand_in

    def opened(path: Any, flags: int, *args: Any, **settings: Any) -> Any:
        def call() -> Any:
            return _REAL["open"](path, flags, *args, **settings)

        return _around(faults, "create", _path(path, None), call) if flags & os.O_CREAT else call()

    def wrote(descriptor: int, data: bytes) -> Any:
        torn = {"data": bytes(data), "descriptor": descriptor}
        return _around(faults, "write", _place(descriptor), lambda: _REAL["write"](descriptor, data), **torn)

    def flushed(descriptor: Any) -> Any:
        return _around(faults, "fsync", _place(descriptor), lambda: _REAL["fsync"](descriptor))

    def reading(descriptor: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
        file = _REAL["fdopen"](descriptor, mode, *args, **settings)
        read = mode == "rb" and any(one.point == "read" for one in faults)
        return _Reading(file, faults, _place(descriptor)) if read else file

    places = {"link": 1, "replace": 1, "unlink": 0, "mkdir": 0, "symlink": 1, "rmdir": 0}
    whole = {name: named(name, place) for name, place in places.items()}
    return {**whole, "open": opened, "write": wrote, "fsync": flushed, "fdopen": reading}


@final
class _Reading:
    """A file whose reads can fail."""

    def __init__(self, file: Any, faults: Sequence[Fault], path: str) -> None:
        self._file, self._faults, self._path = file, faults, path

    def read(self, *args: Any) -> Any:
        return _around(self._faults, "read", self._path, lambda: self._file.read(*args))

    def readinto(self, buffer: Any) -> Any:
        return _around(self._faults, "read", self._path, lambda: self._file.readinto(buffer))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Reading":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _tear(data: bytes | None, descriptor: int) -> None:
    _REAL["write"](descriptor, (data or b"")[: len(data or b"") // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def _kill(value: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(value: str) -> None:
    while True:
        time.sleep(1)


def _fail(value: str) -> None:
    number = getattr(errno, value)
    raise OSError(number, os.strerror(number))


def _ask_for_too_much(value: str) -> None:
    torch = sys.modules["torch"]
    torch.empty(1 << 60, dtype=torch.uint8)


def _hoard(value: str) -> None:
    """Takes memory, page by page, and keeps it."""
    hoard = bytearray(int(value))
    for place in range(0, len(hoard), 4096):
        hoard[place] = 1
    time.sleep(600)


def _set(value: str) -> None:
    name, _, new = value.partition("=")
    module, _, name = name.rpartition(".")
    setattr(sys.modules[module], name, json.loads(new))


def _set_clock(value: str) -> None:
    """Has the wall clock of this process jump; the monotonic one goes on."""
    real, shift = time.time, float(value)
    setattr(time, "time", lambda: real() + shift)  # noqa: B010 - mypy takes no assignment to a function


def _count(path: str) -> None:
    with open(path, "ab") as file:  # appending one byte is whole
        file.write(b".")


_DEEDS: dict[str, Callable[[str], object]] = {
    "kill": _kill,
    "stop": lambda value: os.kill(os.getpid(), signal.SIGSTOP),
    "signal": lambda value: os.kill(os.getpid(), int(value)),
    "exit": lambda value: os._exit(int(value)),
    "segfault": lambda value: ctypes.string_at(0),
    "hang": _hang,
    "sleep": lambda value: time.sleep(float(value)),
    "errno": _fail,
    "memory": _ask_for_too_much,
    "balloon": _hoard,
    "clock": _set_clock,
    "set": _set,
    "count": _count,
}


def _path(path: Any, folder: int | None) -> str:
    return os.path.join(os.getcwd() if folder is None else _place(folder), os.fspath(path))


def _place(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _wrap_method(point: str, faults: Sequence[Fault], module: Any) -> None:
    *parents, name = point.partition(":")[2].split(".")
    owner = module
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, name)

    @functools.wraps(real)  # Ray checks the calls of actors against their signatures
    def stand_in(*args: Any, **settings: Any) -> Any:
        return _around(faults, point, repr(args[1:] if parents else args), lambda: real(*args, **settings))

    setattr(owner, name, stand_in)


def _wrap_forward(module: Any, faults: Sequence[Fault]) -> None:
    """Looks at the tokens of each micro-batch; ``match`` is the number of a token, the empty one any."""
    owner = module.CausalLMModel
    real = owner.forward

    def forward(self: Any, batch: Any) -> Any:
        tokens = batch.inputs["input_ids"]
        present = " ".join(f"<{number}>" for number in sorted(set(tokens.flatten().tolist())))
        met = [one for one in faults if one.meets("forward", present)]
        for one in met:
            if one.does not in _SPOILS:
                one.happen()
        spoilt = [_spoil(self, tokens, one) for one in met if one.does in _SPOILS]
        try:
            return real(self, batch)
        finally:
            for handle in spoilt:
                handle.remove()

    owner.forward = forward


def _spoil(model: Any, tokens: Any, fault: Fault) -> Any:
    """Makes the embeddings of rows that have the token NaN, or twice as large; of all rows if none is named."""
    rows = (tokens == int(fault.match.strip("<>") or -1)).any(dim=1) | (not fault.match)

    def hook(module: Any, args: Any, output: Any) -> Any:
        return output.where(~rows[:, None, None], output * (1 + _SPOILS[fault.does]))

    return model.root.get_input_embeddings().register_forward_hook(hook)


def _after_import(module: str, do: Callable[[Any], None]) -> None:
    if module in sys.modules:
        do(sys.modules[module])
    else:
        sys.meta_path.insert(0, _Finder(module, do))


@final
class _Finder(importlib.abc.MetaPathFinder):
    """Does something to a module right after it was loaded."""

    def __init__(self, module: str, do: Callable[[Any], None]) -> None:
        self._module, self._do, self._looking = module, do, False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self._module or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        execute: Callable[[Any], None] = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self._do(module)

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010 - mypy takes no assignment to a method
        return spec
