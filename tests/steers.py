"""Steers made by hand, what they hold, and what a model must be like after one."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from act.fingerprint import fingerprint
from act.steer import CARD, TENSORS, Steer
from act.transport import AbstractMap, QuantileMap, TransportMap
from schemas import record
from schemas.card import Card, SideCard, SiteCard, SplitCard
from schemas.receipt import Quarantined

WIDTHS = {"model.layers.0.norm": 3, "model.layers.1:1": 5, "ünet.mid@2": 4}


def make_card(widths: dict[str, int]) -> Card:
    """A card with odd letters and numbers in it."""
    sites = tuple(
        SiteCard(name, "LayerNorm", width, 0.1 + width / 3, 2 / 3, 1 / 4, 1.0, 1e-7, 0.01, 0)
        for name, width in widths.items()
    )
    return Card(
        format_version=3,
        name="less toxic 🎸",
        kind="module",
        method="linear",
        support="[1, 99]",
        threshold=0.5,
        select="",
        law="exact",
        pooling="mean",
        template="plain",
        estimation="simultaneous",
        sites=sites,
        timesteps=(999.0, 1 / 3),
        source=SideCard(10, 0, 9, 1, 2, "s" * 64, (Quarantined(3, "empty"),), (SplitCard(1, 0, 2),)),
        target=SideCard(8, 1, 7, 0, 0, "t" * 64),
        model_fingerprint="0123456789abcdef" * 4,
        checkpoint_fingerprint="",
        numerics={"torch": "2.13.0", "threads": 1},
        plan="",
        spec={"pooling": "mean", "transport": {"method": "linear", "support": [1.0, 99.0]}},
        tensors="",
    )


def make_map(width: int, seed: int) -> TransportMap:
    """A random map whose bits are odd: infinite ends, a negative zero, no bound on an error."""
    scale, shift, ends, error = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
    low, high, error = ends - 1, ends + 1, error.abs()
    low[0], high[-1], shift[0], error[0] = -torch.inf, torch.inf, -0.0, torch.inf
    return TransportMap(scale, shift, low, high, error)


def make_quantile_map(width: int, seed: int) -> QuantileMap:
    """A random map with two numbers of knots among its neurons."""
    xs, ys = torch.randn(2, width, 7, generator=torch.Generator().manual_seed(seed)).sort(dim=2).values
    xs[0, 4:], ys[0, 4:] = xs[0, 3], ys[0, 3]
    return QuantileMap(make_map(width, seed), xs, ys)


def make_quantile_steer(widths: dict[str, int] = WIDTHS) -> Steer:
    """A steer of several sites whose maps have knots."""
    maps = {name: make_quantile_map(width, width) for name, width in widths.items()}
    return Steer(replace(make_card(widths), method="quantile"), maps)


def make_steer(widths: dict[str, int] = WIDTHS) -> Steer:
    """A steer of several sites."""
    return Steer(make_card(widths), {name: make_map(width, width) for name, width in widths.items()})


def bits(steer: Steer) -> dict[str, bytes]:
    """The bits of every map."""
    return {name: tensor.numpy().tobytes() for name, tensor in tensors_of(steer).items()}


def tensors_of(steer: Steer) -> dict[str, torch.Tensor]:
    """Copies of the tensors that a steer is saved as."""
    return {f"{name}.{part}": one.clone() for name, t in steer.maps.items() for part, one in t.tensors().items()}


def forge(folder: Path, tensors: dict[str, torch.Tensor] | bytes, **changes: Any) -> None:
    """Writes other tensors, and a card that vouches for them."""
    data = tensors if isinstance(tensors, bytes) else safetensors.torch.save(tensors)
    card = record.load(Card, (folder / CARD).read_bytes())
    card = dataclasses.replace(card, tensors=hashlib.sha256(data).hexdigest(), **changes).sealed
    (folder / TENSORS).write_bytes(data)
    (folder / CARD).write_bytes(record.dump(card))


def window(width: int, seed: int = 0, shift: float = 0.0, reach: float = 1.0) -> TransportMap:
    """A map that moves what lies within `reach` of 0, about two thirds of normal activations."""
    scale, moved = torch.randn(2, width, generator=torch.Generator().manual_seed(seed))
    ends = torch.full((width,), reach)
    return TransportMap(scale, moved + shift, -ends, ends)


def steer_for(model: nn.Module, maps: Mapping[str, AbstractMap]) -> Steer:
    """A steer of a model whose sites have these maps."""
    modules = dict(model.named_modules())
    sites = tuple(
        SiteCard(
            name,
            type(modules[name.partition(":")[0]]).__name__,
            transport.num_neurons,
            displacement=0.0,
            transported=1.0,
            tokens_transported=1.0,
            neurons_transported=1.0,
            error_median=0.0,
            error_worst=0.0,
            misfit=0,
        )
        for name, transport in maps.items()
    )
    method = "quantile" if any(isinstance(transport, QuantileMap) for transport in maps.values()) else "linear"
    card = replace(make_card({}), method=method, sites=sites, timesteps=(), model_fingerprint=fingerprint(model))
    return Steer(card, maps)


def moved_by(transport: AbstractMap, x: torch.Tensor, strength: float) -> torch.Tensor:
    """The method's formula, in float64 and from nothing of ours but the four vectors; neurons last."""
    wide = x.double()
    scale, shift, low, high = (getattr(transport, part).double() for part in ("scale", "shift", "low", "high"))
    target = torch.where((wide >= low) & (wide <= high), scale * wide + shift, wide)
    return (1 - strength) * wide + strength * target


def state(model: nn.Module) -> dict[str, list[int]]:
    """Which hooks, parameters, buffers and attributes each module has: what a hook leaves behind shows here."""
    return {
        f"{name}.{kind}": list(map(id, kept.values())) if isinstance(kept, dict) else [id(kept)]
        for name, module in model.named_modules()
        for kind, kept in vars(module).items()
    }
