"""Try: the page shows the answers of the API."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

Choose = Callable[[Page, Mapping[str, bytes]], None]


def answer_of(address: str, path: str, body: bytes) -> Any:
    return httpx2.post(f"{address}/v1/{path}", content=body).raise_for_status().json()


def width(bar: Locator) -> float:
    """A bar's length as a share of its row."""
    return float((bar.get_attribute("width") or "").removesuffix("%")) / 100


def take(page: Page, *samples: str) -> None:
    for number, sample in enumerate(samples, start=1):
        page.get_by_role("button", name=sample, exact=True).click()
        expect(page.get_by_role("article")).to_have_count(number)
    expect(page.locator("[aria-busy]")).to_have_count(0)


def test_a_chosen_picture_shows_the_labels_and_probabilities_of_the_api(
    try_page: Page, address: str, choose: Choose, clock_png: bytes
) -> None:
    choose(try_page, {"mine.png": clock_png})

    rows = try_page.get_by_role("article", name="mine.png").get_by_role("listitem")
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("analog clock")
    for row, found in zip(
        rows.all(), answer_of(address, "classify", clock_png)["results"][0]["predictions"], strict=True
    ):
        expect(row).to_contain_text(found["label"])
        expect(row).to_contain_text(f"{found['probability'] * 100:.1f}\u00a0%")
        assert width(row.locator(".length")) == pytest.approx(found["probability"], abs=2e-4)


@pytest.mark.parametrize(("sample", "label"), [("clock", "analog clock"), ("crossword", "crossword puzzle")])
def test_one_click_tries_a_drawn_sample(try_page: Page, sample: str, label: str) -> None:
    take(try_page, sample)
    expect(try_page.get_by_role("article").get_by_role("listitem").first).to_contain_text(label)


def test_the_page_names_the_formats_that_the_server_accepts(try_page: Page, address: str) -> None:
    *others, last = httpx2.get(f"{address}/v1/models").json()["limits"]["image_formats"]
    expect(try_page.locator("#formats")).to_have_text(f"{', '.join(others)}, or {last}")


def test_pictures_can_be_dropped(try_page: Page, clock_png: bytes) -> None:
    carried = try_page.evaluate_handle(
        """bytes => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "carried.png", { type: "image/png" }));
            return carried;
        }""",
        list(clock_png),
    )
    try_page.dispatch_event("#drop", "drop", {"dataTransfer": carried})

    expect(try_page.get_by_role("article", name="carried.png").get_by_role("listitem").first).to_contain_text("clock")


def test_a_picture_can_be_pasted(open_page: Callable[..., Page], clock_png: bytes) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """bytes => navigator.clipboard.write([
            new ClipboardItem({ "image/png": new Blob([new Uint8Array(bytes)], { type: "image/png" }) }),
        ])""",
        list(clock_png),
    )
    page.keyboard.press("Control+V")

    expect(page.get_by_role("article").get_by_role("listitem").first).to_contain_text("analog clock")


def test_the_waterfall_is_the_server_timing_of_the_answer(try_page: Page) -> None:
    with try_page.expect_response("**/v1/predict*") as answered:
        take(try_page, "clock")
    header = answered.value.headers["server-timing"]
    timed = {name: float(ms) for name, ms in (part.split(";dur=") for part in header.split(", "))}
    total = timed.pop("total")

    rows = try_page.locator("[data-stage]")
    assert [row.get_attribute("data-stage") for row in rows.all()] == [*timed, "rest"]
    start = 0.0
    for name, took in {**timed, "rest": total - sum(timed.values())}.items():
        row = try_page.locator(f"[data-stage={name}]")
        shown, unit = row.locator(".figure").inner_text().split("\u00a0")
        assert float(shown) * {"µs": 1e-3, "ms": 1, "s": 1e3}[unit] == pytest.approx(took, rel=0.006, abs=1e-3)
        drawn = row.locator(".length")
        assert width(drawn) == pytest.approx(took / total, abs=2e-4)
        at = float((drawn.get_attribute("x") or "").removesuffix("%")) / 100
        assert at == pytest.approx(start / total, abs=1e-3)
        start += took


