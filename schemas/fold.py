"""Folds: the sketches of some units, merged. What a law is made of once units need not be looked at again."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from schemas.plan import LawName
from schemas.receipt import Output

_BITS = 63


@final
@dataclass(frozen=True)
class Fold:
    """The merged sketches of some units for neighbouring sites.

    Args:
        key: What names the law, see `Plan.side_key`.
        law: The law that they belong to.
        first: Place in the plan's sites of the first site.
        stop: One past the place of the last.
        units: Which units are merged: bit ``i % 8`` of byte ``i // 8`` is that of unit ``i``.
        contents: `content` of the units' sketches, summed modulo 2^63: it is of the very files that receipts speak of.
        num_samples: Samples of a neuron.
        output: The file.
    """

    key: str
    law: LawName
    first: int
    stop: int
    units: bytes
    contents: int
    num_samples: int
    output: Output

    @property
    def num_units(self) -> int:
        """How many units are merged."""
        return int.from_bytes(self.units, "little").bit_count()

    def covers(self, site: int) -> bool:
        """Returns whether it has a site."""
        return self.first <= site < self.stop


@final
@dataclass(frozen=True)
class UnitSet:
    """Which units, with which sketches. Grows by `with_unit`; its size is a bit a unit.

    Args:
        units: Bits, as an integer.
        total: Sum of `content` modulo 2^63.
    """

    units: int = 0
    total: int = 0

    def __contains__(self, unit: int) -> bool:
        return bool(self.units >> unit & 1)

    def with_unit(self, unit: int, output: Output) -> "UnitSet":
        """Returns this with a unit that it has not."""
        assert unit not in self, "a unit counts once"
        return UnitSet(self.units | 1 << unit, (self.total + content(unit, output)) % (1 << _BITS))

    def is_of(self, contents: Mapping[int, int]) -> bool:
        """Returns whether it is made of sketches with these contents, given by unit, perhaps of more units."""
        there = [contents[unit] for unit in self if unit in contents]
        return len(there) == self.num_units and sum(there) % (1 << _BITS) == self.total

    def __iter__(self) -> Iterator[int]:
        """Yields the units, in order."""
        return (unit for unit, bit in enumerate(reversed(f"{self.units:b}")) if bit == "1")

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return self.units.bit_count()

    @property
    def bitmap(self) -> bytes:
        """The units as a fold has them."""
        return self.units.to_bytes(-(-self.units.bit_length() // 8), "little")

    @classmethod
    def of(cls, fold: Fold) -> "UnitSet":
        """Returns what a fold says of itself."""
        return cls(int.from_bytes(fold.units, "little"), fold.contents)


def content(unit: int, output: Output) -> int:
    """Returns a number for a unit's sketch; sums of them differ where files differ. Below 2^63."""
    said = f"{output.kind} {unit} {output.size} {output.sha256}".encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "little") >> 1
