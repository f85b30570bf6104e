"""Read the messages of gettext catalogs (.po files), a source of text in many languages."""

import re
from collections.abc import Iterator

LINE = re.compile(r'(?:(msgid|msgid_plural|msgstr(?:\[\d+\])?) )?"((?:[^"\\]|\\.)*)"')
# What is not text: %(name)s, %s, {name}, <tag>, &entity;, and escapes such as \n.
MARKUP = re.compile(r"%\([^)]*\)[a-z]|%[a-z]|\{[^}]*\}|<[^>]*>|&\w+;|\\.")


def messages(catalog: str) -> Iterator[tuple[str, str]]:
    """Yield each message and its (first) translation, without markup; the header is left out.

    Args:
        catalog: content of a .po file. Messages without a translation are left out.
    """
    for block in re.split(r"\n\s*\n", catalog):
        texts = {"msgid": "", "msgstr": ""}
        field = ""
        for line in block.splitlines():
            match = LINE.fullmatch(line.strip())
            if match is None:  # a comment, or an obsolete entry
                continue
            field = (match[1] or field).replace("[0]", "")
            if field in texts:
                texts[field] += match[2]
        if texts["msgid"] and texts["msgstr"]:
            yield plain(texts["msgid"]), plain(texts["msgstr"])


def plain(text: str) -> str:
    """Return `text` with a space in place of each piece of markup."""
    return re.sub(r"\s+", " ", MARKUP.sub(" ", text)).strip()
