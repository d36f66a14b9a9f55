"""Draws what an aeroplane sees: ten kinds of land, each picture of one kind, for classifiers of whole pictures.

Kinds share what does not tell them apart: colours, light, haze, direction, scale and the land around. Round things are
tanks or craters, strips are rivers or runways, and grids fields, houses or parked cars. Within a kind pictures differ
much, so that a classifier which has seen few of them does worse than one which has seen many.

Every function that draws is a pure function of the generator it is given. Lengths are in picture heights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

from geoseg.data.earth import crater_field
from geoseg.data.image_folder import TEMPLATE, caption, check_template
from geoseg.data.scenes import Size, axes, levelled, noise
from geoseg.data.synthetic import Drawn
from geoseg.randomness import numpy_stream
from geoseg.types import Sample

GRASS, OLIVE, STRAW = (0.30, 0.42, 0.20), (0.36, 0.38, 0.24), (0.66, 0.60, 0.36)
SOIL, CLAY, SAND = (0.42, 0.33, 0.25), (0.56, 0.38, 0.28), (0.78, 0.69, 0.53)
ROCK, GRAVEL, ASPHALT, CONCRETE = (0.48, 0.47, 0.46), (0.58, 0.56, 0.52), (0.30, 0.31, 0.33), (0.68, 0.68, 0.66)
SEA, LAKE, MUD = (0.10, 0.27, 0.38), (0.20, 0.38, 0.38), (0.42, 0.38, 0.28)
WHITE, RUST, BRICK, SLATE = (0.90, 0.90, 0.88), (0.55, 0.36, 0.27), (0.58, 0.30, 0.24), (0.35, 0.37, 0.42)

Tone = tuple[float, float, float]


def _tone(rng: np.random.Generator, tones: Sequence[Tone], spread: float = 0.05) -> np.ndarray:
    """One of the tones, a little lighter or darker and a little off its colour; float32 [3]."""
    chosen = np.asarray(tones[int(rng.integers(len(tones)))])
    return (chosen + rng.normal(0, spread) + rng.normal(0, 0.4 * spread, 3)).astype(np.float32)


def _rough(rng: np.random.Generator, size: Size, tones: Sequence[Tone]) -> np.ndarray:
    """Ground of one tone that passes into another in patches, with a finer grain; float32 [H, W, 3]."""
    first, second = _tone(rng, tones), _tone(rng, tones)
    second = first + np.float32(rng.uniform(0.1, 0.9)) * (second - first)
    grain = np.float32(rng.uniform(0.02, 0.15)) * (noise(rng, size) - np.float32(0.5))
    drawn: np.ndarray = first + noise(rng, size)[..., None] * (second - first) + grain[..., None]
    return drawn


def _put(picture: np.ndarray, cover: np.ndarray, paint: np.ndarray) -> None:
    """Lays ``paint`` on a picture [H, W, 3], as far as ``cover`` [H, W], 0..1, says."""
    picture += cover[..., None].astype(np.float32) * (paint - picture)


def _inside(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel lies inside of an outline, 0..1, by its distance [H, W] from it, negative inside."""
    return np.clip(0.5 - distance * len(distance), 0, 1)


