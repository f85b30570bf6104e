"""A Markdown document on several studies, such as docs/experiments.md."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..runtime.files import write_text
from .figures import copy_figures, draw_figures
from .report import own_tables
from .results import Findings
from .summary import Leaks, claims, table

IMAGES = "images"  # beside the document


def write_document(path: Path, title: str, studies: Mapping[Path, dict]) -> None:
    """Write the document, and its pictures into images/ beside it.

    Args:
        studies: the results.json of each study, by the study's folder.
    """
    text = [f"# {title}", _facts(list(studies.values()))]
    for folder, results in studies.items():
        findings = Findings(results)
        text += [f"## {findings.study['name']}", *_section(findings)]
        figures = draw_figures(findings, folder / "figures")
        copied = copy_figures(figures, path.parent / IMAGES, Path(findings.study["file"]).stem)
        text += [f"![{caption}]({IMAGES}/{name})" for caption, name in copied.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n\n".join(text) + "\n")


def _section(findings: Findings) -> list[str]:
    text = [part for part in (findings.study["question"], findings.study["text"]) if part]
    if findings.shown:
        text.append(table(findings))
    text += own_tables(findings)
    found = Leaks(findings)
    if found.answers:
        verdicts = [f"* {arm} {found.sentence(arm)}." for arm in findings.arms]
        text += ["\n".join(verdicts), *found.gaps(), found.note]
    if lines := claims(findings):
        text.append(
            "\n".join(f"* {c}: **{answer}** {numbers}".rstrip() for c, answer, numbers in lines)
        )
    return text


def _facts(studies: list[dict]) -> str:
    runs = [run for results in studies for arm in results["arms"].values() for run in arm["runs"]]
    seconds = sum(run["train_seconds"] + run["measure_seconds"] for run in runs)
    seeds = max((run["seed"] for run in runs), default=0)
    return (
        f"{len(runs)} runs, {seeds} seeds, {seconds:.0f} seconds of training and measuring in all "
        f"({os.uname().machine}). Numbers are means over the seeds ± their standard deviation with "
        'Student\'s 95% interval; differences are paired by seed. "Seen" says that a '
        "difference is above 0 after Holm's correction over the claims of its study. This file is "
        "written by `bn-detect study ... --document` from what it measured."
    )