def test_a_feature_vector_is_shown_with_its_norm_and_dimensions(
    try_page: Page, address: str, choose: Choose, clock_png: bytes
) -> None:
    choose(try_page, {"mine.png": clock_png})

    answer = answer_of(address, "features", clock_png)
    vector = np.array(answer["results"][0]["features"])
    panel = try_page.locator(".panel", has=try_page.get_by_role("heading", name="Feature vector"))
    expect(panel).to_contain_text(f"norm {float(f'{np.linalg.norm(vector):.3g}'):g}")
    expect(panel).to_contain_text(f"{answer['dimensions']:,} dimensions")
    drawn = "".join(path.get_attribute("d") or "" for path in panel.locator("path").all())
    assert drawn.count("M") == np.count_nonzero(vector)


def test_a_feature_vector_can_be_copied_and_the_page_names_its_fingerprint(
    open_page: Callable[..., Page], address: str, choose: Choose, clock_png: bytes
) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True)
    choose(page, {"mine.png": clock_png})
    button = page.get_by_role("button", name="Copy the vector of mine.png")
    button.click()
    expect(button).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))

    answer = answer_of(address, "features", clock_png)
    assert copied == pytest.approx(answer["results"][0]["features"], abs=1e-4)
    panel = page.locator(".panel", has=page.get_by_role("heading", name="Feature vector"))
    expect(panel.locator("code")).to_have_text(answer["fingerprint"])

    # As on a page that was not served from localhost or by HTTPS.
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    with page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename == "mine.png.json"
    assert json.loads(download.value.path().read_text()) == copied
    expect(button).to_have_text("Saved")


def test_classes_and_vector_come_from_one_request(try_page: Page) -> None:
    sent: list[str] = []
    try_page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    take(try_page, "clock")

    expect(try_page.get_by_role("heading", name="Feature vector")).to_be_visible()
    [url] = sent
    assert "/v1/predict?" in url
    assert "outputs=classes,features" in url


def test_a_model_without_classes_shows_only_the_vector(try_page: Page, address: str) -> None:
    described = httpx2.get(f"{address}/v1/models").json()
    without = {**described, "models": [{**model, "classes": 0} for model in described["models"]]}
    try_page.route("**/v1/models", lambda route: route.fulfill(json=without))
    try_page.reload()
    expect(try_page.get_by_label("Model", exact=True)).to_be_enabled()
    with try_page.expect_request("**/v1/predict*") as request:
        take(try_page, "clock")

    assert "outputs=features&" in request.value.url
    expect(try_page.get_by_role("button", name="Copy the vector of clock.jpg")).to_be_visible()
    expect(try_page.get_by_role("article").get_by_role("listitem")).to_have_count(0)
    expect(try_page.get_by_label("Classes per picture")).to_be_hidden()
    expect(try_page.locator("pre").first).to_contain_text("/v1/features")


def test_several_pictures_are_compared_each_with_each(try_page: Page, address: str) -> None:
    samples = ["clock", "traffic light", "crossword"]
    take(try_page, *samples)

    cells = try_page.get_by_role("table", name="Cosine similarity").locator("tbody td")
    expect(cells).to_have_count(9)
    shown = np.array([float(text.replace("\N{MINUS SIGN}", "-")) for text in cells.all_inner_texts()]).reshape(3, 3)
    files = [httpx2.get(f"{address}/samples/{sample.replace(' ', '-')}.jpg").content for sample in samples]
    vectors = np.array(
        [answer_of(address, "features?normalize=true", file)["results"][0]["features"] for file in files]
    )
    assert shown == pytest.approx(vectors @ vectors.T, abs=0.006)


def test_a_file_that_is_not_an_image_shows_the_text_of_the_problem(
    open_page: Callable[..., Page], address: str, choose: Choose
) -> None:
    page = open_page(refusals=True)
    choose(page, {"notes.txt": b"no image"})

    problem = httpx2.post(f"{address}/v1/classify", content=b"no image").json()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(problem["title"])
    expect(alert).to_contain_text(problem["detail"])
    expect(alert).to_contain_text(problem["type"])
    expect(page.locator("[aria-busy]")).to_have_count(0)


