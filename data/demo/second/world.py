"""The demo world: rendered scenes of shapes, with captions and exact per-class masks.

A scene is 1 to 3 objects of 16 classes before one of 8 background patterns in 12 colours, drawn at 112x112
from a `Layout` that is itself drawn from (seed, index). Classes differ by shape alone: every object has any
two of the colours and any of the fills. As in photographs, classes have favourite backgrounds (`cooccurrence`
is the share of scenes that follow the first object's), a caption sometimes names the background, and three in
ten are close-ups in which one object fills most of the frame. Levels: `plain`; `cluttered` (nameless scraps,
two-pattern backgrounds, smaller objects), where a mask has something to suppress; `centric` (one large
object, any background) for models that read neither captions nor masks.

Deterministic on any machine: arrays only ever see additions, products, comparisons and square roots (exact in
IEEE 754), and everything that comes from a library's sine or exponential is rounded before it is used.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from shapes import CLASSES, FILLS, OUTLINES, SCRAPS, dots, stripes

from eclip_lib.datasets.scenes import Background, shade
from eclip_lib.datasets.shapes import COLOURS, PATTERNS

SIZE = 112
SMALLEST = 60  # visible pixels below which an object is neither labelled nor named
# the splits are disjoint because their seeds are
SEEDS = {"train": 11, "validation": 12, "test": 13, "unlabelled": 14}
COOCCURRENCE = 0.7
# what the objects' two colours are drawn from
COLOURINGS = {"any": list(COLOURS), "gray": ["white", "gray", "black"]}
FAVOURITES = {name: PATTERNS[i % len(PATTERNS)] for i, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class Level:
    """How hard scenes are. `area`: of an object, as a share of the frame, nominal; `counts`: shares of scenes
    of 1, 2, … objects; `closeups`: share of scenes with one object that fills most of the frame; `scraps`:
    the most nameless pieces; `texture`: twice the share of the frame that a second background covers."""

    area: tuple[float, float]
    counts: tuple[float, ...] = (0.45, 0.35, 0.2)
    closeups: float = 0.3
    scraps: int = 0
    texture: float = 0.0


LEVELS = {
    "plain": Level((0.03, 0.4)),
    "cluttered": Level((0.02, 0.2), scraps=14, texture=0.8),
    "centric": Level((0.15, 0.5), counts=(1,), closeups=0.1, scraps=4, texture=0.4),
}


@dataclass(frozen=True)
class Object:
    """One object: centre and radius in pixels, angle in radians, aspect, mirrored (-1) or not (1), name of
    its fill, the first colour's name, both colours."""

    name: str
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    flip: int
    fill: str
    colour: str
    colours: np.ndarray  # float32 [2, 3]

    @property
    def size(self):
        return "small" if self.radius**2 * 2 < 0.12 * SIZE**2 else "big"


