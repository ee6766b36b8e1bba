"""Weights that come to their device for a call only, as accelerate's hooks bring them.

A forward that leaves a module sends its weights away; another that still stands inside needs them when it goes on.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, final

from torch import nn


@final
class Offloaded:
    """The modules of a model whose weights are elsewhere between calls. None of accelerate is imported.

    Args:
        modules: The model's modules by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules: dict[str, Any] = {name: module for name, module in modules.items() if _offloads(module)}
        self._around = cache(self._find_around)

    def bring(self, site: str) -> None:
        """Brings what a forward needs that goes on behind a module.

        That is the weights of the modules that it stands in, and of the module's siblings, which the one around them
        may use without calling them.
        """
        for module in self._around(site):
            module._hf_hook.pre_forward(module)

    def send_away(self) -> None:
        """Sends away what forwards left that were ended on their way."""
        for module in self._modules.values():
            if any(weight.device.type != "meta" for weight in module.parameters(recurse=False)):
                module._hf_hook.post_forward(module, None)

    def _find_around(self, site: str) -> tuple[Any, ...]:
        parts = site.split(".")
        parent = ".".join(parts[:-1])
        names = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        names += [name for name in self._modules if name.rpartition(".")[0] == parent and name != site]
        return tuple(self._modules[name] for name in names if name in self._modules)


def _offloads(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))
