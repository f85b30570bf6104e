"""Letters of three alphabets: real text whose letters tell their alphabet by their companions.

A page is in one language, so its letters are of one alphabet. Most capitals (A B E O P C T H ...)
look the same in Latin, Cyrillic and Greek, so the class of a letter, its alphabet, often cannot be
seen in the letter itself. A head that sees one RoI at a time cannot do better than its shape
allows. BatchNorm over the RoIs of a page can.

The texts are the translations in the wheel of Django (BSD), which is read and not installed. The
fonts are those of DejaVu in the installed matplotlib. Both are pinned by sha256.
"""

import importlib.util
import io
import re
import unicodedata
import zipfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..errors import DatasetError
from ..options import Options, check_range, option, source_option
from ..registration import SPLITS
from .coco_writer import Sample, write_split
from .sources.gettext_catalogs import messages
from .sources.wheels import Wheel, open_wheel, verify

WHEEL = Wheel(
    "django==5.2.19",
    sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    licence="BSD-3-Clause",
)
LANGUAGES = {
    "latin": ("en", "de", "fr", "es", "it", "pl", "nl", "sv", "pt", "tr"),
    "cyrillic": ("ru", "uk", "bg", "mk", "be"),
    "greek": ("el",),
}
ALPHABETS = tuple(LANGUAGES)
FONTS = {
    "DejaVuSans": "3fdf69cabf06049ea70a00b5919340e2ce1e6d02b0cc3c4b44fb6801bd1e0d22",
    "DejaVuSerif": "107244956e9962b9e96faccdc551825e0ae0898ae13737133e1b921a2fd35ffa",
    "DejaVuSansMono": "602ec86b8948cfcd956482fe64f94c36c867770149ef2f791d4613f443bcecb3",
    "DejaVuSans-Bold": "b184b89e3c1075f22f6b71575b6fc20d4972b3cfd3b23322ca6fd596dcaef167",
    "DejaVuSerif-Bold": "c3753f2ed6bc673f15846dc45addbeb3b9c872f32fb18fd53a21f1bef1ed7676",
}
CATALOG = re.compile(r"/locale/([a-z]+)/LC_MESSAGES/django\.po$")
MARGIN = 4  # px around the text


@dataclass(frozen=True)
class LettersOptions(Options):
    """Size and number of the pages. `spacing` keeps neighbours out of a letter's receptive field.

    Raises:
        ValueError: a value outside its range.
    """

    images: int = option(800, "training images", low=3, high=10**6)
    val_images: int = option(150, "validation images", low=3, high=10**6)
    size: int = option(224, "side of an image, px", low=64, high=4096)
    letters: int = option(24, "letters on a page, at most", low=2, high=1000)
    min_size: int = option(34, "smallest font size, px", low=8, high=200)
    max_size: int = option(44, "largest font size, px", low=8, high=200)
    spacing: int = option(1, "space between letters, px", low=0, high=200)
    seed: int = option(0, "seed of everything that is random", low=0, high=2**32 - 1)
    source: str = source_option("the wheel of Django")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("max_size", self.max_size, self.min_size, self.size // 4)


def prepare(folder: Path, name: str, options: LettersOptions) -> dict[str, Any]:
    """Write SPLIT/*.png, annotations/NAME_SPLIT.json and overview_SPLIT.png.

    Images of the three alphabets alternate. The two splits have different texts. An annotation has
    also `letter`, and an image `language` and `font`. The same options give the same files (with
    the same Pillow, which draws the letters).

    Returns:
        the source and the counts of each split.

    Raises:
        DatasetError: the wheel or a font cannot be had or is not the right one.
    """
    with open_wheel(WHEEL, options.source) as archive:
        texts = read_texts(archive)
    fonts = {font: _read_font(font) for font in FONTS}
    counts = {}
    for split, images in zip(SPLITS, (options.images, options.val_images), strict=True):
        samples = (draw_page(texts[split], fonts, options, split, i) for i in range(images))
        info = {"description": f"{name}: words of {WHEEL.requirement}, {options.recorded()}"}
        licences = [{"id": 1, "name": WHEEL.licence}]
        counts[split] = write_split(
            folder, name, split, ALPHABETS, samples, length=images, info=info, licenses=licences
        )
    return {"source": {**asdict(WHEEL), "fonts": FONTS}, "counts": counts}


def read_texts(archive: zipfile.ZipFile) -> dict[str, dict[str, list[list[str]]]]:
    """Return for each split and language the messages, each a list of words in capitals.

    A word is of letters of the language's alphabet alone, at least two. Every fifth message is for
    validation. English is the language of the messages' keys.
    """
    alphabet_of = {each: alphabet for alphabet, some in LANGUAGES.items() for each in some}
    texts: dict[str, set[str]] = defaultdict(set)
    for path in sorted(archive.namelist()):
        match = CATALOG.search(path)
        if match and match[1] in alphabet_of:
            for key, translation in messages(archive.read(path).decode()):
                texts[match[1]].add(translation)
                texts["en"].add(key)
    splits: dict[str, dict[str, list[list[str]]]] = {split: {} for split in SPLITS}
    for language, alphabet in alphabet_of.items():
        lines = [words_of(text, alphabet) for text in sorted(texts[language])]
        lines = [words for words in lines if words]
        splits["val"][language] = lines[::5]
        splits["train"][language] = [words for i, words in enumerate(lines) if i % 5]
        if len(lines) < 10:
            raise DatasetError(f"{WHEEL.requirement} has no messages in {language!r}")
    return splits


def words_of(text: str, alphabet: str) -> list[str]:
    """Return the words of `text` that are of one alphabet, in capitals without accents."""
    text = unicodedata.normalize("NFD", text.upper())
    text = "".join(c for c in text if unicodedata.category(c) != "Mn" or c in "\u0306\u0308")
    words = re.findall(r"[^\W\d_]{2,}", unicodedata.normalize("NFC", text))
    return [w for w in words if all(alphabet_of_letter(c) == alphabet for c in w)]


def alphabet_of_letter(letter: str) -> str:
    """Return "latin", "cyrillic", "greek" or another first word of the letter's Unicode name."""
    return unicodedata.name(letter, "").partition(" ")[0].lower()


def _read_font(name: str) -> bytes:
    spec = importlib.util.find_spec("matplotlib")  # find_spec does not run it
    if spec is None or spec.origin is None:
        raise DatasetError("the letters' fonts are those of matplotlib: pip install matplotlib")
    path = Path(spec.origin).parent / f"mpl-data/fonts/ttf/{name}.ttf"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read: {error.strerror}; matplotlib brings it"
        ) from error
    verify(content, FONTS[name], f"{path} (expected DejaVu 2.37, as in matplotlib 3.11.2)")
    return content


