"""webdataset's tar files: pictures and captions of one key stand together; damaged and cut ones are
refused."""

import json
import tarfile
import zlib
from pathlib import Path

PICTURES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


def samples(path):
    """(key, {suffix: bytes}) of a tar's files that share all but their last suffix, which stand together.
    Raises ValueError where the tar is damaged or cut off."""
    try:
        with tarfile.open(path) as tar:
            key, sample = None, {}
            for member in tar:
                if not member.isfile() or Path(member.name).name.startswith("._"):
                    continue
                stem, _, suffix = member.name.rpartition(".")
                if stem != key and sample:
                    yield key, sample
                    sample = {}
                key = stem
                sample[suffix.lower()] = tar.extractfile(member).read()
            _require_end(tar)
            if sample:
                yield key, sample
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a whole tar file ({error}); get it again or remove it") from error


def _require_end(tar):
    """A tar ends with a block of zeros, where the next file would begin; one that was cut between two files
    does not."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(512) != bytes(512):
        raise tarfile.ReadError("it ends in the middle")


def caption(sample):
    """The caption of a sample: its .txt, else the field of that name in its .json."""
    text = sample.get("txt", b"").decode("utf-8", errors="replace").strip()
    if text or "json" not in sample:
        return text
    try:
        about = json.loads(sample["json"])
    except ValueError:
        return ""
    found = about.get("caption") if isinstance(about, dict) else None
    return found.strip() if isinstance(found, str) else ""
