"""Draws pictures of no ground at all: textured surfaces, and scenes where such surfaces hide one another.

Dead leaves (Lee, Mumford and Huang 2001), shapes of all sizes thrown upon each other, have the statistics of natural
photographs, and models that see nothing else learn much of what photographs teach (Baradad et al. 2021).

Every function is a pure function of the generator it is given. Nothing here knows ``geoseg.data.earth``: a model that
was trained on these pictures has seen no section, crater or record, drawn or real.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.fft import fftfreq, irfft2, rfft2, rfftfreq
from scipy.spatial import cKDTree

Size = tuple[int, int]
"""Height and width in pixels."""


def axes(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates [H, W] in picture heights, at right angles, turned and shifted at random."""
    y, x = np.mgrid[: size[0], : size[1]] / np.float32(size[0])
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    first, second = rng.random(2, dtype=np.float32)
    return cosine * x + sine * y + first, cosine * y - sine * x + second


def noise(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Noise with a power-law spectrum, from near white to clouds, some of it drawn out along one direction."""
    down, across = fftfreq(size[0])[:, None].astype(np.float32), rfftfreq(size[1])[None].astype(np.float32)
    angle, ratio = rng.uniform(0, np.pi), rng.choice([1.0, rng.uniform(1.5, 5)])
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    power = (down * cosine + across * sine) ** 2 + ((across * cosine - down * sine) / np.float32(ratio)) ** 2
    power[0, 0] = 1
    weight = power ** np.float32(-rng.uniform(0.25, 1.25))
    weight[0, 0] = 0
    white = rng.standard_normal(size, dtype=np.float32)
    return levelled(irfft2(weight * rfft2(white), size))


def _grating(rng: np.random.Generator, size: Size) -> np.ndarray:
    """A straight grating, soft or hard."""
    along, _ = axes(rng, size)
    wave = np.sin(2 * np.pi * rng.uniform(3, 24) * along)
    return np.clip(0.5 + rng.uniform(0.5, 4) * wave, 0, 1)


def _plaid(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Two gratings at right angles: added they are cloth, multiplied a checkerboard."""
    along, across = axes(rng, size)
    count = rng.uniform(2, 14)
    first, second = np.sin(2 * np.pi * count * along), np.sin(2 * np.pi * count * rng.uniform(0.5, 2) * across)
    mixed = (first + second) / 2 if rng.random() < 0.5 else first * second
    return np.clip(0.5 + rng.uniform(0.5, 4) * mixed, 0, 1)


def _bricks(rng: np.random.Generator, size: Size) -> np.ndarray:
    """A wall: rows of bricks, each row shifted, every brick of its own grey, with mortar between them."""
    along, across = axes(rng, size)
    rows, length, mortar = rng.uniform(4, 14), rng.uniform(1.5, 3), rng.uniform(0.04, 0.2)
    row = np.floor(rows * across).astype(int)
    column = rows / length * along + 0.5 * (row % 2)
    shade = rng.random(997, dtype=np.float32)[(31 * row + 17 * np.floor(column).astype(int)) % 997]
    joint = (rows * across % 1 < mortar) | (column % 1 < mortar / length)
    return np.where(joint, np.float32(rng.random()), 0.3 + 0.5 * shade)


def _dots(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Discs or rings on a grid."""
    along, across = axes(rng, size)
    count = rng.uniform(3, 14)
    radius = np.hypot(count * along % 1 - 0.5, count * across % 1 - 0.5)
    edge = rng.uniform(0.15, 0.45)
    inside = np.clip((edge - radius) * rng.uniform(4, 25) + 0.5, 0, 1)
    return inside if rng.random() < 0.6 else np.clip(1 - 8 * np.abs(radius - edge), 0, 1)


def _owners(points: np.ndarray, size: Size, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels and indices of the ``k`` nearest points, both [H, W, k]; at half the resolution."""
    y, x = np.mgrid[: size[0] : 2, : size[1] : 2]
    distance, nearest = cKDTree(points).query(np.stack([y, x], 2), k=range(1, k + 1))
    blown = [np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)[: size[0], : size[1]] for a in (distance, nearest)]
    return blown[0], blown[1]


def _cells(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Cells around scattered points: their walls, their depth, or a grey for each."""
    count = int(np.exp(rng.uniform(np.log(15), np.log(300))))
    look = int(rng.integers(3))
    distance, nearest = _owners(rng.random((count, 2)) * size, size, 2 if look == 2 else 1)
    if look == 0:
        return rng.random(count, dtype=np.float32)[nearest[..., 0]]
    return levelled(distance[..., 0] if look == 1 else np.minimum(distance[..., 1] - distance[..., 0], 4))


def _gradient(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Light that fades along a line, or around a point."""
    along, across = axes(rng, size)
    return levelled(along if rng.random() < 0.6 else np.hypot(along - along.mean(), across - across.mean()))


def levelled(field: np.ndarray) -> np.ndarray:
    """Stretches a field to [0, 1], its two outermost percents clipped."""
    thin = field[::3, ::3]
    low, high = np.quantile(thin, 0.01), np.quantile(thin, 0.99)
    return np.clip((field - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


FIELDS: tuple[tuple[float, Callable[[np.random.Generator, Size], np.ndarray]], ...] = (
    (0.40, noise),
    (0.12, _cells),
    (0.10, _grating),
    (0.10, _plaid),
    (0.10, _bricks),
    (0.08, _dots),
    (0.10, _gradient),
)
"""Share of each kind of pattern among surfaces."""


def surface(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Draws a textured surface: a pattern between two colours, often with a finer noise upon it.

    Returns:
        float32 [H, W, 3] in [0, 1].
    """
    draw = FIELDS[int(rng.choice(len(FIELDS), p=[share for share, _ in FIELDS]))][1]
    first, second = rng.random((2, 3), dtype=np.float32)
    second = first + np.float32(rng.uniform(0.15, 1)) * (second - first)  # many surfaces are nearly of one colour
    drawn = first + draw(rng, size).astype(np.float32)[..., None] * (second - first)
    if rng.random() < 0.4:
        drawn = drawn + np.float32(rng.uniform(0.03, 0.2)) * (noise(rng, size)[..., None] - np.float32(0.5))
    clipped: np.ndarray = np.clip(drawn, 0, 1)
    return clipped


def _shape(rng: np.random.Generator, radius: float) -> np.ndarray:
    """The mask, bool [2 r + 1, 2 r + 1], of an ellipse, a box, a polygon or a lobed blob of about this radius."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32) / np.float32(radius)
    angle, flat = rng.uniform(0, 2 * np.pi), rng.uniform(1, 3.5)
    u, v = np.cos(angle) * x + np.sin(angle) * y, flat * (np.cos(angle) * y - np.sin(angle) * x)
    kind = rng.integers(4)
    if kind == 0:
        return np.asarray(u * u + v * v < 1)
    if kind == 1:
        return np.maximum(np.abs(u), np.abs(v)) < 0.7
    turn = np.arctan2(v, u)
    corners = int(rng.integers(3, 8))
    if kind == 2:
        side = np.pi / corners
        return np.asarray(np.hypot(u, v) * np.cos((turn % (2 * side)) - side) < np.cos(side))
    return np.asarray(np.hypot(u, v) < 0.7 + 0.3 * np.sin(corners * turn))


def leaves(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Draws a scene of textured shapes of all sizes, the later ones upon the earlier ones, some throwing shadows.

    Returns:
        float32 [H, W, 3] in [0, 1].
    """
    surfaces = [surface(rng, size) for _ in range(3)]
    picture = surfaces[0].copy()
    least, most = 0.02 * size[0], rng.uniform(0.15, 0.5) * size[0]
    shadow = rng.choice([1.0, rng.uniform(0.4, 0.9)])
    for _ in range(int(rng.integers(8, 70))):
        # radii fall with their third power, which makes a scene look alike at every scale
        radius = 1 / np.sqrt(rng.uniform(1 / most**2, 1 / least**2) if rng.random() < 0.6 else 1 / most**2)
        mask = _shape(rng, radius)
        top, left = int(rng.integers(size[0])) - len(mask) // 2, int(rng.integers(size[1])) - len(mask) // 2
        tint = rng.uniform(-0.35, 0.35, 3).astype(np.float32)
        which = surfaces[int(rng.integers(len(surfaces)))]
        if shadow < 1:
            _paint(picture, None, mask, top + 2, left + 2, np.full(3, shadow, np.float32))
        _paint(picture, which, mask, top, left, tint)
    return picture


def _paint(
    picture: np.ndarray, what: np.ndarray | None, mask: np.ndarray, top: int, left: int, change: np.ndarray
) -> None:
    """Puts a surface, tinted by ``change``, where the mask lies; without one, darkens by the factor ``change``."""
    rows = slice(max(top, 0), min(top + len(mask), len(picture)))
    columns = slice(max(left, 0), min(left + len(mask), picture.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    under = picture[rows, columns]
    under[part] = under[part] * change if what is None else np.clip(what[rows, columns][part] + change, 0, 1)


def mosaic(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Draws a plane that is divided among a few surfaces by straight borders.

    Returns:
        float32 [H, W, 3] in [0, 1].
    """
    count = int(rng.integers(3, 25))
    nearest = _owners(rng.random((count, 2)) * size, size, 1)[1][..., 0]
    surfaces = np.stack([surface(rng, size) for _ in range(3)])
    owner = rng.integers(len(surfaces), size=count)[nearest]
    tint = rng.uniform(-0.3, 0.3, (count, 3)).astype(np.float32)[nearest]
    rows, columns = np.ogrid[: size[0], : size[1]]
    drawn: np.ndarray = np.clip(surfaces[owner, rows, columns] + tint, 0, 1)
    return drawn


SCENES: tuple[tuple[float, Callable[[np.random.Generator, Size], np.ndarray]], ...] = (
    (0.65, leaves),
    (0.15, mosaic),
    (0.20, surface),
)
"""Share of each kind of picture."""


def scene(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Draws a picture of any kind; half of them are grey, and these use most of the range from black to white.

    Returns:
        uint8 [H, W, 3], or [H, W] where it is grey.
    """
    draw = SCENES[int(rng.choice(len(SCENES), p=[share for share, _ in SCENES]))][1]
    drawn = draw(rng, size)
    if rng.random() < 0.5:
        drawn = np.float32(rng.uniform(0.6, 1)) * (levelled(drawn.mean(axis=2)) - np.float32(0.5)) + np.float32(0.5)
    return np.rint(255 * drawn).astype(np.uint8)


def regions(
    rng: np.random.Generator, size: Size, textured: bool = True, most: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a plane divided among a few materials by straight borders, and which material lies where.

    Several pieces may be of one material. The division is the same whether materials have textures or one flat colour
    each, so that both can be compared scene by scene.

    Args:
        rng: its only source of randomness.
        size: height and width, pixels.
        textured: whether a material is a ``surface``, or flat.
        most: materials at the most; at least two.

    Returns:
        uint8 [H, W, 3], and uint8 [H, W] with the materials, numbered by the area they cover, the largest first.
    """
    materials = int(rng.integers(2, most + 1))
    pieces = int(rng.integers(materials, 3 * materials + 1))
    y, x = np.mgrid[: size[0], : size[1]]
    _, nearest = cKDTree(rng.random((pieces, 2)) * size).query(np.stack([y, x], 2))
    owner = np.concatenate([np.arange(materials), rng.integers(materials, size=pieces - materials)])[nearest]
    found, counts = np.unique(owner, return_counts=True)
    numbers = np.zeros(materials, np.uint8)
    numbers[found[np.argsort(-counts, kind="stable")]] = np.arange(len(found))
    colours = random_colours(rng, materials)
    if textured:
        rows, columns = np.ogrid[: size[0], : size[1]]
        drawn = np.stack([surface(rng, size) for _ in range(materials)])[owner, rows, columns]
    else:
        drawn = colours[owner]
    return np.rint(255 * drawn).astype(np.uint8), numbers[owner]


def random_colours(rng: np.random.Generator, count: int, apart: float = 0.35) -> np.ndarray:
    """Colours float32 [count, 3] in [0, 1], each at least ``apart`` from all others where a hundred draws find one."""
    chosen = rng.random((1, 3), dtype=np.float32)
    for _ in range(count - 1):
        drawn = rng.random((100, 3), dtype=np.float32)
        near = np.linalg.norm(drawn[:, None] - chosen[None], axis=2).min(1)
        first = int(np.argmax(near >= apart)) if (near >= apart).any() else int(near.argmax())
        chosen = np.concatenate([chosen, drawn[first : first + 1]])
    return chosen


def matte(rng: np.random.Generator, size: Size, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draws soft-edged, hairy or see-through things over a textured ground, and how much of every pixel they cover.

    Every pixel is composed as alpha * thing + (1 - alpha) * ground, one thing upon the other, with the alpha that is
    given back; only the picture is rounded, to 8 bits.

    Args:
        rng: its only source of randomness.
        size: height and width, pixels.
        most: things at the most; at least one.

    Returns:
        uint8 [H, W, 3], and float32 [H, W] with alpha in [0, 1]; 0 is ground, 1 things alone.
    """
    picture = (leaves if rng.random() < 0.5 else surface)(rng, size)
    left = np.ones(size, np.float32)  # of the ground
    for _ in range(int(rng.integers(1, most + 1))):
        alpha = _soft(rng, size)
        tint = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
        thing = np.clip(surface(rng, size) + tint, 0, 1)
        picture = alpha[..., None] * thing + (1 - alpha[..., None]) * picture
        left = left * (1 - alpha)
    return np.rint(255 * picture).astype(np.uint8), 1 - left


def _soft(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Alpha float32 [H, W] of one lobed thing: its edge hard or soft all around, or drawn out into hairs."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) / np.float32(size[0])
    wide = size[1] / size[0]
    y, x = y - np.float32(rng.uniform(0.2, 0.8)), x - np.float32(wide * rng.uniform(0.2, 0.8))
    turn = np.arctan2(y, x)
    radius = rng.uniform(0.12, 0.32)
    outline = np.full(size, radius, np.float32)
    for lobes in range(2, 6):
        outline += np.float32(radius * rng.uniform(0, 0.35 / lobes)) * np.sin(lobes * turn + rng.uniform(0, 2 * np.pi))
    edge = np.exp(rng.uniform(np.log(0.01), np.log(0.12)))  # how wide, in picture heights
    if rng.random() < 0.4:  # hairs: each direction reaches as far as it likes
        hairs = rng.random(int(rng.integers(40, 160)), dtype=np.float32)
        place = (turn / (2 * np.pi) + 0.5) * len(hairs)
        first = np.floor(place).astype(int)
        share = (place - first).astype(np.float32)
        reach = hairs[first % len(hairs)] * (1 - share) + hairs[(first + 1) % len(hairs)] * share
        outline += np.float32(radius * rng.uniform(0.2, 0.6)) * reach**2
    inside = np.clip((outline - np.hypot(x, y)) / np.float32(edge) + np.float32(0.5), 0, 1)
    dense = 1.0 if rng.random() < 0.75 else rng.uniform(0.3, 0.9)  # glass and smoke
    soft: np.ndarray = np.float32(dense) * inside * inside * (3 - 2 * inside)
    return soft
