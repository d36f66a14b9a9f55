"""Class indices and colour pictures, each from the other.

Generative methods paint a label map as a picture; a palette says which colour means which class and reads a painted
picture back as probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from geoseg.types import IGNORE, ignored

SFM_FACIES = ("#F19E9C", "#EB5C56", "#43972B", "#FEE76B", "#F3B677", "#0082F4")
"""The six facies colours of the SeismicFoundationModel data set, the source of the published label maps."""

SOFTNESS = 0.1
"""Softness of a palette that nothing else is said of, see ``Palette``."""

IGNORED_COLOUR = (128, 128, 128)
"""Pixels to ignore are painted mid-grey, a colour that no palette here has for a class."""


class Palette:
    """A one-to-one map between K classes and K colours.

    Args:
        colours: K colours as "#RRGGBB", at least two, all different.
        softness: RMS colour distance (0..1 per channel) at which a class loses a factor e of its probability;
            0.1 lets a pixel half way between two colours stay undecided and one on a colour be sure of it. None, for
            two colours, reads a mixture of them as what it is: of both as much as went into it.

    >>> palette = Palette(["#000000", "#ffffff"])
    >>> palette.paint(torch.tensor([[[0, 1]]]))[0, 0].tolist()
    [[0.0, 1.0]]
    >>> palette.decode(palette.paint(torch.tensor([[[0, 1]]]))).argmax(1).tolist()
    [[[0, 1]]]
    """

    def __init__(self, colours: Sequence[str], softness: float | None = SOFTNESS) -> None:
        self.hex = tuple(str(colour).upper() for colour in colours)
        self.softness = softness
        self.colours = torch.tensor([_rgb(colour) for colour in self.hex], dtype=torch.float32) / 255  # [K, 3]
        if len(set(self.hex)) != len(self.hex) or len(self.hex) < 2:
            raise ValueError(f"a palette needs at least two colours, all different; got {list(self.hex)}")
        if softness is None and len(self.hex) != 2:
            raise ValueError(
                f"softness=null reads mixtures of two colours, and there are {len(self.hex)}; give a number"
            )
        if softness is not None and softness <= 0:
            raise ValueError(f"softness must be above 0, got {softness}")

    def __repr__(self) -> str:
        return f"Palette({list(self.hex)})"

    @property
    def num_classes(self) -> int:
        """K, the number of colours."""
        return len(self.hex)

    def paint(self, labels: Tensor) -> Tensor:
        """Draws a label map.

        Args:
            labels: int64 [B, H, W] in 0..K-1, or 255 = ignore (painted mid-grey). With two colours also float in
                [0, 1], nan = ignore: as much of the second colour is mixed into the first.

        Returns:
            float32 [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: a label has no colour.
        """
        if labels.is_floating_point():
            return self._mix(labels)
        labels = labels.long()
        gaps = labels == IGNORE
        if (((labels < 0) | (labels >= self.num_classes)) & ~gaps).any():
            raise ValueError(
                f"labels {sorted(set(labels.unique().tolist()) - {IGNORE})} do not fit the {self.num_classes} colours; "
                "give the palette one colour per class"
            )
        grey = torch.tensor([IGNORED_COLOUR], dtype=torch.float32) / 255
        table = torch.cat([self.colours, grey]).to(labels.device)  # [K + 1, 3]
        return table[labels.masked_fill(gaps, self.num_classes)].permute(0, 3, 1, 2).contiguous()

    def _mix(self, shares: Tensor) -> Tensor:
        if self.num_classes != 2 or bool(((shares < 0) | (shares > 1)).any()):
            raise ValueError(
                f"a continuous target mixes two colours by shares in 0..1, got {self.num_classes} colours and values "
                f"from {float(shares.nan_to_num(0.5).min()):g} to {float(shares.nan_to_num(0.5).max()):g}"
            )
        first, second = self.colours.to(shares.device).view(2, 1, 3, 1, 1)
        grey = torch.tensor(IGNORED_COLOUR, device=shares.device).view(1, 3, 1, 1) / 255
        mixed = first + shares.float()[:, None] * (second - first)
        return torch.where(shares.isnan()[:, None], grey, mixed)

    def write(self, labels: Tensor, path: Path) -> None:
        """Writes a label map as a PNG whose pixel values are class indices and whose colours are the palette's.

        Args:
            labels: int [H, W] in 0..K-1, or 255 = ignore.
            path: ends in .png; its folder must exist.
        """
        table = [IGNORED_COLOUR] * 256
        table[: self.num_classes] = [_rgb(colour) for colour in self.hex]
        picture = Image.fromarray(labels.to("cpu", torch.uint8).numpy())
        picture.putpalette([channel for colour in table for channel in colour])
        picture.save(path)

    def decode(self, painted: Tensor) -> Tensor:
        """Reads a painted picture back.

        Args:
            painted: float [B, 3, H, W] in [0, 1]; a grey picture [B, 1, H, W] counts as three equal channels.

        Returns:
            float32 [B, K, H, W], a softmax over squared colour distance, so the nearest colour is the most probable;
            without a softness the shares of the two colours in the nearest of their mixtures. For black and white,
            or two greys, that goes by the mean of the three channels.
        """
        if self.softness is not None:
            return self.logits(painted).softmax(dim=1)
        first, second = self.colours.to(painted.device)
        along = second - first
        with torch.autocast(painted.device.type, enabled=False):
            offset = painted.float().expand(-1, 3, -1, -1) - first.view(1, 3, 1, 1)
            share = torch.einsum("bchw,c->bhw", offset, along / along.square().sum()).clamp(0, 1)
        return torch.stack([1 - share, share], dim=1)

    def logits(self, painted: Tensor) -> Tensor:
        """What ``decode`` takes the softmax of, [B, K, H, W]: squared RMS distances over ``-softness**2``, shifted."""
        assert self.softness is not None
        painted = painted.float().expand(-1, 3, -1, -1)
        colours = self.colours.to(painted.device)
        # |p - c|^2 without the [B, K, 3, H, W] intermediate; |p|^2 is the same for every class and drops out
        with torch.autocast(painted.device.type, enabled=False):  # close colours need all their digits
            cross = torch.einsum("bchw,kc->bkhw", painted, colours)
        squared = colours.square().sum(1)[None, :, None, None] - 2 * cross
        return -squared / (3 * self.softness**2)

    @property
    def seams(self) -> bool:
        """Whether somewhere on the line between two colours a third one is as near as they, so that it may be read.

        >>> Palette(separated_palette(4)).seams, Palette(separated_palette(5)).seams
        (False, True)
        """
        # where a third colour becomes as near as an end it stays so up to the middle: looking there is enough
        middles = (self.colours[:, None] + self.colours) / 2  # [K, K, 3]
        near = (middles[:, :, None] - self.colours).square().sum(-1)  # [K, K, K], to every colour
        own = near.diagonal(dim1=0, dim2=2).T[:, :, None]  # to one of the ends; both are as far
        i, j, k = torch.meshgrid(*[torch.arange(self.num_classes)] * 3, indexing="ij")
        third = (k != i) & (k != j) & (i != j)
        return bool(((near <= own + 1e-3) & third).any())

    def check_separated(self, margin: float) -> None:
        """Looks whether every colour keeps its distance from the lines between two others.

        What is drawn on the border of two classes lies on the line between their colours; a third colour on it would be
        read there as a class that is not there.

        Args:
            margin: smallest RMS distance, 0..1 per channel.

        Raises:
            ValueError: names the three colours that come closest.

        >>> Palette(["#000000", "#FF0000", "#FFFFFF"]).check_separated(0.1)
        """
        if self.num_classes == 2:
            return
        points, starts, ends = self.colours[:, None, None], self.colours[:, None], self.colours
        apart = _to_segment(points, starts, ends)  # [K, K, K]: of k from the line between i and j
        k, i, j = torch.meshgrid(*[torch.arange(self.num_classes)] * 3, indexing="ij")
        apart = apart.masked_fill((j >= i) | (k == i) | (k == j), torch.inf)
        distance = float(apart.min())
        if distance < margin:
            k, i, j = torch.unravel_index(apart.argmin(), apart.shape)
            raise ValueError(
                f"colour {self.hex[k]} (class {k}) lies {distance:.2f} from the line between {self.hex[j]} (class {j}) "
                f"and {self.hex[i]} (class {i}), so a border between these two would be read as the third; wanted at "
                f"least {margin:g}: choose other colours, or null for those that keep apart"
            )


def without_gaps(target: Tensor) -> Tensor:
    """A target [H, W] whose ignored pixels have the value of the nearest pixel that counts.

    They are in no loss, but an autoencoder would let another colour bleed into cells that are.
    """
    gaps = ignored(target)
    if not gaps.any():
        return target
    if gaps.all():
        return torch.zeros_like(target)
    rows, columns = ndimage.distance_transform_edt(gaps.numpy(), return_distances=False, return_indices=True)
    return target[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]


SEPARABLE = 13
"""Classes for which there are colours that keep an RMS distance of 0.1 from all lines between others."""

TETRAHEDRON = ((0.2, 0.2, 0.2), (0.8, 0.8, 0.2), (0.8, 0.2, 0.8), (0.2, 0.8, 0.8))
OCTAHEDRON = ((0.1, 0.5, 0.5), (0.9, 0.5, 0.5), (0.5, 0.1, 0.5), (0.5, 0.9, 0.5), (0.5, 0.5, 0.1), (0.5, 0.5, 0.9))
CUBE = (*TETRAHEDRON, (0.8, 0.8, 0.8), (0.2, 0.2, 0.8), (0.2, 0.8, 0.2), (0.8, 0.2, 0.2))
"""Colours, none of them saturated: the latents of such colours are far from those of pictures."""


def separated_palette(num_classes: int) -> list[str]:
    """Colours for K classes none of which lies near the line between two others.

    What lies on a line is read as one of its ends where all triangles of colours have acute angles, which holds for the
    corners of a tetrahedron, up to four classes. Those of an octahedron, up to six, and of a cube, up to eight, have
    right angles: in the very middle of a line other colours may be as near as its ends. Beyond, each further colour is
    the one of a grid that keeps all distances largest, and up to 13 keep an RMS distance of 0.1 from all lines.

    Raises:
        ValueError: there are more classes than that.

    >>> separated_palette(3)
    ['#333333', '#CCCC33', '#CC33CC']
    >>> Palette(separated_palette(13)).check_separated(0.1)
    """
    if num_classes > SEPARABLE:
        raise ValueError(
            f"colours that keep apart from the lines between others are there for at most {SEPARABLE} classes, and the "
            f"data have {num_classes}; join classes, or give colours of your own and the margin that they keep"
        )
    if num_classes == 2:
        return ["#333333", "#CCCCCC"]  # a mask is grey
    for corners in (TETRAHEDRON, OCTAHEDRON, CUBE):
        if num_classes <= len(corners):
            return [_hex(colour) for colour in corners[:num_classes]]
    levels = torch.linspace(0, 1, 5)
    grid = torch.cartesian_prod(levels, levels, levels)  # [125, 3]
    chosen: list[Tensor] = []
    room = torch.full((len(grid),), torch.inf)
    for given in (grid[0], grid[-1], *[None] * (num_classes - 2)):
        one = grid[int(room.argmax())] if given is None else given
        for other in chosen:
            room = torch.minimum(room, _to_segment(grid, one, other))  # a further colour and the line between these
            room = torch.minimum(room, _to_segment(other, one, grid))  # one of these, and a line to the further colour
            room = torch.minimum(room, _to_segment(one, other, grid))
        chosen.append(one)
    return [_hex(colour.tolist()) for colour in chosen]


def facies_palette(num_classes: int) -> list[str]:
    """Colours for K classes: the published six first, then hues spread by the golden ratio.

    >>> facies_palette(2)
    ['#F19E9C', '#EB5C56']
    """
    import colorsys

    extra = []
    for i in range(max(0, num_classes - len(SFM_FACIES))):
        rgb = colorsys.hsv_to_rgb((0.12 + 0.618034 * i) % 1, 0.9 - 0.4 * (i % 2), 0.55 + 0.35 * ((i // 2) % 2))
        extra.append("#" + "".join(f"{round(255 * v):02X}" for v in rgb))
    return [*SFM_FACIES[:num_classes], *extra]


def data_palette(colours: Sequence[str] | None, num_classes: int, continuous: bool = False) -> Palette:
    """The palette of a data set.

    Args:
        colours: one "#RRGGBB" per class; None takes those of ``facies_palette``, or black and white where continuous.
        num_classes: K.
        continuous: targets are shares of the second of two classes, and mixtures of their colours are read as such.
    """
    own = ["#000000", "#FFFFFF"] if continuous else facies_palette(num_classes)
    return Palette(own if colours is None else colours, None if continuous else SOFTNESS)


def _to_segment(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """RMS distances [...] of colours [..., 3] to the straight lines from some colours [..., 3] to others."""
    along = end - start
    share = ((points - start) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
    return (points - start - share.clamp(0, 1)[..., None] * along).square().mean(-1).sqrt()


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in colour)


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
    except ValueError:
        raise ValueError(f"a colour is written '#RRGGBB', got {colour!r}") from None
