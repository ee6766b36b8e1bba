"""The steer: one map a site, with the card that says what they are; saved to a folder and loaded from one."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import safetensors
import safetensors.torch
import torch

from act.errors import ActError, SteerExistsError, SteerFileError, SteerNotFoundError
from act.transport import AbstractMap, QuantileMap, map_from_tensors
from act.transport.affine import PARTS
from schemas import files, record
from schemas.card import FORMAT_VERSION, Card, SiteCard
from schemas.headers import LENGTH_BYTES, HeaderError, check_header, header_limit

TENSORS, CARD, README = "steer.safetensors", "steer.json", "README.md"

#: What a quantile map adds to the `PARTS` of an affine one.
KNOTS = ("knots_x", "knots_y")

#: Knots of a neuron that a file may have.
MAX_KNOTS = 1024

#: Text in which a README's reader sees no mark: letters of any script and digits, set apart by one blank or hyphen.
_WORDS = re.compile(r"[^\W_]+([ -][^\W_]+)*")


@final
@dataclass(frozen=True, eq=False)
class Steer:
    """A fitted steer.

    Args:
        card: What it is and where it came from.
        maps: The map of each site, by the site's name, in execution order.
    """

    card: Card
    maps: Mapping[str, AbstractMap]

    def __post_init__(self) -> None:
        """Checks that card and maps speak of the same sites."""
        named = [(site.hookpoint, site.width) for site in self.card.sites]
        found = [(name, transport.num_neurons) for name, transport in self.maps.items()]
        if sorted(named) != sorted(found):
            odd = ", ".join(f"{name} ({width} neurons)" for name, width in sorted(set(named) ^ set(found))[:3])
            raise SteerFileError(self.card.name, f"the card and the maps differ in {odd or 'a site named twice'}")
        for name, transport in self.maps.items():
            if isinstance(transport, QuantileMap) != (self.card.method == "quantile"):
                kind = type(transport).__name__
                raise SteerFileError(self.card.name, f"the card's method is {self.card.method}, {name} has a {kind}")

    def save(self, folder: Path | str) -> "Steer":
        """Writes the steer as a folder that appears whole or not at all; returns it with its card's hashes filled in.

        Saving the same steer again does nothing.

        Raises:
            SteerExistsError: The folder holds something else, or the same steer damaged.
        """
        place = Path(folder).absolute()
        saved, written = self.written()
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.publish_folder(place, written)
        except FileExistsError as exc:
            if not all(_holds(place / name, written[name]) for name in (TENSORS, CARD)):
                raise SteerExistsError(str(folder)) from exc
        return saved

    def written(self) -> "tuple[Steer, dict[str, bytes]]":
        """Returns the steer with its card's hashes filled in, and the files of its folder by their names."""
        data = safetensors.torch.save(self._tensors())
        saved = replace(self, card=replace(self.card, tensors=hashlib.sha256(data).hexdigest()).sealed)
        return saved, {TENSORS: data, CARD: record.dump(saved.card), README: readme(saved.card).encode()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Copies: maps may share memory with each other, files of tensors may not."""
        return {
            f"{name}.{part}": tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, transport in self.maps.items()
            for part, tensor in transport.tensors().items()
        }


def load(folder: Path | str) -> Steer:
    """Returns the steer that a folder holds, every byte of its card and tensors checked.

    Args:
        folder: A folder written by `Steer.save`.

    Raises:
        SteerNotFoundError: There is no such folder, or it holds no card or no tensors.
        SteerFileError: The card is of another format, or a byte of card or tensors is not as it was written.
    """
    place = Path(folder)
    place = place.resolve() if place.exists() else place  # a link may lead to another steer before the tensors are read
    card = _read_card(place / CARD)
    return Steer(card, _read_maps(place / TENSORS, card))


def _read_card(path: Path) -> Card:
    written = _read(path, record.MAX_RECORD_BYTES)
    try:
        tree = record.parse("Card", written)
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if type(version) is int and version != FORMAT_VERSION and version > 0:
            remedy = "take a newer actmap" if version > FORMAT_VERSION else "fit it again, or take an older actmap"
            problem = f"its format version is {version}, this actmap reads {FORMAT_VERSION}; {remedy}"
            raise SteerFileError(str(path), problem)
        card = record.load(Card, written)
    except record.RecordError as exc:
        raise SteerFileError(str(path), f"it is no card of a steer: {exc}") from exc
    if record.dump(card.sealed) != written:
        raise SteerFileError(str(path), "it is not as it was written, its checksum differs; fetch or fit it again")
    return card


def _read_maps(path: Path, card: Card) -> dict[str, AbstractMap]:
    parts = (*PARTS, *KNOTS) if card.method == "quantile" else PARTS
    rows = len(PARTS) + len(KNOTS) * MAX_KNOTS if card.method == "quantile" else len(PARTS)
    most = header_limit(len(card.sites) * len(parts))
    data = _read(path, LENGTH_BYTES + most + sum(site.width for site in card.sites) * rows * 4)
    if hashlib.sha256(data).hexdigest() != card.tensors:
        raise SteerFileError(str(path), "its bytes are not those that the card was written for; fetch or fit it again")
    try:
        check_header(data, most)
        tensors = safetensors.torch.load(data)
    except (HeaderError, safetensors.SafetensorError) as exc:
        raise SteerFileError(str(path), f"it holds no tensors ({exc})") from exc
    named = {f"{site.hookpoint}.{part}": site.width for site in card.sites for part in parts}
    if tensors.keys() != named.keys() or not all(_is_part(name, tensors[name], named[name]) for name in named):
        raise SteerFileError(str(path), "its tensors are not the float32 vectors and knots that the card names")
    try:
        return {
            site.hookpoint: map_from_tensors({part: tensors[f"{site.hookpoint}.{part}"] for part in parts})
            for site in card.sites
        }
    except ActError as exc:
        raise SteerFileError(str(path), f"its tensors are no maps ({exc})") from exc


def _is_part(name: str, tensor: torch.Tensor, width: int) -> bool:
    """Whether a tensor has the dtype and shape of a part of a map, `[neurons]`, or of knots, `[neurons, knots]`."""
    knots = name.rpartition(".")[2] in KNOTS
    shape = (width, min(max(1, tensor.shape[-1]), MAX_KNOTS)) if knots and tensor.ndim else (width,)
    return tensor.dtype == torch.float32 and tensor.shape == shape


def _read(path: Path, most: int) -> bytes:
    """Returns the bytes of a file that has at most so many."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise SteerFileError(str(path), f"it has {size} bytes, more than the {most} that it may have")
            return file.read(size)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        raise SteerNotFoundError(str(path.parent)) from exc


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _shown(text: str) -> str:
    """Returns a text that a README may hold: as it stands if it is plain words, else as code, where nothing acts."""
    return text if _WORDS.fullmatch(text) else _code(text)


def _code(text: str) -> str:
    r"""Returns a text as a code span, in which what nobody would see is spelled as ``\\x1b``."""
    spelled = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", spelled)), default=0))
    room = " " if spelled.startswith("`") or spelled.endswith("`") or not spelled.strip() else ""
    return f"{fence}{room}{spelled}{room}{fence}"


def _cell(text: str) -> str:
    """Returns a text for a cell of a table, which a bar would end, in code too."""
    return _code(text).replace("|", "\\|")


def _row(site: SiteCard) -> str:
    shares = (site.displacement, site.transported, site.tokens_transported, site.neurons_transported)
    cells = (
        _cell(site.hookpoint),
        site.module_type if _WORDS.fullmatch(site.module_type) else _cell(site.module_type),
        str(site.width),
        *(f"{share:.3f}" for share in shares),
        *(f"{error:.2g}" for error in (site.error_median, site.error_worst)),
        str(site.misfit),
    )
    return f"| {' | '.join(cells)} |"


def readme(card: Card) -> str:
    """Returns what the README of a steer says: its card, for a person."""
    sites = "\n".join(_row(site) for site in card.sites)
    sides = "\n".join(
        f"| {name} | {side.num_prompts} | {side.num_samples} | {side.num_quarantined} | {side.num_truncated} |"
        for name, side in (("source", card.source), ("target", card.target))
    )
    kind = "full monotone transport" if card.method == "quantile" else "affine transport"
    threshold = f", threshold {card.threshold:g}" if card.method == "det-zero" else ""
    moved = _shown(card.select) if card.select else "all neurons"
    return f"""# {_shown(card.name)}

A steer for a {_shown(card.kind)} model, written by actmap: one {kind} map per neuron ({_code(card.method)}, support
{_code(card.support)}{threshold}), moving {moved}, fitted on {_code(card.pooling)}-pooled activations
({_shown(card.template)} template, {_shown(card.estimation)} estimation, laws: {_shown(card.law)}).

```python
import act

with act.apply(act.load("THIS FOLDER"), model, strength=0.5):
    model.generate(...)
```

| side | prompts | samples | quarantined | truncated |
|---|---|---|---|---|
{sides}

`displacement` is how far the map moves a source activation, in standard deviations, on average over neurons.
`samples` and `tokens` are the shares of pooled source samples and of single source tokens that lie inside the support;
`moved` is the share of neurons that the map moves at all. `error` is the proven bound on the map's error, in standard
deviations, of the median and of the worst neuron; `misfit` counts neurons whose sketch had a frame that did not fit.

| site | module | neurons | displacement | samples | tokens | moved | error, median | error, worst | misfit |
|---|---|---|---|---|---|---|---|---|---|
{sites}

Model fingerprint {_code(card.model_fingerprint)}; plan {_code(card.plan or "none: fitted in memory")}.
"""
