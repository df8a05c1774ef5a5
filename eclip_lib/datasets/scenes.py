"""The demo world: rendered scenes with captions and exact per-class masks.

A scene is 1 to 3 objects of 16 classes on one of 8 background patterns in 12 colours, drawn at 224x224 from a
`Layout` that is itself drawn from (seed, index). Two levels come from the same code: `plain`, and `cluttered`
(unnamed distractors, blotched two-pattern backgrounds, smaller objects), where a mask has something to
suppress. Every class has its own shape, its own fill pattern and its own pair of typical colours;
`colours="swapped"` hands every class the colours of another one, which shows how much of the recognition is
colour, and `colours="mixed"` gives three in ten objects any two.

Deterministic on any machine: arrays only ever see additions, products, comparisons and square roots (exact in
IEEE 754), and everything that comes from a library's sine or exponential is rounded before it is used."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .base import Dataset, Example
from .shapes import CLASSES, COLOURS, DISTRACTORS, FILLS, OUTLINES, PATTERNS, TYPICAL, dots, stripes

SIZE = 224
COLOURINGS = ["typical", "mixed", "swapped"]
SEEDS = {"train": 1, "validation": 2, "test": 3}  # the splits are disjoint because their seeds are
PRETRAINING = 100_000  # scenes of "train" that the mini CLIPs were trained on; later ones are new to them
SMALLEST = 240  # visible pixels below which an object is neither labelled nor named


@dataclass(frozen=True)
class Level:
    """How hard a world is: nominal object areas (share of the image), most distractors, share of blotched
    background."""

    area: tuple[float, float]
    clutter: int = 0
    texture: float = 0.0


LEVELS = {"plain": Level((0.03, 0.5)), "cluttered": Level((0.015, 0.2), clutter=14, texture=0.8)}


@dataclass(frozen=True)
class Object:
    """One object: centre and radius in pixels, angle in radians, aspect, mirrored or not, two fill colours
    (RGB)."""

    name: str
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    flip: int
    colours: np.ndarray  # [2, 3]

    @property
    def size(self):
        return "small" if self.radius**2 * 2 < 0.12 * SIZE**2 else "big"


@dataclass(frozen=True)
class Background:
    """One background: pattern name, colour name, two RGB colours, angle, period in pixels, phase, noise
    cells."""

    pattern: str
    colour: str
    colours: np.ndarray  # [2, 3]
    angle: float
    period: float
    phase: float
    cells: np.ndarray  # uint8 [k, k]


@dataclass(frozen=True)
class Layout:
    """Everything `render` draws: change a field with `dataclasses.replace` for a controlled experiment."""

    background: Background
    objects: tuple[Object, ...]
    second: Background | None = None
    blotches: np.ndarray | None = None  # bool-like uint8 [k, k] noise, thresholded at `texture`
    texture: float = 0.0
    distractors: tuple[Object, ...] = ()
    noise: int = 0  # seed of the pixel noise


@dataclass(frozen=True)
class Scene:
    """A rendered layout. `labels`: uint8 [224, 224], 0 for background, else 1 + index into `CLASSES`."""

    image: Image.Image
    labels: np.ndarray
    objects: tuple[Object, ...]  # the visible ones
    background: Background

    @property
    def masks(self):
        return {o.name: self.labels == 1 + CLASSES.index(o.name) for o in self.objects}


# ---------------------------------------------------------------------- layouts


def shade(rng, colour, spread):
    """A colour by name, varied -> float32 [3]."""
    return np.clip(np.array(COLOURS[colour]) + np.round(rng.normal(0, spread, 3)), 0, 255).astype(np.float32)


def _background(rng):
    pattern, colour = PATTERNS[rng.integers(len(PATTERNS))], list(COLOURS)[rng.integers(len(COLOURS))]
    first = shade(rng, colour, 22)
    contrast = np.round(rng.choice([-1, 1]) * rng.uniform(25, 80) + rng.normal(0, 15, 3))
    colours = np.stack([first, np.clip(first + contrast, 0, 255).astype(np.float32)])
    angle, period, phase = (round(rng.uniform(*ends), 3) for ends in ((0, math.pi), (16, 44), (0, 100)))
    return Background(pattern, colour, colours, angle, period, phase, _cells(rng, [14, 28, 56]))


def _cells(rng, sides):
    """Noise, uint8 [k, k]."""
    k = int(rng.choice(sides))
    return rng.integers(0, 256, (k, k), dtype=np.uint8)


def _object(rng, name, placed, count, level, colours):
    """Place one object beside those already `placed`; None where twelve tries found no room."""
    low, high = level.area
    low, high = (low * 1.5, high) if count == 1 else (low, high / (0.8 * count))
    for _ in range(12):
        share = math.exp(rng.uniform(math.log(low), math.log(high)))
        radius = round(min(math.sqrt(share * SIZE**2 / 2), 0.48 * SIZE), 2)
        inset = min(0.8 * radius, SIZE / 2)
        x, y = (round(v, 2) for v in rng.uniform(inset, SIZE - inset, 2))
        if all((x - o.x) ** 2 + (y - o.y) ** 2 > (0.95 * (radius + o.radius)) ** 2 for o in placed):
            break
    else:
        return None
    # drawn always: the rest stays equal
    any_two, odd = rng.choice(list(COLOURS), 2, replace=False), rng.random() < 0.3
    pair = TYPICAL[name]
    if colours == "swapped":
        pair = TYPICAL[CLASSES[(CLASSES.index(name) + 5) % len(CLASSES)]]
    elif colours == "mixed" and odd:
        pair = any_two
    angle, aspect = round(math.radians(rng.uniform(-25, 25)), 4), round(rng.uniform(0.85, 1.18), 4)
    fill = np.stack([shade(rng, c, 18) for c in pair])
    return Object(name, x, y, radius, angle, aspect, int(rng.choice([-1, 1])), fill)


def _distractor(rng):
    radius = round(math.sqrt(rng.uniform(0.0025, 0.009) * SIZE**2 / 2) * 1.2, 2)
    x, y = (float(round(v, 2)) for v in rng.uniform(0, SIZE, 2))
    fill = np.stack([shade(rng, list(COLOURS)[rng.integers(len(COLOURS))], 22) for _ in range(2)])
    name = f"scrap{rng.integers(3, 7)}"
    angle, aspect = round(rng.uniform(0, 6.28), 4), round(rng.uniform(0.6, 1.2), 4)
    return Object(name, x, y, radius, angle, aspect, 1, fill)


def layout(seed, index, level="plain", colours="typical"):
    """Draw the layout of scene `index` of `seed`. `level`: one of `LEVELS`; `colours`: one of `COLOURINGS`,
    which changes nothing but the colours of the objects."""
    level = LEVELS[level]
    rng = np.random.default_rng((seed, index))
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    names = [CLASSES[k] for k in rng.choice(len(CLASSES), count, replace=False)]
    background = _background(rng)
    objects = []
    for name in names:
        if placed := _object(rng, name, objects, count, level, colours):
            objects.append(placed)
    scene = Layout(background, tuple(objects), noise=int(rng.integers(2**31)))
    if level.texture:
        cells = _cells(rng, [7, 14])
        scene = replace(scene, second=_background(rng), blotches=cells, texture=level.texture)
    if level.clutter:
        pieces = rng.integers(level.clutter // 2, level.clutter + 1)
        scene = replace(scene, distractors=tuple(_distractor(rng) for _ in range(pieces)))
    return scene


# ---------------------------------------------------------------------- rendering

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _rotate(x, y, angle):
    c, s = np.float32(round(math.cos(angle), 6)), np.float32(round(math.sin(angle), 6))
    return x * c + y * s, y * c - x * s


def _enlarged(cells):
    return np.asarray(Image.fromarray(cells).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _mix(b):
    """How much of its second colour a background has at every pixel: bool, or float32 in [0, 1]."""
    u, v = _rotate(_X, _Y, b.angle)
    p, shift = np.float32(b.period), np.float32(b.phase)
    if b.pattern == "striped":
        return stripes(u + shift, p)
    if b.pattern == "checkered":
        return stripes(u + shift, 2 * p) ^ stripes(v + shift, 2 * p)
    if b.pattern == "dotted":
        return dots(u + shift, v + shift, p, 0.28 * p)
    if b.pattern == "wavy":  # triangle waves: exact, unlike a sine
        bend = np.abs(v / (2 * p) - np.floor(v / (2 * p)) - np.float32(0.5)) * 4 * np.float32(6)
        z = (u + bend + shift) / p
        return np.abs(z - np.floor(z) - np.float32(0.5)) * 2
    if b.pattern == "bricked":
        y = (v + shift) / p
        row = np.floor(y)
        x = (u + shift + row * p) / (2 * p)
        return (y - row < 4 / p) | (x - np.floor(x) < 2 / p)
    if b.pattern == "gradient":
        return (u - u.min()) / (u.max() - u.min())
    return _enlarged(b.cells).astype(np.float32) / 255  # noisy


def _paint_background(b):
    """float32 [3, 224, 224], a plane a channel: NumPy is slow over a last axis of three."""
    first, second = b.colours[..., None, None]
    if b.pattern == "plain":
        return np.full((3, SIZE, SIZE), first)
    mix = _mix(b)
    return np.where(mix, second, first) if mix.dtype == bool else first * (1 - mix) + second * mix


def _paint_object(canvas, labels, o, outlines, scale=3):
    """Draw one object into `canvas` (float32 [3, 224, 224]) and, where it covers over half of a pixel, into
    `labels`. In place."""
    reach = math.ceil(1.45 * o.radius) + 1
    x0, y0 = max(0, math.floor(o.x) - reach), max(0, math.floor(o.y) - reach)
    x1, y1 = min(SIZE, math.ceil(o.x) + reach), min(SIZE, math.ceil(o.y) + reach)
    stencil = Image.new("L", ((x1 - x0) * scale, (y1 - y0) * scale))
    draw = ImageDraw.Draw(stencil)
    c, s = math.cos(o.angle), math.sin(o.angle)
    for points, add in outlines[o.name]:
        corners = []
        for px, py in points:
            px, py = px * o.aspect * o.flip * o.radius, py / o.aspect * o.radius
            x, y = o.x + c * px - s * py - x0, o.y + s * px + c * py - y0
            corners.append((round(x * scale * 4) / 4, round(y * scale * 4) / 4))
        draw.polygon(corners, fill=255 if add else 0)
    drawn = stencil.getbbox()
    if drawn is None:
        return
    # the pixels that it touches: whole ones of the stencil's
    left, top = (side // scale for side in drawn[:2])
    right, bottom = (-(-side // scale) for side in drawn[2:])
    touched = stencil.reduce(scale, (left * scale, top * scale, right * scale, bottom * scale))
    alpha = np.asarray(touched, np.float32) / 255
    box = np.s_[y0 + top : y0 + bottom, x0 + left : x0 + right]
    radius = np.float32(o.radius)
    u, v = _rotate((_X[box] - np.float32(o.x)) / radius, (_Y[box] - np.float32(o.y)) / radius, o.angle)
    second = FILLS[o.name](u / np.float32(o.aspect) * o.flip, v * np.float32(o.aspect))
    paint = np.where(second, *o.colours[::-1, :, None, None])
    canvas[:, *box] = canvas[:, *box] * (1 - alpha) + paint * alpha
    if labels is not None:
        labels[box][alpha > 0.5] = 1 + CLASSES.index(o.name)


def render(scene):
    """Draw a `Layout` -> `Scene`. An object that ends up with fewer than 240 visible pixels is left out of
    the masks."""
    canvas, labels = _paint_background(scene.background), np.zeros((SIZE, SIZE), np.uint8)
    if scene.second is not None:
        blotch = _enlarged(scene.blotches) > 255 * (1 - 0.5 * scene.texture)
        canvas = np.where(blotch, _paint_background(scene.second), canvas)
    for piece in scene.distractors:
        _paint_object(canvas, None, piece, DISTRACTORS)
    for o in scene.objects:
        _paint_object(canvas, labels, o, OUTLINES)
    noise = np.random.default_rng(scene.noise).integers(-8, 9, (SIZE, SIZE, 3), dtype=np.int8)
    planes = (canvas + np.ascontiguousarray(noise.transpose(2, 0, 1))).clip(0, 255).astype(np.uint8)
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    visible = tuple(o for o in scene.objects if (labels == 1 + CLASSES.index(o.name)).sum() >= SMALLEST)
    return Scene(image, labels, visible, scene.background)


# ---------------------------------------------------------------------- captions

OPENINGS = ["a photo of", "a picture of", "an image of", "this is", "there is", ""]


def caption(scene, seed, index, k=0, background=0.1):
    """The k-th caption of a scene, drawn from templates: objects in any order, one in seven left out while
    another is named, a size word six times in ten, the background with probability `background`."""
    rng = np.random.default_rng((seed, index, 1 + k))
    pick = lambda words, p=None: words[rng.choice(len(words), p=p)]  # noqa: E731
    named = [o for o in scene.objects if rng.random() > 0.15] or [pick(scene.objects)]
    words = [pick(OPENINGS, [0.35, 0.13, 0.13, 0.13, 0.13, 0.13])]
    for i, j in enumerate(rng.permutation(len(named))):
        words += [pick(["and", "with", "next to"])] if i else []
        words += [pick(["a", "the", "one"]), named[j].size if rng.random() < 0.6 else "", named[j].name]
    if rng.random() < background:
        colour = scene.background.colour if rng.random() < 0.6 else ""
        words += [pick(["on a", "in front of a", "with a"]), colour, scene.background.pattern, "background"]
    return " ".join(w for w in words if w)


class Scenes(Dataset):
    """`length` scenes of a split ("train", "validation", "test") and a level as a `Dataset`, drawn when
    asked."""

    classes, background = CLASSES, [f"{pattern} background" for pattern in PATTERNS]

    def __init__(self, root=None, split="test", level="plain", colours="typical", length=1000):
        if split not in SEEDS or level not in LEVELS or colours not in COLOURINGS:
            raise ValueError(
                f"scenes: no split {split!r}, level {level!r} or colours {colours!r}; there are splits "
                f"{list(SEEDS)}, levels {list(LEVELS)} and colours {COLOURINGS}"
            )
        self.name = "scenes" if level == "plain" else f"scenes-{level}"
        self.split, self.level, self.colours, self.items = split, level, colours, range(length)

    @property
    def identity(self):
        return super().identity | {"split": self.split, "level": self.level, "colours": self.colours}

    def sources(self, item):
        return []

    def example(self, item):
        scene = sample(SEEDS[self.split], item, self.level, self.colours)
        return Example(f"{self.split}-{self.level}-{item:06d}", scene.image.copy(), scene.masks)


@lru_cache(1000)  # the test scenes of both levels, 0.2 MB each: several networks see them
def sample(seed, index, level="plain", colours="typical"):
    """The scene (seed, index): the first of the layouts index, index + 10^9, … that shows an object."""
    while True:
        scene = render(layout(seed, index, level, colours))
        if scene.objects:
            return scene
        index += 10**9
