"""Draws synthetic pictures of the ground, with the truth about every pixel.

Every function is a pure function of the generator it is given. Arithmetic is float64 and the answer is uint8, so that
two machines whose last bits differ still write the same bytes. Lengths are fractions of the picture's height, so a
picture of twice the size shows the same ground with twice the detail.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""


class Facies(NamedTuple):
    """What makes one kind of rock recognisable in a seismic section.

    Attributes:
        name: what a legend calls it.
        amplitude: strength of its reflections, 1 = strong.
        period: length of its wavelet, a fraction of the picture's height; its beds are half as thick.
        roughness: how far its beds are torn up and down, in periods.
        patchiness: how much of a reflection fades along its bed, 0 = continuous, 1 = fades out.
    """

    name: str
    amplitude: float
    period: float
    roughness: float
    patchiness: float


FACIES = (
    Facies("upper north sea", 0.70, 8 / 128, 0.04, 0.10),
    Facies("middle north sea", 0.24, 9 / 128, 0.16, 0.60),
    Facies("lower north sea", 0.46, 11 / 128, 0.02, 0.05),
    Facies("chalk", 1.15, 15 / 128, 0.02, 0.10),
    Facies("scruff", 0.55, 12 / 128, 0.26, 0.90),
)
"""Five kinds of rock from top to bottom, in the order and with the names of the Netherlands F3 interpretation."""

SALT = len(FACIES)
"""Class index of salt."""

FACIES_NAMES = (*(facies.name for facies in FACIES), "zechstein salt")

MAX_REGIONS = 254
"""Most regions a section is cut into; 254 stays free and 255 means ignore."""

TEXTURES = ("stripes", "checkerboard", "blobs", "gradient")

RESERVED_COLOURS = np.array(
    [[241, 158, 156], [235, 92, 86], [67, 151, 43], [254, 231, 107], [243, 182, 119], [0, 130, 244]], dtype=np.uint8
)
"""uint8 [6, 3]: colours no random palette comes near, kept unseen for the palettes that experiments paint with."""

RESERVED_DISTANCE = 40.0
"""How far every random colour stays from a reserved one, Euclidean, 0 to 255 per channel."""

_STEPS = 1024  # samples per picture height along geologic time


class Section(NamedTuple):
    """A seismic section and the truth about it.

    Attributes:
        image: uint8 [H, W], amplitudes; 128 = zero, 1 and 255 = clipped.
        labels: uint8 [H, W], 0 (top) to 4 (bottom) for the facies, 5 for salt.
        fault: bool [H, W], true within about a pixel of a fault.
        salt: bool [H, W].
        regions: uint8 [H, W], one index per bed counted from the top, the last one for salt; at most 254.
        words: what a caption may say is in the picture.
    """

    image: np.ndarray
    labels: np.ndarray
    fault: np.ndarray
    salt: np.ndarray
    regions: np.ndarray
    words: tuple[str, ...]


@cache
def _cubic(points: int, cells: int) -> np.ndarray:
    """Weights [points, cells] that interpolate ``cells`` evenly spaced values with Catmull-Rom cubics."""
    at = np.linspace(0, cells - 1, points)
    near = np.clip(np.floor(at).astype(int), 0, max(cells - 2, 0))
    f = at - near
    cubics = (
        (-f + 2 * f**2 - f**3) / 2,
        (2 - 5 * f**2 + 3 * f**3) / 2,
        (f + 4 * f**2 - 3 * f**3) / 2,
        (f**3 - f**2) / 2,
    )
    weights = np.zeros((points, cells))
    for offset, weight in zip((-1, 0, 1, 2), cubics, strict=True):
        np.add.at(weights, (np.arange(points), np.clip(near + offset, 0, cells - 1)), weight)
    return weights


def _smooth_noise(rng: np.random.Generator, size: Size, cells: Size) -> np.ndarray:
    """Noise [H, W] that changes over ``cells`` steps down and across, about unit variance at its knots."""
    noise: np.ndarray = _cubic(size[0], cells[0]) @ rng.standard_normal(cells) @ _cubic(size[1], cells[1]).T
    return noise


def _grid(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, 1] and position [1, W] of the pixel centres, both in picture heights."""
    return (np.arange(size[0])[:, None] + 0.5) / size[0], (np.arange(size[1])[None] + 0.5) / size[0]


