"""The figure of proven errors, read back from its SVG."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest

from act.transport.affine import LARGEST
from jobs.report.bounds import HEIGHT, MOST_MARKS, WIDTH, bound, error_bounds, marks
from schemas.card import SiteCard

#: Median and worst error of each site.
Errors = Sequence[tuple[float, float]]


def cards(errors: Errors) -> list[SiteCard]:
    return [
        SiteCard(f"blocks.{number}.norm", "Norm", 4, 1.0, 1.0, 1.0, 1.0, median, worst, 0)
        for number, (median, worst) in enumerate(errors)
    ]


def places(figure: ElementTree.Element, colour: str) -> np.ndarray:
    """Where marks of a colour stand, `[marks, 2]`, in pixels; SVG counts them from the top."""
    found = [use for use in figure.iter("use") if f"var(--{colour})" in use.get("style", "") and use.get("x")]
    # Ticks of the axes are marks of theirs, in the colour of lines.
    return np.array([(float(use.get("x", "")), float(use.get("y", ""))) for use in found]).reshape(-1, 2)


def drawn(errors: Errors) -> ElementTree.Element:
    figure = error_bounds(cards(errors))
    assert figure is not None
    return ElementTree.fromstring(str(figure))


def test_heights_of_marks_are_logarithms_of_the_errors():
    errors = [(1e-6, 1e-5), (1e-4, 1e-2), (1e-3, 10.0)]
    figure = drawn(errors)
    dots, bars = places(figure, "accent"), places(figure, "muted")
    assert len(dots) == len(bars) == 3
    heights = np.concatenate([dots[:, 1], bars[:, 1]])
    logs = np.log10([error for column in zip(*errors, strict=True) for error in column])
    slope, _ = np.polyfit(logs, heights, 1)
    np.testing.assert_allclose(heights - slope * logs, (heights - slope * logs).mean(), atol=0.01)
    assert slope < 0
    np.testing.assert_allclose(dots[:, 0], bars[:, 0])
    assert dots[0, 0] < dots[1, 0]
    np.testing.assert_allclose(np.diff(dots[:, 0], 2), 0, atol=0.01)
    assert ((heights > 0) & (heights < HEIGHT)).all()
    assert dots[-1, 0] < WIDTH


def test_every_mark_says_its_site_and_numbers():
    figure = drawn([(0.012, 0.5), (0.0, 0.0)])
    titles = [title.text for title in figure.iter("title")]
    assert titles == ["blocks.0.norm: median 0.012 sd, worst 0.50 sd", "blocks.1.norm: median 0 sd, worst 0 sd"]
    assert figure.get("role") == "img"
    assert figure.get("aria-label") == "Proven error of each site's maps, in standard deviations"


def test_what_is_zero_has_no_mark_and_what_has_no_bound_a_triangle():
    figure = drawn([(0.0, 0.0), (0.0, 0.5), (0.1, LARGEST), (LARGEST, LARGEST)])
    assert len(places(figure, "accent")) == 1
    assert len(places(figure, "muted")) == 1
    assert len(places(figure, "text")) == 2
    top = places(figure, "text")[:, 1]
    assert (top < places(figure, "muted")[:, 1].min()).all()
    assert [bound(error) for error in (0.0, 3.21e-7, LARGEST)] == ["0", "3.2e−7", "none"]


@pytest.mark.parametrize("errors", [[(0.0, 0.0)], [(LARGEST, LARGEST), (0.0, LARGEST)]])
def test_without_a_number_there_is_no_figure(errors):
    assert error_bounds(cards(errors)) is None


def test_axes_are_powers_of_ten_in_text():
    figure = drawn([(1e-7, 2e-7), (1e-3, 0.5)])
    words = [text.text for text in figure.iter("text")]
    assert {"10⁻⁶", "0.01", "1", "site, in execution order", "sd"} <= set(words)
    assert not [word for word in words if word and re.search(r"[$\\]", word)]


@pytest.mark.parametrize("num_sites", [1, 2, MOST_MARKS, MOST_MARKS + 1, 12_000])
def test_many_sites_share_marks_that_stand_for_the_worst_of_them(num_sites):
    generator = np.random.default_rng(0)
    medians = 10 ** generator.uniform(-6, -2, num_sites)
    sites = cards(list(zip(medians.tolist(), (10 * medians).tolist(), strict=True)))
    found = marks(sites)
    assert len(found) == min(num_sites, MOST_MARKS)
    covered = [number for mark in found for number in range(mark.first, mark.last + 1)]
    assert covered == list(range(1, num_sites + 1))
    for mark in found:
        here = sites[mark.first - 1 : mark.last]
        assert mark.median == max(site.error_median for site in here)
        assert mark.worst == max(site.error_worst for site in here)
        assert (f"({len(here)} sites)" in mark.title) == (len(here) > 1)
    figure = error_bounds(sites)
    assert figure is not None
    assert len(figure) < 150_000
    assert ("each mark is the worst of several" in figure) == (num_sites > MOST_MARKS)


def test_a_hostile_name_stays_text():
    (site,) = cards([(0.1, 0.2)])
    named = SiteCard(**(vars(site) | {"hookpoint": "</title><script>\u202e"}))
    figure = error_bounds([named])
    assert figure is not None
    assert "<script" not in figure
    (title,) = ElementTree.fromstring(str(figure)).iter("title")
    assert title.text == "</title><script>\\u202e: median 0.10 sd, worst 0.20 sd"
