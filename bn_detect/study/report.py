"""The report of a study: one self-contained HTML file, its table and its pictures."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..runtime.files import write_atomically
from .figures import draw_figures
from .summary import ArmSummary, cells, summarize, table


def write_report(results: dict, folder: Path) -> Path:
    """Write `report.html`, `table.md` and `figures/*.png` from a results.json.

    The HTML holds its pictures and loads nothing; every name from a config or a dataset is escaped.

    Returns:
        The path of `report.html`.
    """
    arms = summarize(results)
    figures = draw_figures(results, arms, folder / "figures")
    page = _render(results, arms, figures)
    _write(folder / "table.md", f"{table(arms, 'github')}\n")
    _write(folder / "report.html", page)
    return folder / "report.html"


def _render(results: dict, arms: list[ArmSummary], figures: dict[str, Path]) -> str:
    environment = Environment(
        loader=PackageLoader("bn_detect.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headers, rows = cells(arms, "\n")
    return environment.get_template("report.html.j2").render(
        study=results["study"],
        versions=results.get("versions") or {},
        command=results.get("command") or "",
        arms=arms,
        headers=headers,
        rows=rows,
        failures=[(arm.name, failure) for arm in arms for failure in arm.failed],
        figures=[(caption, path.stem, _data_url(path)) for caption, path in figures.items()],
        settings=json.dumps(results["study"], indent=2, ensure_ascii=False, default=str),
    )


def _data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