def _to_bytes(signal: np.ndarray, clip: float) -> np.ndarray:
    """Maps [-clip, clip] to uint8 1..255 with 0 at 128."""
    return np.rint(128 + 127 * np.clip(signal / clip, -1, 1)).astype(np.uint8)


def _ricker(x: np.ndarray) -> np.ndarray:
    """The Ricker wavelet, 1 at 0; ``x`` is in periods of its peak frequency."""
    a = (np.pi * x) ** 2
    return (1 - 2 * a) * np.exp(-a)


def _folded(rng: np.random.Generator, x: np.ndarray, depth: np.ndarray, strength: float) -> np.ndarray:
    """Relative geologic time [H, W] of tilted and folded layers; it grows downwards."""
    width = x[0, -1]
    time: np.ndarray = depth + rng.uniform(-0.28, 0.28) * strength * (x - width / 2)
    for _ in range(3):
        fold = np.sin(2 * np.pi * (rng.uniform(0.3, 2.2) * x + rng.random()))
        time = time + rng.uniform(-0.05, 0.05) * strength * fold * (0.4 + 0.6 * depth)
    time += 0.012 * strength * _smooth_noise(rng, (len(depth), x.shape[1]), (5, 5))
    return time


def _salt_distance(rng: np.random.Generator, z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws a salt body.

    Returns:
        Signed distance [H, W] to its edge in picture heights (negative inside), and how flat the edge nearby lies,
        0 = upright to 1 = level.
    """
    size, width = (len(z), x.shape[1]), x[0, -1]
    centre = rng.uniform(0.15, 0.85) * width
    if rng.random() < 0.6:  # a pillow or diapir that rises from a layer of salt
        layer = rng.uniform(0.88, 1.1)
        crest = rng.uniform(0.2, 0.62)
        shape = np.exp(-(np.abs((x - centre) / rng.uniform(0.12, 0.3)) ** rng.uniform(2, 4)))
        rough = _smooth_noise(rng, (1, size[1]), (2, 9))
        level = layer - (layer - crest) * shape + 0.012 * rough - z
    else:  # a stock whose flanks overhang
        power = rng.uniform(2, 3)
        across = np.abs((x - centre) / rng.uniform(0.1, 0.26)) ** power
        down = np.abs((z - rng.uniform(0.55, 0.95)) / rng.uniform(0.2, 0.4)) ** power
        level = across + down + 0.1 * _smooth_noise(rng, size, (7, 7)) - 1
    slope_z, slope_x = np.gradient(level, 1 / size[0])
    steepness = np.sqrt(slope_z**2 + slope_x**2) + 1e-3
    return level / steepness, np.abs(slope_z) / steepness


def _displace(
    rng: np.random.Generator, z: np.ndarray, x: np.ndarray, depth: np.ndarray, count: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Breaks the ground at ``depth`` [H, W] along ``count`` faults, most of them normal ones.

    Returns:
        The depth [H, W] each pixel's rock had before, the traces of the faults (bool [H, W] each), and how much of the
        amplitude survives beside them.
    """
    rows, width = len(z), x[0, -1]
    half = max(1.25 / rows, 0.008)
    leaning = 1 if rng.random() < 0.5 else -1
    traces, kept = [], np.ones(depth.shape)
    places = (np.arange(count) + rng.uniform(0.15, 0.85, count)) / max(count, 1)
    for place in places:
        lean = leaning * (1 if rng.random() < 0.75 else -1)
        steep, bend = rng.uniform(0.12, 0.55), rng.uniform(-0.1, 0.25)
        beyond = (x - place * width - lean * (steep * (z - 0.5) + bend * (z - 0.5) ** 2)) * lean  # > 0: hanging wall
        tip = rng.uniform(-0.5, 0.45)
        throw = rng.uniform(0.035, 0.11) * (1 if rng.random() < 0.88 else -1) * np.clip((z - tip) / 0.2, 0, 1)
        depth = depth - throw * np.clip(beyond * rows + 0.5, 0, 1)
        upright = np.sqrt(1 + steep**2)
        traces.append((np.abs(beyond) < half * upright) & (np.abs(throw) > 1.0 / rows))
        kept *= 1 - 0.5 * np.exp(-((beyond / (1.2 * half)) ** 2)) * (np.abs(throw) > 1.0 / rows)
    return depth, traces, kept


def _facies_edges(rng: np.random.Generator, time: np.ndarray, above: np.ndarray | None) -> tuple[int, np.ndarray]:
    """Where along geologic time one facies ends and the next begins.

    Returns:
        The topmost facies and the edges [n - 1], increasing, of the n >= 2 facies present.
    """
    count = int(rng.choice([2, 3, 4, 5], p=[0.1, 0.2, 0.3, 0.4]))
    top = int(rng.integers(0, len(FACIES) - count + 1))
    shares = rng.dirichlet(np.full(count, 4.0)) * 0.6 + 0.4 / count
    fractions = np.cumsum(shares)[:-1]
    if above is not None and rng.random() < 0.8:
        fractions[np.argmin(np.abs(fractions - above.mean()))] = above.mean()
    return top, np.quantile(time, np.sort(fractions))


def _beds(rng: np.random.Generator, top: int, edges: np.ndarray, span: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Stacks beds over a span of geologic time and sounds them.

    Returns:
        The tops of the beds (increasing, the facies edges among them) and the reflected wave, ``_STEPS`` samples per
        picture height from ``span[0]`` on.
    """
    samples = -(-int((span[1] - span[0]) * _STEPS) // 512) * 512
    frequency = np.fft.rfftfreq(samples)
    limits = [span[0], *edges, span[1]]
    tops, wave = [np.asarray(edges)], np.zeros(len(frequency), dtype=complex)
    for number in range(len(limits) - 1):
        facies = FACIES[top + number]
        period = facies.period * rng.uniform(0.88, 1.14)
        strength = facies.amplitude * rng.uniform(0.85, 1.15)
        start, stop = limits[number], limits[number + 1]
        most = int((stop - start) / (0.42 * period)) + 1
        at = start + np.cumsum(rng.uniform(0.42, 0.72, most)) * period
        at = at[at < stop - 0.35 * period]
        sign = np.cumprod(np.where(rng.random(len(at)) < 0.85, -1.0, 1.0))
        height = sign * rng.uniform(0.45, 1.0, len(at)) * strength
        if number:  # the facies boundary itself reflects
            at, height = np.append(at, start), np.append(height, rng.uniform(0.8, 1.2) * max(strength, 0.5))
        spikes = np.zeros(samples)
        np.add.at(spikes, np.clip(np.rint((at - span[0]) * _STEPS).astype(int), 0, samples - 1), height)
        peak = 0.78 / (period * _STEPS)  # a Ricker wavelet's period is 0.78 of its peak frequency's
        ratio = (frequency / peak) ** 2
        wave += np.fft.rfft(spikes) * (2 / np.sqrt(np.pi) / peak) * ratio * np.exp(-ratio)
        tops.append(at)
    return np.unique(np.concatenate(tops)), np.fft.irfft(wave, samples)


def section(
    rng: np.random.Generator, size: Size = (128, 128), faults: int | None = None, salt: bool | None = None
) -> Section:
    """Draws a seismic section: layered, tilted, folded, broken, eroded and pierced ground, as sound shows it.

    The rock of a pixel follows from its relative geologic time alone, a field that grows downwards: beds and facies
    are intervals of it, a fault shifts it, and an unconformity leaves a gap in it.

    Args:
        rng: where all its numbers come from.
        size: height and width, pixels.
        faults: how many; None draws 0 to 4.
        salt: whether there is a salt body; None draws one in 35 % of sections.

    Returns:
        The picture and what is in it.
    """
    z, x = _grid(size)
    strength = rng.uniform(0.15, 1.3)
    depth = z + np.zeros(size)

    pierced = bool(rng.random() < 0.35) if salt is None else salt
    distance, flatness = _salt_distance(rng, z, x)
    if pierced:
        depth = depth + rng.uniform(0.03, 0.14) * np.exp(-np.maximum(distance, 0) / rng.uniform(0.06, 0.18))
    body = (distance < 0) & pierced

    drawn = int(rng.integers(0, 5))
    broken, traces, kept = _displace(rng, z, x, depth, drawn if faults is None else faults)
    eroded = bool(rng.random() < 0.4)
    time = _folded(rng, x, broken, max(strength, 0.6) if eroded else strength)
    surface = rng.uniform(0.2, 0.55) + rng.uniform(-0.05, 0.05) * np.sin(
        2 * np.pi * (rng.uniform(0.4, 1.5) * x + rng.random())
    )
    above = (depth < surface) & eroded
    young = _folded(rng, x, depth, 0.25)
    eroded = bool(above.any())
    if eroded:
        time = np.where(above, young - young[above].max() + time[~above].min() - 0.02, time)

    top, edges = _facies_edges(rng, time, above if eroded else None)
    tops, wave = _beds(rng, top, edges, (time.min() - 0.1, time.max() + 0.1))
    labels = (top + np.searchsorted(edges, time)).astype(np.uint8)
    roughness = np.array([facies.roughness * facies.period for facies in FACIES])[labels]
    patchiness = np.array([facies.patchiness for facies in FACIES])[labels]

    wobble = roughness * _smooth_noise(rng, size, (12, 20))
    at = np.clip((time + wobble - time.min() + 0.1) * _STEPS, 0, len(wave) - 2)
    index = at.astype(int)
    signal = wave[index] + (at - index) * (wave[index + 1] - wave[index])
    fading = np.clip(0.5 + 0.7 * _smooth_noise(rng, size, (20, 14)), 0, 1.05)
    signal *= (1 - patchiness * fading) * np.where(above, 1, kept)
    if eroded:
        signal += rng.uniform(0.2, 0.6) * _ricker((depth - surface) / 0.07)
    if pierced:
        signal = np.where(body, 0.1 * _smooth_noise(rng, size, (40, 40)), signal)
        signal += rng.uniform(0.8, 1.4) * (0.35 + 0.65 * flatness) * _ricker(distance / 0.08)
    signal *= 1 + 0.12 * _smooth_noise(rng, size, (4, 4))
    signal += rng.uniform(0.01, 0.09) * _smooth_noise(rng, size, (size[0] // 3, size[1] // 4))
    signal += rng.uniform(0.005, 0.05) * rng.standard_normal(size)
    clip = np.quantile(np.abs(signal), rng.uniform(0.97, 0.995))

    labels[body] = SALT
    visible = [trace & ~body & ~above for trace in traces]
    shown = sum(trace.any() for trace in visible)
    words = [
        *(["salt dome"] if body.any() else []),
        *(["faults"] if shown > 1 else ["one fault"] if shown else []),
        *(["unconformity"] if 0.04 < above.mean() < 0.96 else []),
    ]
    return Section(
        image=_to_bytes(signal, clip),
        labels=labels,
        fault=np.any(visible, axis=0) if visible else np.zeros(size, dtype=bool),
        salt=body,
        regions=_number(np.where(body, len(tops) + 1, np.searchsorted(tops, time))),
        words=tuple(words) or ("continuous layers",),
    )


def _number(regions: np.ndarray) -> np.ndarray:
    """Numbers the regions present 0, 1, 2 ... in their order, at most ``MAX_REGIONS``; uint8 [H, W]."""
    present, index = np.unique(regions, return_inverse=True)
    merged = index.reshape(regions.shape) * min(1, MAX_REGIONS / len(present))
    return merged.astype(np.uint8)


def crater_field(rng: np.random.Generator, size: Size = (128, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Draws cratered ground under a low sun.

    Returns:
        uint8 [H, W], shaded relief with cast shadows; bool [H, W], true inside the rim of a crater.
    """
    z, x = _grid(size)
    height = 0.02 * _smooth_noise(rng, size, (5, 5)) + 0.0025 * _smooth_noise(rng, size, (20, 20))
    height += 0.0006 * _smooth_noise(rng, size, (64, 64))
    mask = np.zeros(size, dtype=bool)
    radii = np.sort(0.03 + 0.17 * rng.random(int(rng.integers(1, 15))) ** 2.2)[::-1]  # large ones are older
    for radius in radii:
        row, column = rng.random(), rng.random() * x[0, -1]
        freshness = rng.uniform(0.5, 1)
        rows = slice(max(int((row - 2.2 * radius) * size[0]), 0), int((row + 2.2 * radius) * size[0]) + 1)
        columns = slice(max(int((column - 2.2 * radius) * size[0]), 0), int((column + 2.2 * radius) * size[0]) + 1)
        away = np.sqrt((z[rows] - row) ** 2 + (x[:, columns] - column) ** 2) / radius
        bowl = np.where(away < 1, 0.34 * (np.minimum(away, 1) ** 2.4 - 1), 0)
        rim = 0.15 * np.where(away < 1, np.exp(-(((away - 1) / 0.14) ** 2)), np.exp(-(away - 1) / 0.3))
        ground = height[rows, columns]
        inside = np.clip(1.6 - away, 0, 1) * 0.8  # an impact wipes out what lay there before
        level = np.average(ground, weights=inside + 1e-9)
        height[rows, columns] = ground + inside * (level - ground) + freshness * radius * (bowl + rim)
        mask[rows, columns] |= away < 1
    return _shade(rng, height), mask


def _shade(rng: np.random.Generator, height: np.ndarray) -> np.ndarray:
    """Lights a relief [H, W] (in picture heights) from a random side; uint8 [H, W]."""
    rows = len(height)
    azimuth, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.75)
    east, south = np.cos(azimuth), np.sin(azimuth)
    slope_z, slope_x = np.gradient(height, 1 / rows)
    lit = (rise - east * slope_x - south * slope_z) / np.sqrt((1 + slope_x**2 + slope_z**2) * (1 + rise**2))
    shadow = np.zeros(height.shape)
    for step in range(1, rows // 5):
        down, right = round(step * south), round(step * east)
        edge = np.pad(height, ((max(-down, 0), max(down, 0)), (max(-right, 0), max(right, 0))), mode="edge")
        towards = edge[max(down, 0) : max(down, 0) + rows, max(right, 0) : max(right, 0) + height.shape[1]]
        shadow = np.maximum(shadow, towards - height - rise * step / rows)
    lit = np.maximum(lit, 0) * (1 - np.clip(shadow * rows, 0, 1))
    albedo = rng.uniform(290, 380) * (1 + 0.03 * rng.standard_normal(height.shape))
    shaded: np.ndarray = np.rint(np.clip(14 + lit * albedo, 0, 255)).astype(np.uint8)
    return shaded


def das_record(rng: np.random.Generator, size: Size = (128, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Draws what a fibre-optic cable hears: noise and one to three events; time runs down, distance across.

    Returns:
        uint8 [H, W], strain rate with 128 = zero; bool [H, W], true from each event's arrival until it has faded.
    """
    time, x = _grid(size)
    width = x[0, -1]
    signal = 0.1 * rng.standard_normal(size) + 0.12 * _smooth_noise(rng, size, (size[0] // 2, size[1] // 6))
    signal += 0.05 * rng.standard_normal((size[0], 1))  # a knock on the instrument is heard everywhere at once
    mask = np.zeros(size, dtype=bool)
    for _ in range(int(rng.integers(1, 4))):
        origin, near = rng.uniform(-0.2, 1.2) * width, rng.uniform(0.05, 0.5)
        start, speed = rng.uniform(0.05, 0.75), rng.uniform(0.6, 2.5)
        distance = x - origin
        nearest = np.abs(distance).min()
        arrival = start + (np.sqrt(near**2 + distance**2) - np.sqrt(near**2 + nearest**2)) / speed
        later = time - arrival
        lasts = rng.uniform(0.08, 0.16)
        shape = np.clip(later / 0.01, 0, 1) * np.exp(-np.maximum(later, 0) / (0.5 * lasts))
        wave = np.sin(2 * np.pi * rng.uniform(14, 32) * later + rng.uniform(0, 2 * np.pi))
        signal += rng.uniform(0.5, 1.3) * shape * wave * np.exp(-np.abs(distance) / (2 * width))
        mask |= (later > 0) & (later < lasts)
    signal *= np.exp(0.25 * _smooth_noise(rng, (1, size[1]), (2, size[1] // 2)))  # coupling differs along the cable
    return _to_bytes(signal, np.quantile(np.abs(signal), 0.99)), mask


def texture(rng: np.random.Generator, size: Size = (128, 128)) -> tuple[np.ndarray, str]:
    """Draws an abstract texture of two colours.

    Returns:
        uint8 [H, W, 3], and what it shows: one of ``TEXTURES``.
    """
    z, x = _grid(size)
    word = TEXTURES[int(rng.integers(len(TEXTURES)))]
    angle, count = rng.uniform(0, np.pi), rng.uniform(2, 9)
    along, across = x * np.cos(angle) + z * np.sin(angle), z * np.cos(angle) - x * np.sin(angle)
    cells = int(rng.integers(4, 12))
    shares: dict[str, np.ndarray] = {
        "stripes": np.floor(2 * count * along) % 2,
        "checkerboard": (np.floor(count * along) + np.floor(count * across)) % 2,
        "blobs": _smooth_noise(rng, size, (cells, cells)) > rng.uniform(-0.3, 0.3),
        "gradient": (along - along.min()) / np.ptp(along),
    }
    share = shares[word][..., None]
    between = np.linspace(0, 1, 256)[:, None]
    while True:
        first, second = random_palette(rng, 2).astype(float)
        if word != "gradient" or _unreserved(first + between * (second - first)).all():
            return np.rint(first + share * (second - first)).astype(np.uint8), word


def _unreserved(colours: np.ndarray) -> np.ndarray:
    """Which of the colours [n, 3] keep away from all reserved ones, bool [n]; room for rounding included."""
    gap = np.asarray(colours, dtype=float)[:, None] - RESERVED_COLOURS.astype(float)
    away: np.ndarray = (gap**2).sum(axis=2).min(axis=1) > (RESERVED_DISTANCE + 1) ** 2
    return away


def palette_distance(count: int) -> float:
    """How far apart any two of ``count`` random colours are at least, Euclidean, 0 to 255 per channel; greys less."""
    return float(min(48.0, 150 / count ** (1 / 3)))


def random_palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws colours that are told apart with ease and that nobody has reserved.

    15 % of the palettes are greys, whose levels are spread evenly; the others keep ``palette_distance``.

    Args:
        rng: where all its numbers come from.
        count: how many, 1 to 254.

    Returns:
        uint8 [count, 3].
    """
    if not 1 <= count <= MAX_REGIONS:
        raise ValueError(f"a palette of {count} colours was asked for; it can have 1 to {MAX_REGIONS}")
    if rng.random() < 0.15:
        step = 255 / count
        levels = step * (np.arange(count) + rng.uniform(0.25, 0.75, count))
        greys = np.repeat(rng.permutation(np.floor(levels)).astype(np.uint8)[:, None], 3, axis=1)
        if _unreserved(greys).all():
            return greys
    chosen = np.empty((0, 3))
    while len(chosen) < count:
        candidates = rng.integers(0, 256, (4 * count + 16, 3)).astype(float)
        for colour in candidates[_unreserved(candidates)]:
            if (((colour - chosen) ** 2).sum(axis=1) >= palette_distance(count) ** 2).all():
                chosen = np.append(chosen, colour[None], axis=0)
    return chosen[:count].astype(np.uint8)
