"""Where converted checkpoints are kept between runs."""

import os
from pathlib import Path


def default_cache() -> Path:
    """Returns the folder that ``ACTMAP_CACHE`` names, or ``actmap`` under the user's cache folder."""
    if named := os.environ.get("ACTMAP_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actmap"
