"""webdataset's tar files as a source of pairs: pictures and captions of one key stand together; damaged and
cut ones are refused."""

import copy
import glob
import io
import os
import re
import tarfile
import warnings
import zlib
from itertools import islice
from pathlib import Path

from .. import files
from .base import read_image

TAR = re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz)$", re.I)
NEARLY = re.compile(r"\.(tar\.(?!(gz|bz2|xz)$)\w+|zip|7z|zst)$", re.I)  # shards, but no tars that are read
PICTURES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


def samples(path):
    """(key, {suffix: bytes}) of a tar's files that share all but their last suffix, which stand together; a
    file between them may say more of the same key ("1.seg.png" beside "1.png"). Raises ValueError where the
    tar is damaged or cut off."""
    try:
        with tarfile.open(path) as tar:
            key, sample, between = None, {}, {}
            for member in tar:
                if not (member.isfile() or member.islnk()) or Path(member.name).name.startswith("._"):
                    continue
                stem, _, suffix = member.name.rpartition(".")
                stem = stem or member.name
                suffix = suffix.lower()
                if sample and stem.startswith(f"{key}."):
                    between.setdefault(stem, {})[suffix] = tar.extractfile(member).read()
                    continue
                if sample and (stem != key or suffix in sample):  # one key twice is two samples
                    yield from [(key, sample), *filter(_has_caption, between.items())]
                    sample, between = {}, {}
                key = stem
                sample[suffix] = tar.extractfile(member).read()
            _require_end(tar)
            if sample:
                yield from [(key, sample), *filter(_has_caption, between.items())]
    except (tarfile.TarError, EOFError, OSError, KeyError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).partition(":")[0]  # tarfile goes on with every compression that it tried
        raise ValueError(f"{path} is not a whole tar file ({reason}); get it again or remove it") from error


def _has_caption(named):
    return not {"txt", "json"}.isdisjoint(named[1])


def _require_end(tar):
    """A tar ends with a block of zeros, where the next file would begin, and nothing behind; one that was cut
    between two files does not, nor do two that were joined byte by byte."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(512) != bytes(512):
        raise tarfile.ReadError("it ends in the middle")
    while block := tar.fileobj.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("another archive or more files behind zeros follow its end")


def caption(sample):
    """The caption of a sample: its .txt, else the field of that name in its .json; None where it is not
    UTF-8."""
    try:
        text = sample.get("txt", b"").decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    if text or "json" not in sample:
        return text
    found = files.parsed(sample["json"]).get("caption")
    return found.strip() if isinstance(found, str) else ""


class WebPairs:
    """webdataset shards in img2dataset's layout (a picture and .txt or .json of one key), e.g. GCC3M:
    `pattern` is a glob of tars, with braces as bash knows them, or their folder. Warns of tars that it names
    one by one and that are not there."""

    def __init__(self, pattern):
        if (folder := files.place(pattern)).is_dir():
            inside = sorted(path for path in folder.iterdir() if path.name[0] != ".")
            found = {"": [path for path in inside if TAR.search(path.name)]}
            if others := [path.name for path in inside if NEARLY.search(path.name)]:
                said = f"left out, no tars by their names: {len(others)} ({files.few(others)})"
                warnings.warn(f"{folder}: {said}", stacklevel=2)
        else:
            found = files.matching(pattern, _expanded)
        paths = sorted(str(path) for some in found.values() for path in some if path.name[:2] != "._")
        self.parts = nonempty(list({os.path.realpath(path): path for path in paths}.values()), pattern)
        gone = [part for part, some in found.items() if not some and not glob.has_magic(part)]
        if gone:
            warnings.warn(f"{len(gone)} of {len(found)} tars are not there: {files.few(gone)}", stacklevel=2)
        # by its own path alone, so that one tar more renames none
        stems = [os.fsencode(Path(part).stem).decode(errors="replace")[-50:] for part in self.parts]
        digests = [files.digest(os.fsencode(part))[:12] for part in self.parts]
        self.names = [f"{stem}-{number}" for stem, number in zip(stems, digests, strict=True)]
        folders = sorted({str(Path(part).parent) for part in self.parts})
        self.about = {"source": "webdataset", "folder": ", ".join(folders)}
        self.cut: dict = {}  # a part: so many of its pairs

    def first(self, count):
        """As many whole parts as hold so many keys, the last one cut; a part that cannot be read holds
        none."""
        cut, left = copy.copy(self), count
        cut.about, cut.parts, cut.names, cut.cut = self.about | {"first": count}, [], [], {}
        for part, name in zip(self.parts, self.names, strict=True):
            if left > 0:
                cut.parts.append(part), cut.names.append(name)
                cut.cut[part] = left
                left -= count_keys(part, left)
        return cut

    @property
    def inputs(self):
        return self.parts

    def place(self, part, key):
        return f"{key} of {Path(part).name}"

    def state(self, part):
        whole = files.digest(Path(part))  # a tar is padded: its size says little
        return [whole, self.cut[part]] if self.cut else whole

    def stamp(self, part):
        return [*(files.stamp(part) or []), self.cut[part]] if self.cut else files.stamp(part)

    def read(self, part):
        for key, sample in islice(samples(part), self.cut.get(part)):
            found = [sample[kind] for kind in PICTURES if kind in sample]
            payload = (key, found[0]) if len(found) == 1 and found[0] else None
            yield key, False if found[1:] else payload, caption(sample)

    def open(self, payload):
        key, data = payload
        return read_image(io.BytesIO(data), name=key)


def _expanded(pattern):
    """The parts of a pattern with braces. Raises ValueError where they do not pair, or count to more than
    there are tars anywhere."""
    from braceexpand import braceexpand  # of the extra `train`

    try:
        most = 10**6
        parts = [] if re.search(r"\.\.\d{7}", pattern) else list(islice(braceexpand(pattern), most + 1))
        if not 0 < len(parts) <= most:
            raise ValueError("they count too far")
        return parts
    except ValueError as error:
        why = str(error).partition(":")[0]
        said = f"web:{files.few([pattern])}: its braces cannot be read ({why})"
        raise ValueError(said + "; write them like web:shards/{00..99}.tar") from error


def count_keys(part, most=None):
    """How many samples a tar has (of the first `most`), 0 where it cannot be read."""
    try:
        return sum(1 for _ in islice(samples(part), most))
    except (OSError, ValueError):
        return 0


def nonempty(found, what):
    """What was found. Raises FileNotFoundError where that is nothing."""
    if not found:
        raise FileNotFoundError(f"no image-caption pair in {what}")
    return found