def _centred(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates [H, W] at right angles, in any direction, 0 in the middle of the picture."""
    along, across = axes(rng, size)
    return along - along.mean(), across - across.mean()


def _winding(rng: np.random.Generator, along: np.ndarray, strength: float) -> np.ndarray:
    """A line that winds: how far it is off a straight one, at every place ``along`` it."""
    waves = [
        strength / count**1.3 * rng.normal() * np.sin(2 * np.pi * (0.7 * count * along + rng.random()))
        for count in range(1, 6)
    ]
    return np.sum(waves, axis=0)


def _of_cells(rng: np.random.Generator, row: np.ndarray, column: np.ndarray, *shape: int) -> np.ndarray:
    """Numbers 0..1 that are one for each cell of a grid, float32 [H, W, *shape]."""
    table = rng.random((997, *shape), dtype=np.float32)
    return table[(31 * row.astype(int) + 17 * column.astype(int)) % 997]


def _box(u: np.ndarray, v: np.ndarray, half_u: np.ndarray | float, half_v: np.ndarray | float) -> np.ndarray:
    """Distance from a rectangle around 0, negative inside."""
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def fields(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Farmland: plots of crops with rows in them, or round ones under sprinklers."""
    u, v = _centred(rng, size)
    crops = np.stack([_tone(rng, (GRASS, OLIVE, STRAW, SOIL, CLAY), 0.07) for _ in range(int(rng.integers(3, 6)))])
    high, wide = rng.uniform(0.12, 0.45, 2)
    down = v / high + rng.random()
    row = np.floor(down)
    right = u / wide + _of_cells(rng, row, row)
    column = np.floor(right)
    crop = crops[(_of_cells(rng, row, column) * len(crops)).astype(int)]
    turned = np.where(_of_cells(rng, row, column) < 0.5, u, v)
    rows = rng.uniform(0, 0.09) * _of_cells(rng, row, column) * np.sin(2 * np.pi * rng.uniform(12, 34) * turned)
    plots = crop + (rows + 0.08 * (noise(rng, size) - 0.5))[..., None].astype(np.float32)
    across, along = (down - row - 0.5) * high, (right - column - 0.5) * wide
    if rng.random() < 0.3:
        edge = np.hypot(along, across) - rng.uniform(0.4, 0.5) * min(high, wide)
    else:
        edge = _box(along, across, wide / 2, high / 2) + rng.uniform(0.002, 0.012)
    picture = _rough(rng, size, (STRAW, SOIL, OLIVE))
    _put(picture, _inside(edge), plots)
    return picture


def forest(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Crowns of trees, dense or with clearings, sometimes with a track through them."""
    count = int(np.exp(rng.uniform(np.log(120), np.log(900))))
    y, x = np.mgrid[: size[0], : size[1]] / size[0]
    points = rng.random((count, 2)) * (1.1, 1.1 * size[1] / size[0]) - 0.05
    distance, nearest = cKDTree(points).query(np.stack([y, x], 2))
    radius = rng.uniform(0.6, 0.95) / np.sqrt(count) * (0.6 + 0.6 * rng.random(count))[nearest]
    tones = np.stack([_tone(rng, (GRASS, OLIVE, (0.18, 0.30, 0.18), (0.26, 0.40, 0.24)), 0.05) for _ in range(4)])
    if rng.random() < 0.25:  # autumn
        tones[:2] = [_tone(rng, (STRAW, RUST, CLAY), 0.05) for _ in range(2)]
    angle = rng.uniform(0, 2 * np.pi)
    light = (y - points[nearest, 0]) * np.sin(angle) + (x - points[nearest, 1]) * np.cos(angle)
    shade = np.clip(0.95 + 0.5 * light / radius, 0.45, 1.35)[..., None]
    picture = 0.6 * _rough(rng, size, (OLIVE, SOIL, GRASS))
    open_ground = levelled(noise(rng, size)) < rng.uniform(-0.2, 0.35)
    cover = _inside(distance - radius) * ~open_ground
    u, v = _centred(rng, size)
    if rng.random() < 0.3:
        cover = cover * (1 - _inside(np.abs(v - _winding(rng, u, 0.08)) - rng.uniform(0.008, 0.03)))
        picture = picture * np.float32(1.5)
    _put(picture, cover, tones[rng.integers(len(tones), size=count)[nearest]] * shade)
    return picture


def dunes(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Desert: ridges of sand, lit on one side."""
    u, v = _centred(rng, size)
    bent = u + _winding(rng, v, rng.uniform(0.02, 0.12)) + rng.uniform(0, 0.12) * (noise(rng, size) - 0.5)
    phase = rng.uniform(3, 13) * bent
    crest = rng.uniform(0.35, 0.85)
    along = phase % 1
    slope = np.where(along < crest, along / crest, (1 - along) / (1 - crest))
    tone = _tone(rng, (SAND, CLAY, STRAW, GRAVEL), 0.05)
    fading = 0.4 + 0.6 * levelled(noise(rng, size))
    light = 1 + rng.uniform(0.15, 0.5) * fading * (slope - 0.55) + 0.06 * (noise(rng, size) - 0.5)
    drawn: np.ndarray = tone * light[..., None].astype(np.float32)
    return drawn


def _land(rng: np.random.Generator, size: Size) -> np.ndarray:
    """What lies around things: bare or green ground, farmland, a wood, sand."""
    kind = rng.random()
    if kind < 0.65:
        return _rough(rng, size, (GRASS, OLIVE, STRAW, SOIL, SAND))
    return fields(rng, size) if kind < 0.8 else forest(rng, size) if kind < 0.95 else dunes(rng, size)


def _water(rng: np.random.Generator, size: Size, tones: Sequence[Tone]) -> np.ndarray:
    """Water, smooth or with waves."""
    u, _ = _centred(rng, size)
    waves = np.sin(2 * np.pi * rng.uniform(8, 30) * (u + 0.05 * noise(rng, size))) * noise(rng, size)
    drawn = _rough(rng, size, tones[:1]) + (rng.uniform(0, 0.05) * waves)[..., None]
    return np.asarray(drawn + _tone(rng, tones) - _tone(rng, tones[:1], 0), dtype=np.float32)


def river(rng: np.random.Generator, size: Size) -> np.ndarray:
    """A river that winds through the land, both banks in sight."""
    u, v = _centred(rng, size)
    picture = _land(rng, size)
    strength, half = rng.uniform(0.05, 0.22), rng.uniform(0.03, 0.13)
    away = np.abs(v - rng.uniform(-0.2, 0.2) - _winding(rng, u, strength)) - half * (1 + _winding(rng, u, 0.15))
    tones = ((LAKE, SEA, MUD), (MUD, LAKE, SEA))[int(rng.integers(2))]
    _put(picture, _inside(away - rng.uniform(0, 0.04)), _tone(rng, (SAND, SOIL, GRASS)))
    _put(picture, _inside(away), _water(rng, size, tones))
    return picture


def coast(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Sea on one side and land on the other, with a beach and surf or rocks between."""
    u, v = _centred(rng, size)
    picture = _land(rng, size)
    away = v - rng.uniform(-0.28, 0.28) - _winding(rng, u, rng.uniform(0.02, 0.16))
    beach, surf = rng.uniform(0, 0.13), rng.uniform(0, 0.035)
    _put(picture, _inside(away - beach), _rough(rng, size, (SAND, SAND, ROCK, GRAVEL)))
    _put(picture, _inside(away), _water(rng, size, (SEA, LAKE, MUD)))
    for line in range(int(rng.integers(1, 4))):
        broken = levelled(noise(rng, size))
        crest = np.abs(away + line * rng.uniform(0.03, 0.09)) - surf * broken
        _put(picture, 0.8 * _inside(crest), _tone(rng, (WHITE,)))
    return picture


def storage_tanks(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Round tanks in rows, with their shadows."""
    u, v = _centred(rng, size)
    picture = _rough(rng, size, (GRAVEL, SOIL, CONCRETE, GRASS, SAND))
    step = rng.uniform(0.16, 0.5)
    radius, present = rng.uniform(0.26, 0.46), rng.uniform(0.45, 1)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.09)
    start, table = rng.random(2), int(rng.integers(1 << 30))
    tops = (_tone(rng, (WHITE, CONCRETE)), _tone(rng, (WHITE, RUST, GRAVEL, LAKE)))

    def tanks(du: float, dv: float) -> tuple[np.ndarray, ...]:
        """Distance from the nearest tank's outline, moved by (du, dv), the place in it, and a number of the tank."""
        right, down = (u - du) / step + start[0], (v - dv) / step + start[1]
        column, row = np.floor(right), np.floor(down)
        own = _of_cells(np.random.default_rng(table), row, column, 3)
        x, y = (right - column - 0.5) * step, (down - row - 0.5) * step
        size_of = radius * step * (0.7 + 0.3 * own[..., 1])
        there = (own[..., 0] < present) | ((row == 0) & (column == 0))  # the one in the middle always is
        return np.where(there, np.hypot(x, y) - size_of, 1.0), x / size_of, y / size_of, own[..., 2]

    shadow, *_ = tanks(length * np.cos(angle), length * np.sin(angle))
    _put(picture, 0.75 * _inside(shadow), np.asarray((0.10, 0.10, 0.12), np.float32))
    edge, x, y, kind = tanks(0, 0)
    light = 1 - rng.uniform(0, 0.22) * (x * np.cos(angle) + y * np.sin(angle))
    light = light * np.where(np.hypot(x, y) > rng.uniform(0.8, 1), rng.uniform(0.6, 1), 1)  # a rim, or a floating roof
    top = np.where(kind[..., None] < rng.uniform(0.4, 1), *tops)
    _put(picture, _inside(edge), (top * light[..., None]).astype(np.float32))
    return picture


def runway(rng: np.random.Generator, size: Size) -> np.ndarray:
    """A runway with its markings, sometimes its end and a taxiway, between grass or sand."""
    u, v = _centred(rng, size)
    picture = _rough(rng, size, (GRASS, STRAW, OLIVE, SAND, SOIL)) if rng.random() < 0.7 else _land(rng, size)
    paint = _tone(rng, (WHITE,))
    u, v = u - rng.uniform(-0.2, 0.2), v - rng.uniform(-0.15, 0.15)
    half = rng.uniform(0.05, 0.15)
    end = rng.uniform(0.05, 0.4) if rng.random() < 0.5 else 9.0
    surface = _rough(rng, size, ((ASPHALT, CONCRETE, GRAVEL)[int(rng.integers(3))],))
    if rng.random() < 0.6:
        beside = rng.choice([-1, 1]) * rng.uniform(0.25, 0.4)
        joint = rng.uniform(-0.4, 0.2)
        taxiway = np.minimum(
            np.abs(v - beside) - half / 2.5, _box(u - joint, v - beside / 2, half / 3, abs(beside) / 2)
        )
        _put(picture, _inside(taxiway), surface * np.float32(rng.uniform(0.85, 1.15)))
    _put(picture, _inside(np.maximum(np.abs(v) - half, u - end)), surface)
    dashes = np.maximum(np.abs(v) - 0.006, np.abs(u * rng.uniform(3, 7) % 1 - 0.5) - 0.3)
    marks = [np.maximum(dashes, u - end + 0.14)]
    if rng.random() < 0.6:
        marks.append(np.maximum(np.abs(np.abs(v) - 0.88 * half) - 0.004, u - end))
    stripes = np.abs(v / half * 4 % 1 - 0.5) - 0.28
    marks.append(np.maximum(np.maximum(stripes / 8, _box(u - end + 0.07, v, 0.04, 0.85 * half)), u - end))
    for mark in marks:
        _put(picture, 0.85 * _inside(mark), paint)
    return picture


def parking_lot(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Rows of parked cars on asphalt, with lines between their places."""
    u, v = _centred(rng, size)
    picture = _land(rng, size)
    stall = rng.uniform(0.034, 0.062)
    depth, aisle = stall * rng.uniform(1.8, 2.3), stall * rng.uniform(1.6, 2.6)
    period = 2 * depth + aisle
    down = v / period + rng.random()
    row = np.floor(down)
    place = (down - row) * period  # two rows back to back, then an aisle
    second = (place > depth) & (place < 2 * depth)
    column = np.floor(u / stall)
    x, y = (u / stall - column - 0.5) * stall, np.where(second, place - depth, place) - depth / 2
    asphalt = _rough(rng, size, ((ASPHALT, ROCK, GRAVEL)[int(rng.integers(3))],))
    lines = np.where(place < 2 * depth, np.maximum(stall / 2 - 0.004 - np.abs(x), np.abs(y) - depth / 2), 1.0)
    _put(asphalt, rng.uniform(0.3, 0.9) * _inside(lines), _tone(rng, (WHITE, STRAW)))
    own = _of_cells(rng, 2 * row + second, column, 3)
    colours = np.stack([_tone(rng, (WHITE, ASPHALT, SLATE, BRICK, SEA, CONCRETE), 0.08) for _ in range(8)])
    car = np.where(
        (own[..., 0] < rng.uniform(0.25, 0.98)) & (place < 2 * depth),
        _box(x, y + (own[..., 1] - 0.5) * 0.15 * depth, 0.36 * stall, 0.41 * depth),
        1.0,
    )
    body = colours[(own[..., 2] * len(colours)).astype(int)]
    glass = np.where(np.abs(np.abs(y) - 0.16 * depth) < 0.07 * depth, 0.45, 1)[..., None]
    _put(asphalt, _inside(car), (body * glass).astype(np.float32))
    lot = np.full(size, -1.0)
    if rng.random() < 0.6:
        lot = _box(u - rng.uniform(-0.2, 0.2), v - rng.uniform(-0.2, 0.2), *rng.uniform(0.3, 0.8, 2))
    _put(picture, _inside(lot), asphalt)
    return picture


def craters(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Cratered ground, of grey rock or of tinted sand."""
    relief, inside = crater_field(rng, size)
    while inside.mean() < 0.01:  # all of them small or out of sight
        relief, inside = crater_field(rng, size)
    tone = _tone(rng, (ROCK, GRAVEL, SAND, CLAY, STRAW), 0.06)
    lit = relief[..., None] / np.float32(255)
    drawn: np.ndarray = (0.25 + 1.1 * lit) * tone + 0.08 * (noise(rng, size)[..., None] - np.float32(0.5))
    return drawn


def dense_residential(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Houses close to each other along streets, with trees between them."""
    u, v = _centred(rng, size)
    picture = _rough(rng, size, (GRASS, OLIVE, STRAW, SOIL))
    wide, deep = rng.uniform(0.09, 0.19, 2)
    street = rng.uniform(0.03, 0.06)
    period = 2 * deep + street
    down = v / period + rng.random()
    row = np.floor(down)
    place = (down - row) * period - street  # a street, then two rows of plots
    _put(picture, _inside(place), _tone(rng, (ASPHALT, GRAVEL, CONCRETE)))
    second = place > deep
    right = u / wide + _of_cells(rng, row, second)
    column = np.floor(right)
    own = _of_cells(rng, 2 * row + second, column, 6)
    x = (right - column - 0.5) * wide + (own[..., 0] - 0.5) * 0.2 * wide
    y = np.where(second, place - deep, place) - deep / 2 + (own[..., 1] - 0.5) * 0.2 * deep
    half_x, half_y = wide * (0.24 + 0.14 * own[..., 2]), deep * (0.22 + 0.14 * own[..., 3])
    house = np.where((place > 0) & (own[..., 4] < 0.95), _box(x, y, half_x, half_y), 1.0)
    _put(picture, 0.6 * _inside(np.where(place > 0, _box(x - 0.012, y - 0.012, half_x, half_y), 1.0)), np.zeros(3))
    roofs = np.stack([_tone(rng, (BRICK, SLATE, GRAVEL, WHITE, RUST, CLAY), 0.06) for _ in range(5)])
    ridge = np.where(own[..., 2] > own[..., 3], y, x) > 0
    roof = roofs[(own[..., 5] * len(roofs)).astype(int)] * np.where(ridge, 0.72, 1.05)[..., None]
    _put(picture, _inside(house), roof.astype(np.float32))
    count = int(rng.integers(10, 160))
    points = rng.random((count, 2)) * (1, size[1] / size[0])
    rows, columns = np.mgrid[: size[0], : size[1]] / size[0]
    distance, nearest = cKDTree(points).query(np.stack([rows, columns], 2))
    crown = distance - rng.uniform(0.012, 0.035, count)[nearest]
    _put(picture, _inside(crown), (_tone(rng, (GRASS, OLIVE)) * (0.6 + 0.4 * own[..., :1])).astype(np.float32))
    return picture


KINDS: dict[str, Callable[[np.random.Generator, Size], np.ndarray]] = {
    "fields": fields,
    "river": river,
    "coast": coast,
    "storage tanks": storage_tanks,
    "runway": runway,
    "parking lot": parking_lot,
    "craters": craters,
    "forest": forest,
    "dense residential": dense_residential,
    "dunes": dunes,
}
"""Every class and how it is drawn, float32 [H, W, 3], about 0..1."""


def photograph(rng: np.random.Generator, drawn: np.ndarray) -> np.ndarray:
    """A drawn picture as a camera sees it: its light, the colour of its film, haze, and grain.

    Args:
        rng: its only source of randomness.
        drawn: float [H, W, 3], about 0..1.

    Returns:
        uint8 [H, W, 3].
    """
    seen = np.clip(drawn, 0, 1) ** rng.uniform(0.75, 1.35) * rng.normal(1, 0.05, 3) * rng.uniform(0.8, 1.15)
    haze = rng.uniform(0, 0.45) ** 1.5
    seen = (1 - haze) * seen + haze * np.asarray((0.72, 0.76, 0.80))
    grain = rng.uniform(0, 0.035) * rng.standard_normal(drawn.shape[:2])
    return np.rint(255 * np.clip(seen + grain[..., None], 0, 1)).astype(np.uint8)


@lru_cache(maxsize=2048)  # 100 MB of 128 x 128 pixels: runs of a sweep are judged by the same pictures
def _scene(kind: str, seed: int, size: int, split: str, index: int) -> np.ndarray:
    rng = numpy_stream(seed, "scene classes", split, index)
    image = photograph(rng, KINDS[kind](rng, (size, size)))
    image.setflags(write=False)
    return image


class SceneClasses(Drawn):
    """Drawn pictures from above, each of one of ten kinds of land, which is its class.

    Every split has as many of each class, or one more.

    Args:
        size: height and width, pixels.
        train: how many pictures to learn from.
        val: how many to choose by.
        test: how many to judge by.
        seed: another seed gives other pictures.
        template: a picture's caption, with {} where the name of its class stands.
    """

    per_image = True

    def __init__(
        self,
        size: int = 128,
        train: int = 4000,
        val: int = 400,
        test: int = 1000,
        seed: int = 0,
        template: str = TEMPLATE,
    ) -> None:
        check_template(template, "data.source.template")
        counts = {"train": train, "val": val, "test": test}
        super().__init__("scene classes", counts, 4, size, seed, "image", tuple(KINDS))
        self.template = template

    def read(self, name: str) -> Sample:
        """Draws one picture: image uint8 [size, size, 3], target uint8 [] with its class, and a caption."""
        label = self.label(name)
        image = _scene(self.class_names[label], self.seed, self.size, *self.where(name))
        return Sample(image, np.array(label, np.uint8), self.words(label))

    def label(self, name: str) -> int:
        """The class of a picture, without drawing it."""
        return self.where(name)[1] % self.num_classes

    def words(self, class_index: int) -> str:
        """The caption of a class's pictures."""
        return caption(self.template, self.class_names[class_index])

    def parameters(self) -> tuple[str | int, ...]:
        """Size, seed and template; how many there are changes no picture."""
        return self.size, self.seed, self.template
