"""Letters, from a small wheel that is made here; what they show is what they say."""

import dataclasses
import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from bn_detect.data import DatasetError, check_dataset, prepare_dataset, register_dataset
from bn_detect.data.datasets import letters
from bn_detect.data.datasets.sources.gettext_catalogs import messages

from .test_leaky_shapes import digest

WORDS = {
    "latin": "Please enter a valid address and try the log in again",
    "cyrillic": "Введите правильный адрес электронной почты пожалуйста ещё раз",
    "greek": "Εισάγετε μια έγκυρη διεύθυνση και προσπαθήστε ξανά παρακαλώ",
}
CATALOG = """# a comment
msgid ""
msgstr "Content-Type: text/plain"

#, fuzzy
msgid "Not <b>%(name)s</b> {here}"
msgid_plural "ignored"
msgstr[0] "Nein &amp; "
"nicht\\n%s hier"
msgstr[1] "ignored"

msgid "untranslated"
msgstr ""

#~ msgid "obsolete"
#~ msgstr "veraltet"
"""


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "django.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for alphabet, languages in letters.LANGUAGES.items():
            for language in languages:
                words = WORDS[alphabet].split()
                texts = [" ".join(words[i:] + words[:i]) for i in range(len(words))] + words
                entries = [f'msgid "key {n} of"\nmsgstr "{t}"' for n, t in enumerate(texts)]
                archive.writestr(
                    f"django/conf/locale/{language}/LC_MESSAGES/django.po", "\n\n".join(entries)
                )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(letters, "WHEEL", dataclasses.replace(letters.WHEEL, sha256=sha256))
    yield path
    register_dataset("letters")


def test_catalogs_are_read_without_markup():
    assert list(messages(CATALOG)) == [("Not", "Nein nicht hier")]


def test_words_are_capitals_of_one_alphabet():
    assert letters.words_of("Señor, 2 Йод ёж a été élu", "latin") == ["SENOR", "ETE", "ELU"]
    assert letters.words_of("Йод, ёж OK Ωm", "cyrillic") == ["ЙОД", "ЁЖ"]


def test_pages_are_of_one_alphabet_and_the_same_each_time(wheel, tmp_path):
    options = {"images": 9, "val_images": 3, "source": str(wheel)}
    for root in ("one", "two"):
        assert prepare_dataset("letters", options, root=tmp_path / root)
    assert digest(tmp_path / "one/letters") == digest(tmp_path / "two/letters")
    assert not prepare_dataset("letters", {**options, "source": "not read"}, root=tmp_path / "two")
    summary = check_dataset("letters_train")
    assert (summary.images, summary.categories) == (9, 3) and summary.annotations > 50
    coco = json.loads(Path(MetadataCatalog.get("letters_train").json_file).read_text())
    assert Counter(a["category_id"] for a in coco["annotations"] if a["image_id"] < 4).keys() == {
        1,
        2,
        3,
    }
    for annotation in coco["annotations"]:
        image = coco["images"][annotation["image_id"] - 1]
        alphabet = letters.ALPHABETS[annotation["category_id"] - 1]
        assert image["language"] in letters.LANGUAGES[alphabet]
        assert letters.alphabet_of_letter(annotation["letter"]) == alphabet


def test_a_box_is_the_ink_of_its_letter(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(letters, "_printed", lambda page, rng: page)
    with zipfile.ZipFile(wheel) as archive:
        texts = letters.read_texts(archive)["val"]
    fonts = {font: letters._read_font(font) for font in letters.FONTS}
    options = letters.LettersOptions(spacing=8)
    for number in range(3):
        page = letters.draw_page(texts, fonts, options, "val", number)
        ink = np.asarray(page.image) < 255
        for each in page.objects:
            x, y, width, height = map(int, each["bbox"])
            assert ink[y : y + height, x : x + width].any()
            assert not ink[y : y + height, x - 4 : x - 1].any()  # apart from its neighbours
            ink[y : y + height, x : x + width] = False
        assert not ink.any()


def test_another_wheel_or_font_is_refused(wheel, tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match="no wheel at .*absent"):
        prepare_dataset("letters", {"source": str(tmp_path / "absent")}, root=tmp_path)
    monkeypatch.setitem(letters.FONTS, "DejaVuSerif", "0" * 64)
    with pytest.raises(DatasetError, match="DejaVuSerif.ttf .*sha256 is .*, must be 0000"):
        prepare_dataset("letters", {"source": str(wheel)}, root=tmp_path)
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(DatasetError, match="django.whl .*sha256"):
        prepare_dataset("letters", {"source": str(wheel)}, root=tmp_path)
    assert not (tmp_path / "letters").exists()


def test_paper_and_ink():
    pages = [
        letters._printed(Image.new("L", (64, 64), 255), np.random.default_rng(i)) for i in (1, 2)
    ]
    means = [np.asarray(page).mean() for page in pages]
    assert all(page.mode == "RGB" for page in pages) and min(means) > 150 and means[0] != means[1]
