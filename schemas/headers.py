"""The header of a safetensors file, measured before anything parses it.

The format lets a header have 100 MB, which may be spaces, or a million tensors that take ten seconds and a gigabyte.
"""

import struct
from typing import final

#: What a header may have beside the names of its tensors, and for each of them.
BASE_BYTES, TENSOR_BYTES = 1 << 20, 1 << 10

#: Bytes at the start of a file that say how long its header is.
LENGTH_BYTES = 8


@final
class HeaderError(ValueError):
    """The header of a safetensors file claims more bytes than it may have.

    Args:
        found: The bytes that it claims.
        most: The bytes that it may have.
    """

    def __init__(self, found: int, most: int) -> None:
        super().__init__(found, most)
        self.found, self.most = found, most

    def __str__(self) -> str:
        return f"its header claims {self.found} bytes, more than the {self.most} that it may have"


def header_limit(num_tensors: int) -> int:
    """Returns how many bytes the header of a file with so many tensors may have."""
    return BASE_BYTES + TENSOR_BYTES * num_tensors


def check_header(start: bytes, most: int) -> None:
    """Checks what the start of a file claims. One too short to claim anything is left to the parser.

    Args:
        start: The first `LENGTH_BYTES` bytes of the file, or more.
        most: The bytes that the header may have.

    Raises:
        HeaderError: It claims more.
    """
    if len(start) >= LENGTH_BYTES:
        (claimed,) = struct.unpack_from("<Q", start)
        if claimed > most:
            raise HeaderError(claimed, most)
