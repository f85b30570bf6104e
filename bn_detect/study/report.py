"""The report of a study: one self-contained HTML file, its table and its pictures."""

import base64
import json
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..runtime.files import write_text
from .figures import draw_figures
from .measures.registry import MEASURES
from .results import Findings
from .summary import Leaks, cells, claims, table

COLUMNS = 8  # of a results table at most, so that a page of 1,300 pixels shows it whole


def write_report(results: dict, folder: Path) -> Path:
    """Write `report.html`, `table.md` and `figures/*.png` from a results.json.

    The HTML holds its pictures and loads nothing; every name from a config or a dataset is escaped.

    Returns:
        The path of `report.html`.
    """
    findings = Findings(results)
    figures = draw_figures(findings, folder / "figures")
    write_text(folder / "table.md", f"{table(findings)}\n")
    write_text(folder / "report.html", _render(findings, figures))
    return folder / "report.html"


def own_tables(findings: Findings) -> list[str]:
    """Markdown of the measures that have tables of their own."""
    measured = [(name, MEASURES[name].tables) for name in findings.measures]
    return [
        tables({_plain(arm): runs for arm, runs in findings.by_arm(name).items()})
        for name, tables in measured
        if tables is not None
    ]


def _plain(arm: str) -> str:
    """Return an arm's name without what would end a line or a cell of Markdown.

    Two arms that differ in such characters only are refused, since their folders are the same.
    """
    return " ".join(arm.split()).replace("|", "/")


def _render(findings: Findings, figures: dict[str, Path]) -> str:
    environment = Environment(
        loader=PackageLoader("bn_detect.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = Leaks(findings)
    probed = bool(found.answers)
    failures = [(n, failure) for n, arm in findings.arms.items() for failure in arm["failed"]]
    return environment.get_template("report.html.j2").render(
        study=findings.study,
        versions=findings.versions,
        command=findings.command,
        verdict=_verdict(findings, found) if probed else "",
        leaks=[(a, found.kind(a), found.sentence(a)) for a in findings.arms] if probed else [],
        note=found.note,
        claims=claims(findings),
        results=_results(findings),
        tables=[_html(text) for text in own_tables(findings)],
        failures=failures,
        figures=[(caption, path.stem, _data_url(path)) for caption, path in figures.items()],
        settings=json.dumps(findings.study, indent=2, ensure_ascii=False, default=str),
    )


def _verdict(findings: Findings, found: Leaks) -> str:
    """Sum the arms' verdicts up in a sentence."""
    words = {
        "leaks": "The head leaks in",
        "open": "A leak was seen, but not after correction, in",
        "image": "It depends on its companions' image alone in",
        "clean": "No leak was found in",
    }
    of_kind = {kind: [a for a in findings.arms if found.kind(a) == kind] for kind in words}
    said = [f"{words[kind]} {'; '.join(arms)}." for kind, arms in of_kind.items() if arms]
    return " ".join([*said, *found.gaps()])


def _results(findings: Findings) -> list[tuple[list[tuple[str, str]], list[list[str]]]]:
    """Return (headers with their meanings, rows) of tables that fit the page.

    The columns of a measure stay together where they can.
    """
    headers, rows = cells(findings, "\n")
    meanings = ["", "How many runs of the arm are measured, each with its own seed."]
    meanings += [column.meaning for column in findings.shown]
    meanings += ["What others found."] * (len(headers) - len(meanings))
    measure = ["", "", *(findings.columns[column.key][0] for column in findings.shown)]
    parts: list[list[int]] = [[1]]
    for _, columns in groupby(range(2, len(headers)), lambda i: measure[i : i + 1]):
        together = list(columns)
        if len(parts[-1]) + len(together) > COLUMNS and len(together) <= COLUMNS:
            parts.append([])
        for column in together:
            if len(parts[-1]) == COLUMNS:
                parts.append([])
            parts[-1].append(column)
    return [
        (
            [(headers[i], meanings[i]) for i in (0, *part)],
            [[row[i] for i in (0, *part)] for row in rows],
        )
        for part in parts
    ]


def _html(markdown: str) -> Markup:
    """Turn the Markdown of our own tables (headings, tables, lists, paragraphs) into HTML.

    The text above a table tells what its numbers mean; it is shown on hover too.
    """
    parts, above = [], ""
    for block in markdown.split("\n\n"):
        if block.startswith("#"):
            parts.append(Markup("<h3>{}</h3>").format(block.lstrip("# ")))
        elif block.startswith("|"):
            header, _, *rows = [line.strip("|").split("|") for line in block.splitlines()]
            parts.append(
                Markup(
                    '<div class="scroll"><table class="sortable" title="{}">'
                    "<thead>{}</thead><tbody>{}</tbody></table></div>"
                ).format(above, _row(header, "th"), Markup("").join(_row(r, "td") for r in rows))
            )
        else:
            above = block
            parts.append(
                Markup("<p>{}</p>").format(Markup("<br>").join(map(escape, block.splitlines())))
            )
    return Markup("\n").join(parts)


def _row(row: list[str], tag: str) -> Markup:
    texts = [Markup(f"<{tag}>{{}}</{tag}>").format(cell.strip()) for cell in row]
    return Markup("<tr>{}</tr>").format(Markup("").join(texts))


def _data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
