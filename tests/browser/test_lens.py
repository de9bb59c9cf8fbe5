"""Lens: charts of a real comparison show the numbers of the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

# The longest that a comparison may take on a busy machine.
COMPARISON_MS = 90_000


def in_unit(value: float, units: dict[str, float]) -> str:
    """Three figures and the unit that keeps them short, as the page writes them."""
    value *= 1 + 1e-12  # halves up, as browsers round them
    fitting = [(unit, size) for unit, size in units.items() if float(f"{value / size:.3g}") >= 1]
    unit, size = fitting[-1] if fitting else next(iter(units.items()))
    return f"{float(f'{value / size:.3g}'):,g}\u00a0{unit}"


def as_bytes(value: int) -> str:
    return in_unit(value, {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9})


def as_seconds(value: float) -> str:
    return in_unit(value, {"µs": 1e-6, "ms": 1e-3, "s": 1})


def compare(page: Page, model: str, arms: list[str] | None = None, **knobs: str) -> None:
    """Choose, and press the button. `arms` without a mention are all of them."""
    page.get_by_label("Model", exact=True).select_option(model)
    boxes = page.locator("[name=arms]")
    expect(boxes).to_have_count(7)
    for box in boxes.all():
        box.set_checked(arms is None or box.get_attribute("value") in arms)
    page.get_by_label("Batch size").fill(knobs.pop("size", "2"))
    page.get_by_label("Rounds").fill(knobs.pop("rounds", "2"))
    for label, option in knobs.items():
        page.get_by_label(label.capitalize()).select_option(label=option)
    page.get_by_role("button", name="Compare").click()


def report_of(page: Page) -> Any:
    """Wait for the report, and download it."""
    save = page.get_by_role("button", name="Download the report as JSON")
    expect(save).to_be_visible(timeout=COMPARISON_MS)
    with page.expect_download() as download:
        save.click()
    assert download.value.suggested_filename.endswith(".json")
    return json.loads(Path(download.value.path()).read_text())


def length(field: Locator) -> float:
    return float((field.locator(".length").get_attribute("width") or "").removesuffix("%")) / 100


def test_a_comparison_is_drawn_with_the_reports_own_numbers(open_page: Callable[..., Page], small_model: Path) -> None:
    page = open_page("lens")
    compare(page, small_model.name, sweep="batches of 1 to 4", rounds="1")
    report = report_of(page)
    expect(page.get_by_role("progressbar")).to_be_hidden()

    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert set(arms) == {
        "grad", "no_grad", "set_grad_enabled_false", "inference_mode", "frozen", "train", "served"
    }  # fmt: skip
    most_s = max(arm["seconds"]["upper_quartile"] for arm in arms.values())
    most_peak = max(arm["peak_bytes"] or 0 for arm in arms.values())
    most_kept = arms["grad"]["retained_bytes"]
    assert most_kept > 0
    for name, arm in arms.items():
        row = page.locator(f".costs [data-arm={name}]")
        time, peak, kept = (row.locator(f"[data-measure={measure}]") for measure in ("time", "peak", "retained"))
        expect(time).to_contain_text(as_seconds(arm["seconds"]["median"]))
        assert length(time) == pytest.approx(arm["seconds"]["median"] / most_s, abs=2e-4)
        if arm["retained_bytes"] is None:
            expect(kept).to_contain_text(arm["retained_note"])
        else:
            expect(kept).to_contain_text(as_bytes(arm["retained_bytes"]))
            assert length(kept) == pytest.approx(arm["retained_bytes"] / most_kept, abs=2e-4)
        if arm["peak_bytes"] is None:
            expect(peak).to_contain_text(arm["peak_note"])
        else:
            expect(peak).to_contain_text(as_bytes(arm["peak_bytes"]))
            assert length(peak) == pytest.approx(arm["peak_bytes"] / most_peak, abs=2e-4)

    message = page.get_by_role("region", name="In words").inner_text().replace("\u00a0", " ")
    assert report["sentences"]
    assert all(sentence in message for sentence in report["sentences"])

    assert [point["batch_size"] for point in report["sweep"]] == [1, 2, 4]
    plots = page.locator(".plots svg.plot")
    expect(plots).to_have_count(3)
    assert plots.first.locator(".dot.arm-grad").count() == 3
    page.get_by_text("As a table").click()
    table = page.get_by_role("group", name="The sweep as a table")
    expect(table).to_contain_text(as_seconds(report["sweep"][-1]["arms"][0]["median_seconds"]))

    page.get_by_role("button", name=f"Show all {len(report['modules'])}").click()
    rows = page.locator(".modules tbody tr")
    expect(rows).to_have_count(len(report["modules"]))
    for row, module in zip(rows.all(), report["modules"], strict=True):
        expect(row.locator("code")).to_have_text(module["module"] or "(the whole)")
        expect(row).to_contain_text(as_bytes(module["retained_bytes"]))

    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_only_the_chosen_arms_are_compared_on_the_chosen_picture(
    open_page: Callable[..., Page], small_model: Path
) -> None:
    page = open_page("try", viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.get_by_role("button", name="clock", exact=True).click()
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_role("tab", name="Lens").click()
    compare(page, small_model.name, ["grad", "inference_mode"], size="1", rounds="1", input="clock.jpg")
    report = report_of(page)

    assert [arm["arm"] for arm in report["arms"]] == ["grad", "inference_mode"]
    assert report["input"] == "the uploaded image"
    assert (report["model"], report["batch_size"], report["sweep"]) == (small_model.name, 1, [])
    expect(page.locator(".costs tbody tr")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_concurrent_comparison_is_refused_with_a_message_and_a_comparison_can_be_stopped(
    open_page: Callable[..., Page], light_model: str
) -> None:
    first, second = open_page("lens"), open_page("lens", refusals=True)
    # Takes most of a minute, far longer than what follows: it is stopped.
    compare(first, light_model, size="32", rounds="50")
    expect(first.get_by_role("progressbar")).to_be_visible()
    expect(first.get_by_text("timing,")).to_be_visible()

    compare(second, light_model, size="1", rounds="1")
    expect(second.get_by_role("alert")).to_contain_text("A comparison is running")
    expect(second.get_by_role("button", name="Compare")).to_be_enabled()

    first.get_by_role("button", name="Stop").click()
    expect(first.get_by_text("Stopped.")).to_be_visible()
    expect(first.get_by_role("button", name="Compare")).to_be_enabled()
