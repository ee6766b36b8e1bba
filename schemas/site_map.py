"""The map of one site of a sequential fit, as it is written down when it is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class SiteMap:
    """What a fit that goes on needs of a site that is behind it.

    Args:
        plan: Fingerprint of the plan.
        masked: What names the prompts of the source that did not count: with others the map is another.
        site: Number of the site.
        tensors: The numbers of the map, as safetensors.
        frames: The frames in which the site's samples were counted, by law, as safetensors.
    """

    plan: str
    masked: str
    site: int
    tensors: bytes
    frames: Mapping[str, bytes]
