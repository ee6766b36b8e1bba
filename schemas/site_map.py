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
        treated: What names how the source's units were treated: which prompts did not count, and what ran in pieces.
        site: Number of the site.
        tensors: The numbers of the map, as safetensors.
        frames: The frames in which the site's samples were counted, by law, as safetensors.
    """

    plan: str
    treated: str
    site: int
    tensors: bytes
    frames: Mapping[str, bytes]
