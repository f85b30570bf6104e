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
    assert "<script" not in page and "http" not in page
    assert page.count("&lt;script&gt;") >= 6  # title, heading, question, verdict, error, table
    assert page.count("<img ") == 6


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium in the PATH")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_in_a_browser(folder, width):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
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
        browser.close()


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
