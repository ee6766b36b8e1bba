"""The steer: one map a site, with the card that says what they are; saved to a folder and loaded from one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import safetensors
import safetensors.torch
import torch

from act.errors import SteerExistsError, SteerFileError, SteerNotFoundError
from act.transport.affine import TransportMap
from schemas import files, record
from schemas.card import FORMAT_VERSION, Card

TENSORS, CARD, README = "steer.safetensors", "steer.json", "README.md"
PARTS = ("scale", "shift", "low", "high")

#: Room for names and offsets beside the numbers of a tensor file.
_HEADER_BYTES = 100_000_000


@final
@dataclass(frozen=True, eq=False)
class Steer:
    """A fitted steer.

    Args:
        card: What it is and where it came from.
        maps: The map of each site, by the site's name, in execution order.
    """

    card: Card
    maps: Mapping[str, TransportMap]

    def __post_init__(self) -> None:
        """Checks that card and maps speak of the same sites."""
        named = {site.hookpoint: site.width for site in self.card.sites}
        found = {name: len(transport.scale) for name, transport in self.maps.items()}
        if named != found:
            odd = sorted(set(named.items()) ^ set(found.items()))[:3]
            raise SteerFileError(self.card.name, f"the card and the maps differ in {odd}")

    def save(self, folder: Path | str) -> "Steer":
        """Writes the steer as a folder that appears whole or not at all; returns it with the hash of its tensors.

        Saving the same steer again does nothing.

        Raises:
            SteerExistsError: The folder holds something else.
        """
        place = Path(folder)
        tensors = {
            f"{name}.{part}": getattr(transport, part).to("cpu", torch.float32).contiguous()
            for name, transport in self.maps.items()
            for part in PARTS
        }
        data = safetensors.torch.save(tensors)
        saved = replace(self, card=replace(self.card, tensors=hashlib.sha256(data).hexdigest()))
        card = record.dump(saved.card)
        if place.exists() and any(place.iterdir()):
            if (place / CARD).is_file() and (place / CARD).read_bytes() == card:
                return saved
            raise SteerExistsError(str(place))
        place.parent.mkdir(parents=True, exist_ok=True)
        files.publish_folder(place, {TENSORS: data, CARD: card, README: _readme(saved.card).encode()})
        return saved


def load(folder: Path | str) -> Steer:
    """Returns the steer that a folder holds, every byte of its tensors checked against the card.

    Args:
        folder: A folder written by `Steer.save`.

    Raises:
        SteerNotFoundError: There is no such folder, or it holds no card.
        SteerFileError: The card is of another format, or card and tensors do not belong together.
    """
    place = Path(folder)
    try:
        written = (place / CARD).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SteerNotFoundError(str(folder)) from exc
    card = _read_card(place / CARD, written)
    maps = _read_maps(place / TENSORS, card)
    return Steer(card, maps)


def _read_card(path: Path, written: bytes) -> Card:
    try:
        version = json.loads(written).get("format_version")
        if version != FORMAT_VERSION:
            raise SteerFileError(str(path), f"its format version is {version!r}, this actmap reads {FORMAT_VERSION}")
        return record.load(Card, written)
    except (ValueError, AttributeError, RecursionError) as exc:
        if isinstance(exc, SteerFileError):
            raise
        raise SteerFileError(str(path), f"it is no card: {exc}") from exc


def _read_maps(path: Path, card: Card) -> dict[str, TransportMap]:
    widths = {site.hookpoint: site.width for site in card.sites}
    most = sum(widths.values()) * len(PARTS) * 4 + _HEADER_BYTES
    try:
        if path.stat().st_size > most:
            raise SteerFileError(str(path), f"it has more than the {most} bytes that its card speaks of")
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise SteerNotFoundError(str(path)) from exc
    if hashlib.sha256(data).hexdigest() != card.tensors:
        raise SteerFileError(str(path), "its bytes are not those that the card was written for; fetch or fit it again")
    try:
        tensors = safetensors.torch.load(data)
        return {name: TransportMap(*(tensors[f"{name}.{part}"] for part in PARTS)) for name in widths}
    except (safetensors.SafetensorError, KeyError) as exc:
        raise SteerFileError(str(path), f"its tensors are not those that the card names ({exc})") from exc


def _readme(card: Card) -> str:
    sites = "\n".join(
        f"| `{site.hookpoint}` | {site.module_type} | {site.width} | {site.displacement:.3f} | {site.transported:.3f} |"
        for site in card.sites
    )
    sides = "\n".join(
        f"| {name} | {side.num_prompts} | {side.num_samples} | {side.num_quarantined} | {side.num_truncated} |"
        for name, side in (("source", card.source), ("target", card.target))
    )
    return f"""# {card.name}

A steer for a {card.kind} model, written by actmap: one affine optimal-transport map per neuron
(`{card.method}`, support `{card.support}`), fitted on `{card.pooling}`-pooled activations ({card.template} template,
{card.estimation} estimation).

```python
import act

with act.apply(act.load("THIS FOLDER"), model, strength=0.5):
    model.generate(...)
```

| side | prompts | samples | quarantined | truncated |
|---|---|---|---|---|
{sides}

`displacement` is how far the map moves a source activation, in standard deviations, on average over neurons;
`transported` is the share of source samples inside the support.

| site | module | neurons | displacement | transported |
|---|---|---|---|---|
{sites}

Model fingerprint `{card.model_fingerprint}`; plan `{card.plan or "none: fitted in memory"}`.
"""
