"""Picture files as arrays: what a profile and a label map may be, and what every other file is answered with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""What PIL calls grey pixels of more than 8 bits."""

T = TypeVar("T")


def size(path: Path) -> tuple[int, int]:
    """H and W of a picture as a viewer shows it.

    Raises:
        ValueError: the file is no picture, or one that is not read; as for the readers below.
    """
    return _opened(path, _size)


def read_profile(path: Path, grey_range: Sequence[float] | None = None) -> np.ndarray:
    """A profile as uint8 [H, W] where all channels are equal, else [H, W, 3].

    Args:
        path: a picture file.
        grey_range: values of a grey picture of more than 8 bits that become black and white; what lies beyond is cut
            off, what lies between is spread evenly. None refuses such pictures: what their largest value stands for
            is not in the file.

    Raises:
        ValueError: names the file, what is wrong with it and the remedy.
    """
    return _opened(path, lambda picture: _profile(picture, grey_range))


def grey_values(path: Path) -> np.ndarray | None:
    """The values [H, W], float64, of a grey picture of more than 8 bits; None for any other, which is not decoded.

    Raises:
        ValueError: names the file, what is wrong with it and the remedy.
    """
    return _opened(path, lambda picture: _values(_upright(picture)) if picture.mode in DEEP else None)


def read_label(path: Path) -> np.ndarray:
    """A label map as uint8 [H, W] of its stored values; a palette picture's values are its indices.

    Raises:
        ValueError: names the file, what is wrong with it and the remedy.
    """
    return _opened(path, _label)


def _profile(picture: Image.Image, grey_range: Sequence[float] | None) -> np.ndarray:
    if picture.mode in DEEP:
        return _eight_bit(_upright(picture), grey_range)
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise ValueError(f"pixels are of type {picture.mode}; save it as 8-bit grey or RGB")
    picture = _upright(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            raise ValueError("parts of it are see-through, and what they show is no data; save it without transparency")
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    array = np.asarray(picture.convert("RGB"))
    equal = (array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all()
    return array[..., 0].copy() if equal else array


def _label(picture: Image.Image) -> np.ndarray:
    if picture.mode not in ("1", "L", "P"):
        raise ValueError(
            f"a label map holds one 8-bit value per pixel (class index), this one is {picture.mode}; "
            "save class indices as a grey picture"
        )
    return np.asarray(_upright(picture), dtype=np.uint8)


def _eight_bit(picture: Image.Image, grey_range: Sequence[float] | None) -> np.ndarray:
    """Grey values as uint8 by one rule for all profiles, never by a picture's own extremes."""
    array = _values(picture)
    if grey_range is None:
        raise ValueError(
            f"pixels are of type {picture.mode}, with values {array.min():g} to {array.max():g}; say for all profiles "
            "which value is black and which white, or save it as 8-bit grey"
        )
    return in_greys(array, grey_range)


def in_greys(array: np.ndarray, grey_range: Sequence[float]) -> np.ndarray:
    """Values [H, W] of any range as uint8: what ``grey_range`` calls black and white, and evenly what lies between."""
    black, white = grey_range
    return np.rint(255 * ((array - black) / (white - black)).clip(0, 1)).astype(np.uint8)


def _values(picture: Image.Image) -> np.ndarray:
    array = np.asarray(picture).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("some of its pixels are not a number; fill them before")
    return array


def _size(picture: Image.Image) -> tuple[int, int]:
    sideways = _orientation(picture) >= 5
    return (picture.width, picture.height) if sideways else (picture.height, picture.width)


def _orientation(picture: Image.Image) -> int:
    """1: as stored; 2 to 4: mirrored or upside down; 5 to 8: on its side. A PNG may be decoded to find that out."""
    return int(picture.getexif().get(ExifTags.Base.Orientation, 1))


def _upright(picture: Image.Image) -> Image.Image:
    """The picture decoded, as a viewer shows it; a camera turns no pixels, it writes down how it was held."""
    picture.load()
    return picture if _orientation(picture) == 1 else ImageOps.exif_transpose(picture)


def _opened(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Calls ``use`` with a picture whose header is in order and whose pixels are not decoded yet."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # PIL looks at the header alone here, and only warns of pictures up to twice too large
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                _check(picture)
                return use(picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"{path.name}: more than {Image.MAX_IMAGE_PIXELS} pixels by its header, so it was not decoded; cut it into "
            "several profiles"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"{path.name}: not a picture, whatever its name says; replace it") from None
    except MemoryError:
        raise
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    except Exception as error:  # a damaged file makes PIL's readers raise almost anything
        raise ValueError(f"{path.name}: unreadable or truncated ({error}); replace it") from None


def _check(picture: Image.Image) -> None:
    """What the header says against reading the picture."""
    # a telephone's MPO holds previews behind the picture that viewers show
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        raise ValueError(f"holds {frames} pictures (pages or an animation); save the one you mean as its own file")
    if (
        ";16" in str(getattr(picture, "tile", "")) and picture.mode not in DEEP
    ):  # PIL would drop half of the bits without a word
        raise ValueError("16 bits per channel in several channels are not read; save it as 8-bit, or as 16-bit grey")
    # PIL reads some of these wrongly
    if picture.format == "TIFF" and _orientation(picture) != 1:
        raise ValueError("a TIFF that is stored mirrored or turned; save it upright")