@dataclass(frozen=True)
class Layout:
    """Everything `render` draws: change a field with `dataclasses.replace` for a controlled experiment."""

    background: Background
    objects: tuple[Object, ...]
    noise: int  # seed of the pixel noise
    second: Background | None = None
    blotches: np.ndarray | None = None  # uint8 [k, k], thresholded at `texture`
    texture: float = 0.0
    scraps: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A rendered layout. `pixels`: uint8 [112, 112, 3]; `labels`: uint8 [112, 112], 0 for background, else 1
    + index into `CLASSES`; `objects`: the visible ones."""

    pixels: np.ndarray
    labels: np.ndarray
    objects: tuple[Object, ...]
    background: Background

    @property
    def image(self):
        return Image.fromarray(self.pixels)

    @property
    def masks(self):
        return {o.name: self.labels == 1 + CLASSES.index(o.name) for o in self.objects}


# ---------------------------------------------------------------------------------------- layouts


def _pick(rng, words):
    return words[rng.integers(len(words))]


def _background(rng, favourite=None):
    pattern, colour = _pick(rng, PATTERNS), _pick(rng, list(COLOURS))
    first = shade(rng, colour, 22)
    contrast = _pick(rng, (-1, 1)) * rng.uniform(25, 80)
    second = np.clip(first + np.round(contrast + rng.normal(0, 15, 3)), 0, 255).astype(np.float32)
    angle, period, phase = (round(rng.uniform(*ends), 3) for ends in ((0, math.pi), (8, 22), (0, 50)))
    k = _pick(rng, (7, 14, 28))
    cells = rng.integers(0, 256, (k, k), dtype=np.uint8)
    return Background(favourite or pattern, colour, np.stack([first, second]), angle, period, phase, cells)


@cache
def _cover(name, radius):
    """Share of the frame that an upright object of this class covers from the middle; radius: share of the
    side."""
    frame = Image.new("1", (SIZE, SIZE))
    for points, add in OUTLINES[name]:
        corners = [(round((0.5 + radius * x) * SIZE), round((0.5 + radius * y) * SIZE)) for x, y in points]
        ImageDraw.Draw(frame).polygon(corners, add)
    return float(np.asarray(frame).mean())


@cache
def _closest(share):
    """{class: smallest radius (share of the side) that covers `share` of the frame} for the classes that
    can."""
    radii = [r / 100 for r in range(30, 76)]
    found = {name: [r for r in radii if _cover(name, r) >= share] for name in CLASSES}
    return {name: enough[0] for name, enough in found.items() if enough}


def _attire(rng, colours):
    """What does not depend on the class: mirrored or not, fill, name of the first colour, both colours."""
    names = [str(name) for name in rng.choice(COLOURINGS[colours], 2, replace=False)]
    shades = np.stack([shade(rng, name, 18) for name in names])
    if colours == "gray":
        shades = np.repeat(np.floor(shades.mean(1, keepdims=True)), 3, 1)
    return _pick(rng, (-1, 1)), _pick(rng, list(FILLS)), names[0], shades


def _posture(rng):
    """Angle (within 25 degrees of upright) and aspect."""
    return round(math.radians(rng.uniform(-25, 25)), 4), round(rng.uniform(0.85, 1.18), 4)


def _closeup(rng, colours):
    """One object that covers 55 to 93 % of the frame, of a class that can."""
    reach = _closest(round(0.93 - 0.38 * rng.random() ** 2, 2))
    name = _pick(rng, list(reach))
    x, y = (round(v, 2) for v in SIZE / 2 + rng.uniform(-0.06, 0.06, 2) * SIZE)
    return Object(name, x, y, round(reach[name] * SIZE, 2), *_posture(rng), *_attire(rng, colours))


def _object(rng, name, placed, area, colours):
    """Place one object beside those already `placed`; None where twelve tries found no room."""
    for _ in range(12):
        share = math.exp(rng.uniform(*(math.log(a) for a in area)))
        radius = round(min(math.sqrt(share / 2), 0.48) * SIZE, 2)
        inset = min(0.8 * radius, SIZE / 2)
        x, y = (round(v, 2) for v in rng.uniform(inset, SIZE - inset, 2))
        if all((x - o.x) ** 2 + (y - o.y) ** 2 > (0.95 * (radius + o.radius)) ** 2 for o in placed):
            return Object(name, x, y, radius, *_posture(rng), *_attire(rng, colours))
    return None


def _scrap(rng):
    x, y = (round(v, 2) for v in rng.uniform(0, SIZE, 2))
    radius = round(math.sqrt(rng.uniform(0.0025, 0.009) / 2) * 1.2 * SIZE, 2)
    angle, aspect = round(rng.uniform(0, 6.28), 4), round(rng.uniform(0.6, 1.2), 4)
    return Object(_pick(rng, list(SCRAPS)), x, y, radius, angle, aspect, *_attire(rng, "any"))


def layout(seed, index, level="plain", colours="any", cooccurrence=COOCCURRENCE):
    """Draw the layout of scene `index` of `seed`.

    level: one of `LEVELS`. colours: one of `COLOURINGS`. cooccurrence: share of scenes whose background
    pattern is the favourite of the first object's class; in the others it is any pattern. Nothing else
    depends on it.
    """
    level, rng = LEVELS[level], np.random.default_rng((seed, index))
    if rng.random() < level.closeups:
        objects = [_closeup(rng, colours)]
    else:
        count = 1 + int(rng.choice(len(level.counts), p=level.counts))
        low, high = level.area
        area = (1.5 * low, high) if count == 1 else (low, high / (0.8 * count))
        objects = []
        for k in rng.choice(len(CLASSES), count, replace=False):
            if placed := _object(rng, CLASSES[k], objects, area, colours):
                objects.append(placed)
    favourite = FAVOURITES[objects[0].name] if rng.random() < cooccurrence else None
    scene = Layout(_background(rng, favourite), tuple(objects), noise=int(rng.integers(2**31)))
    if level.texture:
        k = _pick(rng, (7, 14))
        cells = rng.integers(0, 256, (k, k), dtype=np.uint8)
        scene = replace(scene, second=_background(rng), blotches=cells, texture=level.texture)
    if level.scraps:
        count = rng.integers(level.scraps // 2, level.scraps + 1)
        scene = replace(scene, scraps=tuple(_scrap(rng) for _ in range(count)))
    return scene


# ---------------------------------------------------------------------------------------- rendering

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _rotate(x, y, angle):
    c, s = np.float32(round(math.cos(angle), 6)), np.float32(round(math.sin(angle), 6))
    return x * c + y * s, y * c - x * s


def _enlarged(cells):
    return np.asarray(Image.fromarray(cells).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _mix(b):
    """How much of its second colour a background has at every pixel: bool or float32 [112, 112] in [0, 1]."""
    p, shift = np.float32(b.period), np.float32(b.phase)
    u, v = _rotate(_X, _Y, b.angle)
    u, v = u + shift, v + shift
    if b.pattern == "plain":
        return np.zeros_like(u)
    if b.pattern == "striped":
        return stripes(u, p)
    if b.pattern == "checkered":
        return stripes(u, 2 * p) ^ stripes(v, 2 * p)
    if b.pattern == "dotted":
        return dots(u, v, p, 0.28 * b.period)
    if b.pattern == "wavy":  # triangle waves: exact, unlike a sine
        bend = np.abs(v / (2 * p) - np.floor(v / (2 * p)) - np.float32(0.5)) * 12
        return np.abs((u + bend) / p - np.floor((u + bend) / p) - np.float32(0.5)) * 2
    if b.pattern == "bricked":
        row = np.floor(v / p)
        column = (u + row * p) / (2 * p)
        return (v / p - row < 2 / p) | (column - np.floor(column) < 1 / p)
    if b.pattern == "gradient":
        return (u - u.min()) / (u.max() - u.min())
    return _enlarged(b.cells) / np.float32(255)  # noisy


def _paint_background(b):
    mix = _mix(b).astype(np.float32)[..., None]
    return b.colours[0] * (1 - mix) + b.colours[1] * mix


def _paint_object(canvas, labels, o, outlines, scale=3):
    """Draw one object into `canvas` (float32) and, where it covers over half of a pixel, into `labels`. In
    place."""
    reach = math.ceil(1.45 * o.radius) + 1
    x0, y0 = max(0, math.floor(o.x) - reach), max(0, math.floor(o.y) - reach)
    x1, y1 = min(SIZE, math.ceil(o.x) + reach), min(SIZE, math.ceil(o.y) + reach)
    stencil = Image.new("L", ((x1 - x0) * scale, (y1 - y0) * scale))
    c, s = math.cos(o.angle), math.sin(o.angle)
    for points, add in outlines[o.name]:
        corners = []
        for px, py in points:
            px, py = px * o.aspect * o.flip * o.radius, py / o.aspect * o.radius
            x, y = o.x + c * px - s * py - x0, o.y + s * px + c * py - y0
            corners.append((round(x * scale * 4) / 4, round(y * scale * 4) / 4))
        ImageDraw.Draw(stencil).polygon(corners, fill=255 if add else 0)
    alpha = np.asarray(stencil.reduce(scale), np.float32)[..., None] / 255
    box = np.s_[y0:y1, x0:x1]
    u, v = _rotate(_X[box] - np.float32(o.x), _Y[box] - np.float32(o.y), o.angle)
    u, v = u / np.float32(o.radius * o.aspect * o.flip), v / np.float32(o.radius / o.aspect)
    paint = np.where(FILLS[o.fill](u, v)[..., None], o.colours[1], o.colours[0])
    canvas[box] = canvas[box] * (1 - alpha) + paint * alpha
    if labels is not None:
        labels[box][alpha[..., 0] > 0.5] = 1 + CLASSES.index(o.name)


def render(scene):
    """Draw a `Layout` -> `Scene`. An object that ends up with fewer than 60 visible pixels is left out of the
    masks."""
    canvas, labels = _paint_background(scene.background), np.zeros((SIZE, SIZE), np.uint8)
    if scene.second is not None:
        blotch = _enlarged(scene.blotches) > 255 * (1 - 0.5 * scene.texture)
        canvas = np.where(blotch[..., None], _paint_background(scene.second), canvas)
    for piece in scene.scraps:
        _paint_object(canvas, None, piece, SCRAPS)
    for o in scene.objects:
        _paint_object(canvas, labels, o, OUTLINES)
    noise = np.random.default_rng(scene.noise).integers(-8, 9, canvas.shape, dtype=np.int8)
    pixels = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    visible = np.bincount(labels.ravel(), minlength=1 + len(CLASSES)) >= SMALLEST
    labels[~visible[labels]] = 0
    objects = tuple(o for o in scene.objects if visible[1 + CLASSES.index(o.name)])
    return Scene(pixels, labels, objects, scene.background)


def sample(seed, index, level="plain", colours="any", cooccurrence=COOCCURRENCE):
    """The scene (seed, index): the first of the layouts index, index + 10^9, … that shows an object."""
    while True:
        scene = render(layout(seed, index, level, colours, cooccurrence))
        if scene.objects:
            return scene
        index += 10**9


# ---------------------------------------------------------------------------------------- captions

OPENINGS = ["a photo of"] * 3 + ["a picture of", "an image of", "this is", "there is", ""]


def caption(scene, seed, index, k=0, background=0.5, colours=0.2):
    """The k-th caption of a scene, drawn from templates: objects in any order, one in seven left out while
    another is named, a size word four times in ten, the background with probability `background`, colour
    words in a share `colours` of the captions."""
    rng = np.random.default_rng((seed, index, 1 + k))
    colourful = rng.random() < colours
    named = [o for o in scene.objects if rng.random() > 0.15] or [_pick(rng, scene.objects)]
    words = [_pick(rng, OPENINGS)]
    for i, j in enumerate(rng.permutation(len(named))):
        o = named[j]
        words += [_pick(rng, ("and", "with", "next to"))] if i else []
        size, colour = o.size if rng.random() < 0.4 else "", o.colour if colourful else ""
        words += [_pick(rng, ("a", "the", "one")), size, colour, o.name]
    if rng.random() < background:
        colour = scene.background.colour if colourful else ""
        words += [
            _pick(rng, ("on a", "in front of a", "with a")),
            colour,
            scene.background.pattern,
            "background",
        ]
    return " ".join(word for word in words if word)
