"""The report in a real browser: it opens, its pictures load, names are escaped."""

import shutil

import pytest

from bn_detect.study.report import write_report

from .made_up import HOSTILE, flip, run, study

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [run(HOSTILE, seed, swap=0.5, ap=28.0, flips=[flip(folder)]) for seed in (1, 2)]
    failed = [{"seed": 3, "error": HOSTILE, "log": "train.log"}]
    arms = {
        HOSTILE: {"runs": runs, "failed": failed, "reference": {HOSTILE: 30.7}},
        "shuffled": {"runs": [run("shuffled", 1, swap=0.0, ap=42.0)]},
        "not run": {},
    }
    claim = {"claim": HOSTILE, "otherwise": HOSTILE}
    claim |= {key: {"arm": HOSTILE, "column": "swap"} for key in ("higher", "lower")}
    results = study(arms, name=HOSTILE, question=HOSTILE, text=HOSTILE, verdicts=[claim])
    assert write_report(results, folder) == folder / "report.html"
    return folder


def test_files(folder):
    assert "± 0.0 [28.0, 28.0]" in (folder / "table.md").read_text()
    pictures = {"swap", "ap", "decomposition", "layers", "curves", "flips"}
    assert {p.stem for p in (folder / "figures").iterdir()} == pictures


def test_nothing_is_loaded_and_names_are_escaped(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<script") == 1 and "http" not in page  # the script that sorts
    assert page.count("&lt;script&gt;") >= 6  # title, heading, question, verdict, error, table
    assert page.count("<img ") == 6


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium in the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_in_a_browser(browser, folder, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto((folder / "report.html").as_uri())
    assert page.title() == f"{HOSTILE}: leakage study"
    loaded = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 50)")
    assert loaded == [True] * 6
    # Wide tables scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


ROWS = """[...document.querySelectorAll('table.results')].map(
    table => [...table.tBodies[0].rows].map(row => row.cells[0].innerText))"""


def test_tables_of_results_fit_explain_themselves_and_are_sorted(browser, tmp_path):
    aps = {"plain": 30.0, "3 images": 9.5, "shuffled": 41.0, "not run": None}
    runs = {
        arm: [] if ap is None else [run(arm, s, swap=s - 11.0, ap=ap) for s in (1, 2)]
        for arm, ap in aps.items()
    }
    write_report(study({arm: {"runs": each} for arm, each in runs.items()}), tmp_path)
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    fits = "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    assert page.evaluate(fits)
    tables = page.evaluate(ROWS)
    widths = "[...document.querySelectorAll('table.results')].map(t => t.rows[0].cells.length)"
    assert page.evaluate(widths) == [7, 9]  # the most that a table has
    assert len(tables) == 2 and all(arms == list(aps) for arms in tables)
    assert "(160 of 160 RoIs, 40 images, 2 seeds;" in page.inner_text(".verdicts li:first-child")
    header = page.locator("th", has_text="box AP (%)").first
    assert "precision" in header.get_attribute("title")
    cell = page.locator("td", has_text="9.5").first
    assert "box AP (%): Mean average precision" in cell.get_attribute("title")
    for _ in range(3):
        header.click()
        tables.append(page.evaluate(ROWS)[1])  # both tables follow
    ascending = ["3 images", "plain", "shuffled", "not run"]
    assert tables[2:] == [ascending, ["shuffled", "plain", "3 images", "not run"], list(aps)]
    page.locator("th", has_text="arm").first.click()
    assert page.evaluate(ROWS)[0] == ["3 images", "not run", "plain", "shuffled"]


def test_pictures_stay_where_their_images_are_gone(tmp_path):
    arms = {"a": {"runs": [run("a", 1, swap=0.5, ap=28.0, flips=[flip(tmp_path)])]}}
    write_report(study(arms), tmp_path)
    before = (tmp_path / "figures" / "flips.png").read_bytes()
    (tmp_path / "image.png").unlink()
    write_report(study(arms), tmp_path)
    assert (tmp_path / "figures" / "flips.png").read_bytes() == before
    assert 'id="flips"' in (tmp_path / "report.html").read_text()


def test_a_study_without_any_run_has_a_report_too(tmp_path):
    write_report(study({"a": {}}), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "not run" in page and "<img" not in page
