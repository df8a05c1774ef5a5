"""How the demo networks' vocabulary was made: byte-pair merges, in open_clip's format, that make one token of
every word a caption can contain.

    python data/demo/training/vocabulary.py    # writes data/demo/scenes_bpe.txt.gz
"""

import gzip

from eclip_lib.networks import demo


def pieces(word, merges):
    """Byte-pair encode one word: join the earliest known pair until none is left."""
    found = [*word[:-1], word[-1] + "</w>"]
    while known := [merges.index(p) for p in zip(found, found[1:], strict=False) if p in merges]:
        a, b = merges[min(known)]
        for i in range(len(found) - 1, 0, -1):
            if found[i - 1 : i + 1] == [a, b]:
                found[i - 1 : i + 1] = [a + b]
    return found


def merges():
    """The file's bytes."""
    pairs = []
    for word in demo.words():  # later merges never disturb an earlier word: its own are ranked before them
        while len(rest := pieces(word, pairs)) > 1:
            pairs.append((rest[0], rest[1]))
    return "\n".join(["#version: scenes", *(f"{a} {b}" for a, b in pairs)]).encode()


if __name__ == "__main__":
    with gzip.GzipFile(demo.MERGES, "wb", mtime=0) as file:
        file.write(merges())