def draw_page(
    texts: dict[str, list[list[str]]],
    fonts: dict[str, bytes],
    options: LettersOptions,
    split: str,
    number: int,
) -> Sample:
    """Draw one page, which depends on the arguments alone.

    Args:
        texts: messages by language, of one split.
        fonts: content of the TrueType files by name.
    """
    rng = np.random.default_rng([options.seed, SPLITS.index(split), number])
    category = number % len(ALPHABETS)
    language = str(rng.choice(LANGUAGES[ALPHABETS[category]]))
    font_name = str(rng.choice(list(fonts)))
    pixels = int(rng.integers(options.min_size, options.max_size + 1))
    font = load_font(fonts[font_name], pixels)
    page = Image.new("L", (options.size, options.size), 255)
    draw = ImageDraw.Draw(page)
    objects = []
    for letter, x, y in _places(texts[language], font, pixels, options, rng):
        draw.text((x, y), letter, font=font, fill=0)
        left, top, right, bottom = font.getbbox(letter)
        objects.append(
            {
                "bbox": [float(v) for v in (x + left, y + top, right - left, bottom - top)],
                "category_id": category + 1,
                "letter": letter,
            }
        )
    fields = {"language": language, "font": font_name, "license": 1}
    return Sample(_printed(page, rng), objects, fields)


def load_font(content: bytes, pixels: int) -> ImageFont.FreeTypeFont:
    """Return the font at a size, laid out by Pillow itself, which is the same everywhere."""
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(io.BytesIO(content), pixels, layout_engine=layout)


def _places(
    messages_: list[list[str]],
    font: ImageFont.FreeTypeFont,
    pixels: int,
    options: LettersOptions,
    rng: np.random.Generator,
) -> list[tuple[str, int, int]]:
    """Set messages in lines until the page is full; return letters with their corners (x, y)."""
    start, bottom = int(rng.integers(MARGIN, 3 * MARGIN + 1)), options.size - MARGIN
    x, y, line = start, int(rng.integers(MARGIN, options.size // 3)), 1.2 * pixels + options.spacing
    placed: list[tuple[str, int, int]] = []
    while True:
        for word in messages_[rng.integers(len(messages_))]:
            advances = [round(font.getlength(c)) + options.spacing for c in word]
            if x + sum(advances) > bottom and x > start:
                x, y = start, y + round(line * rng.uniform(1.1, 1.3))
            if y + line > bottom:
                return placed
            for letter, advance in zip(word, advances, strict=True):
                if x + advance > bottom:
                    break
                placed.append((letter, x, y))
                x += advance
                if len(placed) == options.letters:
                    return placed
            x += pixels // 2


def _printed(page: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur the page and give it paper, ink, uneven light and noise; return an RGB image."""
    blurred = page.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    ink, paper = rng.uniform(10, 100), rng.uniform(170, 245)
    levels = ink + (paper - ink) * np.asarray(blurred, np.float64) / 255
    slope = np.linspace(-1, 1, page.width)
    levels *= 1 + rng.uniform(-0.12, 0.12) * slope + rng.uniform(-0.12, 0.12) * slope[:, None]
    levels += rng.normal(0, 6, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
