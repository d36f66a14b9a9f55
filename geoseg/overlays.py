"""Label maps drawn over their profiles, pixel by pixel and with a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geoseg.palette import IGNORED_COLOUR
from geoseg.types import IGNORE

OPACITY = 0.45
"""Share of a class's colour in a pixel; the rest is the profile."""

LONG, LEAST = 480, 360
"""Pixels: shorter pictures are enlarged in whole numbers until a side has the first; no overlay is narrower than the
second, which a legend needs."""

LINE, EDGE = 20, 8
"""Pixels of a line of writing, and around everything."""


def draw_overlay(image: np.ndarray, labels: np.ndarray, classes: Mapping[str, str], path: Path, title: str) -> None:
    """Writes the colours of ``labels`` over ``image``, a title above and a legend with shares of the area below.

    Args:
        image: uint8 [H, W] or [H, W, 3].
        labels: [H, W], class indices, 255 where nothing is known: there the profile stays as it is.
        classes: K names to colours "#RRGGBB".
        path: a .png to write.
        title: of the picture.
    """
    grey = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    table = np.full((256, 3), IGNORED_COLOUR, np.float32)
    table[: len(classes)] = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in classes.values()]
    known = labels != IGNORE
    share = np.where(known, OPACITY, 0)[..., None]
    mixed = np.rint((1 - share) * grey + share * table[labels]).astype(np.uint8)
    height, width = labels.shape
    larger = max(1, math.ceil(LONG / max(height, width)))
    picture = Image.fromarray(mixed).resize((width * larger, height * larger), Image.Resampling.NEAREST)

    font = ImageFont.load_default(size=13)
    total = max(1, int(known.sum()))
    entries = [
        (colour, f"{name}  {100 * np.count_nonzero(labels == k) / total:.1f} %")
        for k, (name, colour) in enumerate(classes.items())
    ]
    if not known.all():
        entries.append(("#808080", "no trace"))  # as an amplitude of zero is drawn
    across = max(picture.width, LEAST, math.ceil(font.getlength(title)))
    places, x, y = [], 0, 0
    for _, text in entries:
        wide = LINE + 4 + math.ceil(font.getlength(text)) + 2 * EDGE
        if x and x + wide > across:
            x, y = 0, y + LINE
        places.append((x, y))
        x += wide
    top = EDGE + LINE
    below = top + picture.height + EDGE
    whole = Image.new("RGB", (across + 2 * EDGE, below + y + LINE + EDGE), "white")
    whole.paste(picture, (EDGE, top))
    pen = ImageDraw.Draw(whole)
    pen.text((EDGE, EDGE - 2), title, fill="black", font=font)
    for (colour, text), (x, y) in zip(entries, places, strict=True):
        left, upper = EDGE + x, below + y
        pen.rectangle((left, upper + 3, left + 14, upper + 15), fill=colour, outline="#666666")
        pen.text((left + LINE, upper), text, fill="black", font=font)
    whole.save(path)
