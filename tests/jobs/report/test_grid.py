"""Where the heat map puts each site, and how large it gets."""

from collections.abc import Sequence

import pytest

from jobs.report.figures import heat_map
from jobs.report.grid import arrange
from schemas.card import SiteCard
from tests.jobs.report.runs import BLOCKS, Page

STEPS = [f"unet.mid.{name}@{step}" for step in range(4) for name in ("norm1", "norm2")]


def cards(names: Sequence[str]) -> list[SiteCard]:
    return [SiteCard(name, "Norm", 4, float(number), 1.0, 1.0, 1.0, 0.0, 0.0, 0) for number, name in enumerate(names)]


def test_sites_of_blocks_stand_by_kind_and_block():
    grid = arrange(cards(["model.embed", *BLOCKS]))
    assert grid.rows == ("embed", "input_layernorm", "post_attention_layernorm", "norm")
    assert grid.columns == ("start", "0", "1", "2", "end")
    assert grid.axis == "block"
    places = {cell.hookpoint: (cell.row, cell.column, cell.displacement) for cell in grid.cells}
    assert places["model.layers.1.post_attention_layernorm"] == (2, 2, 4.0)
    assert places["model.embed"] == (0, 0, 0.0)
    assert places["model.norm"] == (3, 4, 7.0)
    assert grid.highest == 7.0


@pytest.mark.parametrize(
    ("names", "rows", "columns"),
    [
        (["model.layers.0", "model.layers.10", "model.layers.2"], ("layers.*",), ("0", "2", "10")),
        (["0", "2"], ("*",), ("0", "2")),
        (["h.0.ln:1", "h.1.ln:1"], ("ln:1",), ("0", "1")),
        (["net.first", "net.second.norm"], ("first", "second.norm"), ("displacement",)),
        (["a.0.b.0.n", "a.0.b.1.n"], ("b.0.n", "b.1.n"), ("0",)),
        (["enc.0.n", "dec.0.n"], ("enc.*.n", "dec.*.n"), ("0",)),
        (STEPS, ("norm1", "norm2"), ("0", "1", "2", "3")),
    ],
)
def test_rows_and_columns_come_from_names(names, rows, columns):
    grid = arrange(cards(names))
    assert (grid.rows, grid.columns) == (rows, columns)
    assert len({(cell.row, cell.column) for cell in grid.cells}) == len(names)


@pytest.mark.slow
def test_a_large_heat_map_is_one_small_image():
    grid = arrange(cards([f"unet.blocks.{block}.norm@{step}" for step in range(30) for block in range(200)]))
    figure = str(heat_map(grid))
    (image,) = Page(figure).named("image")
    assert image["href"].startswith("data:image/png;base64,")
    assert len(figure) < 100_000
