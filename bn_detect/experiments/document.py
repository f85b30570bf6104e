"""results.json, pictures, and the document that tells what was found."""

from collections.abc import Mapping
from pathlib import Path

from ..runtime.files import write_atomically
from .section import Section


def write_document(path: Path, sections: Mapping[str, Section], facts: str) -> None:
    """Write a Markdown file, and its pictures into images/ beside it.

    Args:
        facts: how it was measured, one paragraph.
    """
    pictures = path.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    text = [_TITLE, "", facts]
    for section in sections.values():
        text += ["", section.text]
        for name, (caption, figure) in section.figures.items():
            file = f"experiment_{name}"
            figure.savefig(pictures / file, dpi=110, bbox_inches="tight")
            text += ["", f"![{caption}](images/{file})"]
    write_atomically(path, lambda file: file.write(("\n".join(text) + "\n").encode()))


_TITLE = """# Batch size, moving averages, domains and same-class batches, on digits

Wu & Johnson 2021 measured these on ImageNet with ResNet-50. Here is the same on scikit-learn's
1,797 handwritten digits (797 to train on, 1,000 for validation) with a small ResNet:
`make experiments`. This file is written by `tools/experiments.py` from what it measured."""
