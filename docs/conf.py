"""Settings of the site that `make docs` builds from the pages of this folder and the docstrings.

The pages are written for a reader of the repository. Here their links are made to fit the site: a
page at the root of the repository has its place under `about/`, README is the first page, and the
name of a file or folder of the code is no link.
"""

import posixpath
import re
from pathlib import Path

from sphinx.domains.python import PyObject

from bn_detect import __version__

ROOT = Path(__file__).resolve().parents[1]
project = "bn_detect"
author = "the maintainers of bn_detect"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # a field of a dataclass is described once
html_theme = "furo"
html_title = f"bn_detect {version}"
html_copy_source = html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["site.css"]

# File at the root of the repository -> page of the site.
ROOT_PAGES = {
    "README.md": "docs/index.md",
    "BENCHMARKS.md": "docs/about/benchmarks.md",
    "CHANGELOG.md": "docs/about/changelog.md",
    "CONTRIBUTING.md": "docs/about/contributing.md",
    "SECURITY.md": "docs/about/security.md",
}
CODE = r"```.*?```|`[^`\n]*`"
LINK = r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)"
CODE_OR_LINK = re.compile(f"{CODE}|{LINK}", flags=re.DOTALL)


def page_of(name: str, text: str) -> str:
    """Return the text of a page of the site, with links that fit the site.

    Args:
        name: the page, without the suffix, relative to docs.
        text: what its file holds. A line `<!-- FILE.md -->` stands for a file at the root.
    """
    place = f"docs/{name}.md"
    text = _links(text, posixpath.dirname(place), place)
    for file, page in ROOT_PAGES.items():
        if page == place:
            text = text.replace(f"<!-- {file} -->", _links((ROOT / file).read_text(), "", place))
    return text


def _links(text: str, written_in: str, place: str) -> str:
    """Replace the links of a text that was written for a folder by those that fit a page."""

    def replaced(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        if target is None:  # code
            return match[0]
        path = posixpath.normpath(posixpath.join(written_in, target))
        path = ROOT_PAGES.get(path, path)
        if not (ROOT / path).exists():
            return match[0]  # which the builder complains of
        if not picture and not (path.startswith("docs/") and (ROOT / path).is_file()):
            return words
        link = posixpath.relpath(path, posixpath.dirname(place))
        return f"{picture}[{words}]({link}{anchor or ''})"

    return CODE_OR_LINK.sub(replaced, text)


def separated(lines: list[str]) -> None:
    """Write "low, high: text" as "low/high: text", since a field of the site has one name."""
    for number, line in enumerate(lines):
        if names := re.match(r"\s+(\w+(, \w+)+): ", line):
            lines[number] = line.replace(names[1], names[1].replace(", ", "/"), 1)


def setup(app):
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", lambda *a: separated(a[-1]), priority=400)
    app.connect("source-read", lambda _, name, lines: lines.__setitem__(0, page_of(name, lines[0])))
