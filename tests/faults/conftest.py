"""Faults, each a test with a row in docs/faults.md.

A test here carries `@pytest.mark.fault(what, should="...")` and says by the fixture `happened` what
it saw, in one line. `--faults FILE` runs all in full, and writes the table.
"""

import datetime
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tabulate import tabulate

from .fork_server import ForkServer
from .studies import Studies

SECTIONS = (
    "processes",
    "disk",
    "writers",
    "rois",
    "layers",
    "numbers",
    "data",
    "datasets",
    "annotations",
    "trust",
    "pickles",
    "starts",
    "commands",
    "settings",
    "studies",
    "measures",
    "long_runs",
)
ROWS = pytest.StashKey[list]()
SEEN = pytest.StashKey[list]()


def pytest_addoption(parser) -> None:
    parser.addoption("--faults", metavar="FILE", help="run in full, and write the table to FILE")


def pytest_configure(config) -> None:
    text = "fault(what, should): what is done to the program, and what should come of it"
    config.addinivalue_line("markers", text)
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def size(request) -> Callable[[int, int], int]:
    """Of (in the test suite, in full), the number that applies."""
    full = request.config.getoption("faults", None) is not None
    return lambda small, large: large if full else small


@pytest.fixture
def happened(request) -> Callable[[str], None]:
    """Keep a line on what came of the fault."""
    request.node.stash[SEEN] = []
    return request.node.stash[SEEN].append


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("datasets"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def studies(server, tmp_path_factory) -> Studies:
    return Studies(server.root, tmp_path_factory.mktemp("studies"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is None or not (report.when == "call" or report.skipped):
        return report
    names = item.callspec.params if hasattr(item, "callspec") else {}
    seen = "; ".join(item.stash.get(SEEN, []))
    if report.skipped:
        seen = f"not run: {report.longrepr[2].removeprefix('Skipped: ')}"
    elif report.failed:
        seen = f"FAILED: {str(call.excinfo.value).splitlines()[0]:.200}" if call.excinfo else seen
    row = {
        "section": Path(item.fspath).stem.removeprefix("test_"),
        "fault": marker.args[0].format(**names),
        "what should happen": marker.kwargs["should"].format(**names),
        "what happened": seen,
        "seconds": round(report.duration, 1),
    }
    item.config.stash[ROWS].append(row)
    return report


def pytest_terminal_summary(terminalreporter, config) -> None:
    path = config.getoption("faults", None)
    rows = config.stash[ROWS]
    if path is None or not rows:
        return
    text = document(rows)
    Path(path).write_text(text)
    terminalreporter.write_line(f"\n{text}\n{len(rows)} faults, written to {path}")


def document(rows: list[dict]) -> str:
    """docs/faults.md."""
    seconds = sum(row["seconds"] for row in rows)
    day = datetime.date.today().isoformat()
    parts = [
        "# Faults that were tried\n",
        f"By `make faults` on {day}: {machine()}. {len(rows)} faults, {seconds:.0f} seconds. Each "
        "is a test in `tests/faults`, which `make test` runs in a smaller size.\n",
    ]
    for section in SECTIONS:
        table = [row for row in rows if row["section"] == section]
        if not table:
            continue
        title = {"rois": "RoIs", "long_runs": "Long runs"}.get(section, section.capitalize())
        shown = [{k: v for k, v in row.items() if k != "section"} for row in table]
        shown = [
            {k: str(v).replace("|", "\\|").replace("\n", " ") for k, v in row.items()}
            for row in shown
        ]
        parts += [f"## {title}\n", tabulate(shown, headers="keys", tablefmt="pipe"), ""]
        if section == "long_runs":
            parts.append("![Memory and open files over the iterations](images/long_run.png)\n")
    return "\n".join(parts)


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return f"{cores} cores ({platform.machine()}), {gpu}, {platform.system()}, {versions}"
