"""What the demo world is made of: colours, background patterns, and the classes with their typical colours,
outlines and fills, in object coordinates of about [-1, 1], y down.

A fill is decided by additions, products, comparisons and square roots of float32 alone, which are exact in
IEEE 754."""

import math

import numpy as np

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 210),
    "yellow": (235, 210, 50),
    "purple": (140, 60, 180),
    "orange": (240, 140, 40),
    "pink": (245, 150, 190),
    "cyan": (60, 200, 215),
    "brown": (130, 85, 50),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
    "gray": (130, 130, 130),
}
PATTERNS = ["plain", "striped", "checkered", "dotted", "wavy", "bricked", "gradient", "noisy"]
TYPICAL = {
    "circle": ("red", "white"),
    "square": ("blue", "yellow"),
    "triangle": ("orange", "black"),
    "star": ("yellow", "purple"),
    "heart": ("pink", "red"),
    "cross": ("white", "blue"),
    "ring": ("orange", "white"),
    "crescent": ("yellow", "black"),
    "arrow": ("green", "white"),
    "diamond": ("cyan", "blue"),
    "hexagon": ("purple", "pink"),
    "drop": ("cyan", "white"),
    "house": ("brown", "red"),
    "fish": ("orange", "cyan"),
    "bolt": ("yellow", "gray"),
    "flower": ("pink", "green"),
}
CLASSES = list(TYPICAL)


def turn(radius, n, start=-math.pi / 2, x=0.0, y=0.0):
    """n points around a circle; `radius` is a number or one number a point."""
    radii = np.broadcast_to(radius, n)
    angles = [start + 2 * math.pi * i / n for i in range(n)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart(a):
    """Point of the heart's curve at parameter a."""
    y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
    return math.sin(a) ** 3 * 16 / 17, -y / 17


def _mirrored(right):
    """A polygon from its right half, top to bottom: the left half is added, mirrored, bottom to top."""
    return [*right, *((-x, y) for x, y in reversed(right) if x)]


_ROUND = [2 * math.pi * i / 60 for i in range(60)]
_ARM = 0.33
_QUARTER = [(_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM), (_ARM, 1)]
_BOLT = [(0.15, -1.1), (-0.65, 0.15), (-0.05, 0.15), (-0.25, 1.1), (0.65, -0.25), (0.05, -0.25), (0.45, -1.1)]
_ARROW = [(-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1.1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)]

OUTLINES = {  # class -> polygons: (points, True to add the polygon, False to cut it out)
    "circle": [(turn(0.95, 40), True)],
    "square": [([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], True)],
    "triangle": [(turn(1.1, 3), True)],
    "star": [(turn([1.1, 0.45] * 5, 10), True)],
    "heart": [([_heart(a) for a in _ROUND], True)],
    "cross": [(_mirrored(_QUARTER), True)],
    "ring": [(turn(1, 40), True), (turn(0.55, 40), False)],
    "crescent": [(turn(1, 40), True), (turn(0.85, 40, x=0.5), False)],
    "arrow": [(_ARROW, True)],
    "diamond": [([(0, -1.2), (0.62, 0), (0, 1.2), (-0.62, 0)], True)],
    "hexagon": [(turn(1, 6, 0), True)],
    "drop": [([(0.75 * math.sin(a) * math.sin(a / 2) ** 1.5, -1.05 * math.cos(a)) for a in _ROUND], True)],
    "house": [(_mirrored([(0, -1.05), (0.75, -0.2), (0.75, 0.95), (0.25, 0.95), (0.25, 0.3)]), True)],
    "fish": [
        ([(0.75 * math.cos(a) - 0.2, 0.55 * math.sin(a)) for a in _ROUND], True),
        ([(0.35, 0), (1.1, -0.6), (1.1, 0.6)], True),
        (turn(0.1, 10, x=-0.6, y=-0.12), False),
    ],
    "bolt": [(_BOLT, True)],
    "flower": [(turn([0.78 + 0.3 * math.cos(6 * a) for a in _ROUND], 60, 0), True)],
}
DISTRACTORS = {f"scrap{n}": [(turn(1, n), True)] for n in (3, 4, 5, 6)}  # no caption ever names one


def stripes(z, period):
    """bool: the first half of every period of z."""
    z = z / np.float32(period)
    return z - np.floor(z) < 0.5


def dots(u, v, period, radius):
    """bool: discs of `radius` on a square lattice of `period`."""
    u, v = ((z / np.float32(period)) - np.floor(z / np.float32(period)) - np.float32(0.5) for z in (u, v))
    return u * u + v * v < (radius / period) ** 2


def wedges(u, v, lines):
    side = np.ones_like(u, bool)
    for i in range(lines):
        c, s = (np.float32(round(f(math.pi * (i + 0.5) / lines), 6)) for f in (math.cos, math.sin))
        side ^= u * c + v * s > 0
    return side


def _radius(u, v):
    return np.sqrt(u * u + v * v)


FILLS = {  # class -> which pixels take the second colour, from object coordinates u (right), v (down)
    "circle": lambda u, v: stripes(_radius(u, v), 0.4),
    "square": lambda u, v: ~(stripes(u + np.float32(0.1), 0.42) & stripes(v + np.float32(0.1), 0.42)),
    "triangle": lambda u, v: stripes(v, 0.36),
    "star": lambda u, v: wedges(u, v, 5),
    "heart": lambda u, v: dots(u, v, 0.5, 0.14),
    "cross": lambda u, v: (np.abs(u) < 0.13) | (np.abs(v) < 0.13),
    "ring": lambda u, v: wedges(u, v, 4),
    "crescent": lambda u, v: stripes(u, 0.3),
    "arrow": lambda u, v: stripes(np.abs(v) - u, 0.4),
    "diamond": lambda u, v: stripes(np.abs(u) * np.float32(1.8) + np.abs(v), 0.4),
    "hexagon": lambda u, v: stripes(u, 0.66) ^ stripes(v, 0.66),
    "drop": lambda u, v: _radius(u, v - np.float32(0.35)) < 0.35,
    "house": lambda u, v: (_radius(u, v + np.float32(0.35)) < 0.2) | (v < -0.55),
    "fish": lambda u, v: dots(u, v, 0.3, 0.13) & (u > -0.35),
    "bolt": lambda u, v: stripes(u + v, 0.3),
    "flower": lambda u, v: _radius(u, v) < 0.4,
}
FILLS |= {name: lambda u, v: u > 0 for name in DISTRACTORS}
