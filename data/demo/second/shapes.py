"""What the objects of the demo world look like: outlines of the classes, of nameless scraps, and the fills
they share.

Object coordinates are about [-1, 1], x to the right, y down. A fill is decided by additions, products,
comparisons and square roots of float32 alone, which are exact in IEEE 754.
"""

import numpy as np

from eclip_lib.datasets.shapes import CLASSES, OUTLINES, stripes, turn, wedges

__all__ = ["CLASSES", "FILLS", "OUTLINES", "SCRAPS", "dots", "stripes"]


SCRAPS = {  # shapes of no class: no caption ever names one
    "bar": [([(-1.2, -0.25), (1.2, -0.25), (1.2, 0.25), (-1.2, 0.25)], True)],
    "elbow": [([(-0.9, -0.9), (-0.35, -0.9), (-0.35, 0.35), (0.9, 0.35), (0.9, 0.9), (-0.9, 0.9)], True)],
    "splinter": [([(-1.2, 0.1), (0.3, -0.55), (1.1, 0.5)], True)],
    "blob": [(turn([0.9, 0.5, 1.0, 0.8, 0.45, 1.1, 0.7], 7), True)],
}


# ---------------------------------------------------------------------------------------- fills


def dots(u, v, period, radius):
    """bool: discs of `radius` on a square lattice of `period`."""
    u, v = ((z / np.float32(period)) - np.floor(z / np.float32(period)) - np.float32(0.5) for z in (u, v))
    return u * u + v * v < np.float32(round((radius / period) ** 2, 6))


# name -> which pixels take the second colour, from object coordinates; every class wears every fill
FILLS = {
    "rings": lambda u, v: stripes(np.sqrt(u * u + v * v), 0.4),
    "bars": lambda u, v: stripes(v, 0.36),
    "stripes": lambda u, v: stripes(u, 0.36),
    "slants": lambda u, v: stripes(u + v, 0.5),
    "checks": lambda u, v: stripes(u, 0.66) ^ stripes(v, 0.66),
    "dots": lambda u, v: dots(u, v, 0.45, 0.15),
    "wedges": lambda u, v: wedges(u, v, 4),
    "halves": lambda u, v: u > 0,
}
