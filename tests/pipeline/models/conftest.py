from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.pipelines import tiny_flux, tiny_sdxl


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sdxl": tiny_sdxl(root / "sdxl"),
        "flux": tiny_flux(root / "flux"),
        "flux-dev": tiny_flux(root / "flux-dev", guidance_embeds=True),
    }
