"""What the objects of the demo world look like: outlines of the classes, of nameless scraps, and the fills
they share.

Object coordinates are about [-1, 1], x to the right, y down. A fill is decided by additions, products,
comparisons and square roots of float32 alone, which are exact in IEEE 754.
"""

import math

import numpy as np


def _turn(radius, n, start=-math.pi / 2, x=0.0, y=0.0):
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

OUTLINES = {  # class -> polygons: (points, True to add the polygon, False to cut it out)
    "circle": [(_turn(0.95, 40), True)],
    "square": [([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], True)],
    "triangle": [(_turn(1.1, 3), True)],
    "star": [(_turn([1.1, 0.45] * 5, 10), True)],
    "heart": [([_heart(a) for a in _ROUND], True)],
    "cross": [(_mirrored(_QUARTER), True)],
    "ring": [(_turn(1, 40), True), (_turn(0.55, 40), False)],
    "crescent": [(_turn(1, 40), True), (_turn(0.85, 40, x=0.5), False)],
    "arrow": [
        ([(-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1.1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)], True)
    ],
    "diamond": [([(0, -1.2), (0.62, 0), (0, 1.2), (-0.62, 0)], True)],
    "hexagon": [(_turn(1, 6, 0), True)],
    "drop": [([(0.75 * math.sin(a) * math.sin(a / 2) ** 1.5, -1.05 * math.cos(a)) for a in _ROUND], True)],
    "house": [(_mirrored([(0, -1.05), (0.75, -0.2), (0.75, 0.95), (0.25, 0.95), (0.25, 0.3)]), True)],
    "fish": [
        ([(0.75 * math.cos(a) - 0.2, 0.55 * math.sin(a)) for a in _ROUND], True),
        ([(0.35, 0), (1.1, -0.6), (1.1, 0.6)], True),
        (_turn(0.1, 10, x=-0.6, y=-0.12), False),
    ],
    "bolt": [
        (
            [
                (0.15, -1.1),
                (-0.65, 0.15),
                (-0.05, 0.15),
                (-0.25, 1.1),
                (0.65, -0.25),
                (0.05, -0.25),
                (0.45, -1.1),
            ],
            True,
        )
    ],
    "flower": [(_turn([0.78 + 0.3 * math.cos(6 * a) for a in _ROUND], 60, 0), True)],
}
CLASSES = list(OUTLINES)

SCRAPS = {  # shapes of no class: no caption ever names one
    "bar": [([(-1.2, -0.25), (1.2, -0.25), (1.2, 0.25), (-1.2, 0.25)], True)],
    "elbow": [([(-0.9, -0.9), (-0.35, -0.9), (-0.35, 0.35), (0.9, 0.35), (0.9, 0.9), (-0.9, 0.9)], True)],
    "splinter": [([(-1.2, 0.1), (0.3, -0.55), (1.1, 0.5)], True)],
    "blob": [(_turn([0.9, 0.5, 1.0, 0.8, 0.45, 1.1, 0.7], 7), True)],
}


# ---------------------------------------------------------------------------------------- fills


def stripes(z, period):
    """bool: the first half of every period of z."""
    z = z / np.float32(period)
    return z - np.floor(z) < 0.5


def dots(u, v, period, radius):
    """bool: discs of `radius` on a square lattice of `period`."""
    u, v = ((z / np.float32(period)) - np.floor(z / np.float32(period)) - np.float32(0.5) for z in (u, v))
    return u * u + v * v < np.float32(round((radius / period) ** 2, 6))


def _wedges(u, v, lines):
    side = np.ones_like(u, bool)
    for i in range(lines):
        c, s = (np.float32(round(f(math.pi * (i + 0.5) / lines), 6)) for f in (math.cos, math.sin))
        side ^= u * c + v * s > 0
    return side


# name -> which pixels take the second colour, from object coordinates; every class wears every fill
FILLS = {
    "rings": lambda u, v: stripes(np.sqrt(u * u + v * v), 0.4),
    "bars": lambda u, v: stripes(v, 0.36),
    "stripes": lambda u, v: stripes(u, 0.36),
    "slants": lambda u, v: stripes(u + v, 0.5),
    "checks": lambda u, v: stripes(u, 0.66) ^ stripes(v, 0.66),
    "dots": lambda u, v: dots(u, v, 0.45, 0.15),
    "wedges": lambda u, v: _wedges(u, v, 4),
    "halves": lambda u, v: u > 0,
}