def test_a_bad_file_among_others_shows_its_problem(try_page: Page, choose: Choose, clock_png: bytes) -> None:
    choose(try_page, {"good.png": clock_png, "bad.png": b"no image", "again.png": clock_png})

    expect(try_page.get_by_role("article", name="good.png").get_by_role("listitem")).to_have_count(5)
    expect(try_page.get_by_role("article", name="bad.png").get_by_role("alert")).to_contain_text(
        "The image format is not supported"
    )
    expect(try_page.get_by_role("article", name="again.png").get_by_role("listitem")).to_have_count(5)
    expect(try_page.get_by_role("table", name="Cosine similarity").locator("tbody td")).to_have_count(4)


def test_a_file_larger_than_the_limit_is_reported_as_too_large_or_aborted(
    open_page: Callable[..., Page], choose: Choose
) -> None:
    page = open_page(refusals=True)
    choose(page, {"large.png": bytes(30_000_000)})

    # Which of the two depends on whether the browser receives the answer before it has sent the body.
    expect(page.get_by_role("alert")).to_contain_text("large")


def test_a_file_name_is_shown_as_text(try_page: Page, choose: Choose, clock_png: bytes) -> None:
    name = "<img src=x onerror=document.title='taken'> & co.png"
    choose(try_page, {name: clock_png})

    expect(try_page.get_by_role("article").get_by_role("heading")).to_contain_text(name)
    expect(try_page.get_by_role("heading", name="The same from a shell")).to_be_visible()
    assert try_page.title() == "gradless"


def test_the_same_pictures_are_sent_to_another_model(try_page: Page, light_model: str) -> None:
    take(try_page, "clock")
    label = try_page.get_by_role("article").get_by_role("listitem").first
    expect(label).to_contain_text("analog clock")

    with try_page.expect_response("**/v1/predict*"):
        try_page.get_by_label("Model", exact=True).select_option(light_model)

    expect(label).not_to_contain_text("analog clock")
    expect(try_page.get_by_text("1,024 dimensions")).to_be_visible()
    expect(try_page.locator("pre").first).to_contain_text("model=shufflenet_v2_x0_5%3Arandom")


@pytest.mark.parametrize("names", [["a 'quoted'; \"name\" $(touch taken).png"], ["one, two;.png", "back\\slash.png"]])
def test_the_copied_commands_give_the_same_results_in_a_shell(
    open_page: Callable[..., Page], choose: Choose, names: list[str], clock_png: bytes, tmp_path: Path
) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    choose(page, dict.fromkeys(names, clock_png))
    answers = {}
    for kind in ("Classes", "Classes and features"):
        button = page.get_by_role("button", name=f"Copy {kind}", exact=True)
        button.click()
        expect(button).to_have_text("Copied")
        command = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=60, check=True)
        answers[kind] = json.loads(done.stdout)["results"]

    for found, both in zip(answers["Classes"], answers["Classes and features"], strict=True):
        assert found["predictions"][0]["label"] == both["predictions"][0]["label"] == "analog clock"
        assert len(both["features"]) == 1280
    assert len(answers["Classes"]) == len(names)
    assert not (tmp_path / "taken").exists()


def test_the_command_for_a_sample_needs_no_file(try_page: Page, tmp_path: Path) -> None:
    take(try_page, "clock", "crossword")
    command = try_page.locator("pre").first.inner_text()
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    labels = [found["predictions"][0]["label"] for found in json.loads(done.stdout)["results"]]
    assert labels == ["analog clock", "crossword puzzle"]


def test_pictures_can_be_removed_one_by_one_and_all_at_once(try_page: Page) -> None:
    take(try_page, "clock", "crossword")
    try_page.get_by_role("button", name="Remove clock.jpg").click()
    expect(try_page.get_by_role("article")).to_have_count(1)
    expect(try_page.get_by_role("article")).to_contain_text("crossword puzzle")

    try_page.get_by_role("button", name="Start over").click()
    expect(try_page.get_by_role("article")).to_have_count(0)
    expect(try_page.get_by_role("heading", name="The same from a shell")).to_be_hidden()
