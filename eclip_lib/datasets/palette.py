"""The demo world's words: its colours, background patterns, and classes with their typical pair of colours."""

COLOURS = {
    "red": (215, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 210), "yellow": (235, 210, 50),
    "purple": (140, 60, 180), "orange": (240, 140, 40), "pink": (245, 150, 190), "cyan": (60, 200, 215),
    "brown": (130, 85, 50), "white": (240, 240, 240), "black": (25, 25, 25), "gray": (130, 130, 130),
}  # fmt: skip
PATTERNS = ["plain", "striped", "checkered", "dotted", "wavy", "bricked", "gradient", "noisy"]
TYPICAL = {
    "circle": ("red", "white"), "square": ("blue", "yellow"), "triangle": ("orange", "black"),
    "star": ("yellow", "purple"), "heart": ("pink", "red"), "cross": ("white", "blue"), "ring": ("orange", "white"),
    "crescent": ("yellow", "black"), "arrow": ("green", "white"), "diamond": ("cyan", "blue"),
    "hexagon": ("purple", "pink"), "drop": ("cyan", "white"), "house": ("brown", "red"), "fish": ("orange", "cyan"),
    "bolt": ("yellow", "gray"), "flower": ("pink", "green"),
}  # fmt: skip
CLASSES = list(TYPICAL)
