"""The report of a comparison on a terminal and as a page, from invented figures."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from app.api.schemas import GradModes
from app.reports import lens_charts
from app.reports.lens_charts import Value
from app.reports.pages import comparison_page
from app.reports.progress import comparison_progress
from app.reports.terminal import show_comparison
from gradless.records import ARMS, Comparison, ComparisonOptions, Progress
from gradless.sentences import in_bytes

NewComparison = Callable[[str, ComparisonOptions], Comparison]


@pytest.fixture
def comparison(new_comparison: NewComparison) -> Comparison:
    return new_comparison("resnet50:random", ComparisonOptions(batch_size=32, sweep=(1, 2, 64)))


def on_a_terminal(comparison: Comparison, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_comparison(GradModes.model_validate(comparison), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class Elements(HTMLParser):
    """Everything in a page: tags with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_terminal_shows_the_time_with_and_without_gradients_first(comparison: Comparison) -> None:
    assert on_a_terminal(comparison)[:3] == [
        "With gradient calculation: 0.500 s",
        "Without: 1.500 s",
        "Difference: 12 rounds do not show a difference",
    ]
    grad, no_grad, *others = comparison.arms
    slower = replace(comparison, arms=(grad, replace(no_grad, against_grad="more"), *others))
    assert on_a_terminal(slower)[2] == "Difference: 67% less with gradients"


def test_without_these_arms_no_times_are_shown_first(new_comparison: NewComparison) -> None:
    lines = on_a_terminal(new_comparison("fake", ComparisonOptions(arms=("inference_mode", "served"))))
    assert not any(line.startswith(("With", "Without")) for line in lines)


def test_a_terminal_of_80_columns_shows_every_arm_and_figure_in_full(comparison: Comparison) -> None:
    lines = on_a_terminal(comparison)
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    for arm in ARMS:
        assert arm in rows
    assert "…" not in "".join(lines)
    table = next(line for line in lines if line.split()[:1] == ["grad"])
    assert table.split() == ["grad", "500", "ms", "250–750", "2", "kB", "1", "kB", "works"]  # noqa: RUF001
    assert any("No peak for served: it has memory of its own." in line for line in lines)
    assert any("layer.0" in line and "900 bytes" in line for line in lines)
    assert any(comparison.sentences[0] in line for line in lines)


def test_square_brackets_in_a_name_are_not_markup(comparison: Comparison) -> None:
    lines = on_a_terminal(replace(comparison, model="[bold]odd", sentences=("kept [red]nothing",)))
    assert any("[bold]odd" in line for line in lines)
    assert any("kept [red]nothing" in line for line in lines)


def test_progress_without_a_terminal_writes_nothing() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with comparison_progress(console) as report_progress:
        report_progress(Progress(1, 2, "timing"))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_a_page_loads_nothing(comparison: Comparison) -> None:
    html = comparison_page(GradModes.model_validate(comparison))
    elements = Elements(html)
    names = {tag for tag, _ in elements.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    attributes = {name for _, found in elements.tags for name in found}
    assert not attributes & {"src", "href", "xlink:href", "srcset", "action", "onload", "onclick"}
    assert "url(" not in html
    assert "@import" not in html
    assert "//" not in html


def test_a_page_has_the_figures_of_every_arm(comparison: Comparison) -> None:
    report = GradModes.model_validate(comparison)
    text = " ".join(Elements(comparison_page(report)).texts)
    for arm in report.arms:
        assert arm.arm in text
        assert in_bytes(arm.retained_bytes or 0) in text
        assert (arm.backward.error or "works") in text
    assert comparison.sentences[0] in text
    assert "layer.0" in text
    assert "(the network itself)" in text
    # Three charts of arms, three of the sweep.
    assert sum(tag == "figure" for tag, _ in Elements(comparison_page(report)).tags) == 6


def test_a_page_without_sweep_modules_or_peaks_is_complete(new_comparison: NewComparison) -> None:
    bare = replace(new_comparison("fake", ComparisonOptions(arms=("served",))), modules=(), largest_batch=None)
    elements = Elements(comparison_page(GradModes.model_validate(bare)))
    assert sum(tag == "figure" for tag, _ in elements.tags) == 3
    assert "not known" in " ".join(elements.texts)


def test_reports_of_a_network_without_classes_or_observed_graph_are_complete(comparison: Comparison) -> None:
    unknown = replace(
        comparison.arms[0], top1_agreement=None, retained_bytes=None, retained_tensors=None, retained_note="it is odd"
    )
    points = tuple(
        replace(point, arms=(replace(point.arms[0], retained_bytes=None), *point.arms[1:]))
        for point in comparison.sweep
    )
    odd = replace(comparison, arms=(unknown, *comparison.arms[1:]), sweep=points)
    text = " ".join(Elements(comparison_page(GradModes.model_validate(odd))).texts)
    assert "no classes" in text
    assert "not observed" in text
    lines = on_a_terminal(odd)
    assert "What grad keeps could not be observed: it is odd." in lines
    assert next(line.split() for line in lines if line.split()[:1] == ["grad"])[-2:] == ["?", "works"]


def test_names_of_modules_are_escaped(comparison: Comparison) -> None:
    odd = replace(comparison, modules=(replace(comparison.modules[0], module="<script>alert(1)</script>"),))
    assert "script" not in {tag for tag, _ in Elements(comparison_page(GradModes.model_validate(odd))).tags}


def test_bars_are_proportional_and_fit_the_axis() -> None:
    chart = lens_charts.bars([Value("a", 50), Value("b", 100, 80, 130), Value("c", 0), Value("d", None)], str)
    a, b, c, d = chart.bars
    assert b.width == pytest.approx(2 * (a.width or 0), abs=0.2)
    assert b.low is not None
    assert b.high is not None
    assert b.width is not None
    assert b.low < b.width < b.high <= chart.width
    assert (c.width, d.width, d.label) == (0, None, "not known")
    assert [tick.label for tick in chart.ticks] == ["0", "50.0", "100.0", "150.0"]


def test_lines_rise_with_their_figures() -> None:
    chart = lens_charts.lines({"a": [(1, 10.0), (2, 20.0), (64, 40.0)], "b": [(1, 5.0)]}, str)
    xs, ys, _ = zip(*chart.lines[0].marks, strict=True)
    assert list(xs) == [0, chart.width / 2, chart.width]
    assert list(ys) == sorted(ys, reverse=True)
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "64"]
    assert all(0 <= y <= chart.height for y in ys)


def test_charts_of_zeros_have_an_axis() -> None:
    assert [bar.width for bar in lens_charts.bars([Value("a", 0)], str).bars] == [0]
    assert lens_charts.lines({"a": [(1, 0.0), (2, 0.0)]}, str).lines[0].points == "0.0,210.0 290.0,210.0"
