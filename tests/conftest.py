"""Settings of the test run: no hub, checked types, repeatable Hypothesis."""

import os

# Read once by the libraries at import, so set before any of them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.checked_types import checked

# Every annotated function and dataclass of these packages checks its arguments under pytest, and only there.
CHECKED_TYPES = install_import_hook(["schemas", "act", "pipeline"], f"{checked.__module__}.{checked.__name__}")

# Tests are many small operations, after each of which two threads would wait for each other.
torch.set_num_threads(1)

settings.register_profile("actmap", max_examples=50, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("actmap")
