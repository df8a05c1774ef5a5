"""Large files from the network: resumed after a broken transfer, checked, unpacked without a half-written
tree."""

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import huggingface_hub

from .files import alone, digest, few, set_aside
from .progress import tqdm

CHUNK, TRIES, TIMEOUT = 1 << 20, 5, 20


def size(count):
    """Bytes in words: "1.9 GB"."""
    if count is None:
        return "size not published"
    units = {1e9: "GB", 1e6: "MB", 1e3: "kB", 1: "bytes"}
    unit = next(unit for unit in units if count >= unit or unit == 1)
    return f"{count / unit:.3g} {units[unit]}"


def require_space(path, count, what):
    """Raise OSError where the disk of `path` has fewer than `count` bytes free."""
    place = next(p for p in [Path(path), *Path(path).absolute().parents] if p.exists())
    free = shutil.disk_usage(place).free
    if count and free < count:
        said = f"{what} needs {size(count)} on the disk of {path}, which has {size(free)} free"
        raise OSError(f"{said}: free some or name another folder")


def partial_of(path):
    """Where a broken transfer of a file stays: under a name that nobody else gives."""
    return path.with_name(f".{path.name}.eclip-partial")


def fetch(url, path, expected=None, checksum=None):
    """Download `url` to `path`, atomically. expected: bytes; checksum: "md5:…" or "sha256:…". A broken
    transfer stays beside it (`partial_of`) and is taken up again (HTTP range requests), a few times by
    itself. Another file that is there is kept beside it.

    Raises OSError: unreachable, no room, or not the file it should be, which is then removed."""
    path = Path(path)
    partial = partial_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    require_space(path.parent, expected and expected - have, path.name)
    with alone(_lock(path)):  # other ranks and programs wait, then find it
        if not (path.exists() and _is(path, expected, checksum)):
            _resume(url, partial, expected)
            if have and not _is(partial, expected, checksum):
                partial.unlink()  # what was taken up again was no part of it
                _resume(url, partial, expected)
            if not _is(partial, expected, checksum):
                partial.unlink()
                said = f"what {url} sent is not {path.name}: its size or checksum differs"
                raise OSError(f"{said}; it was removed, try again later")
            _tell([place(partial, path)], path.parent)
    return path


def _lock(path):
    return Path(tempfile.gettempdir(), f"eclip-{os.getuid()}-{digest(str(path.absolute()))}.lock")


def _is(path, expected, checksum):
    if checksum is None:
        return expected in (None, path.stat().st_size)
    kind, _, known = checksum.partition(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest() == known


def _resume(url, partial, expected):
    """Go on where an earlier, broken transfer to `partial` stopped."""
    for attempt in range(TRIES):
        try:
            return _transfer(url, partial, expected)
        except urllib.error.HTTPError as error:
            raise OSError(f"{url} answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            # an address that cannot be reached is not asked again, a transfer that broke is
            if attempt + 1 == TRIES or not partial.exists():
                reason = str(getattr(error, "reason", error)).strip()
                raise OSError(f"{url}: {reason or type(error).__name__}") from error
            time.sleep(min(attempt, 3))


def _transfer(url, partial, expected):
    have = partial.stat().st_size if partial.exists() else 0
    if have and have == expected:
        return
    if expected and have > expected:
        have = 0
    answer, have = _answer(url, have)
    kind, packed = answer.headers.get_content_type(), answer.headers.get("Content-Encoding", "identity")
    if kind == "text/html" or packed != "identity":
        answer.close()
        what = "a web page" if kind == "text/html" else f"what is packed by {packed}"
        raise OSError(f"it sends {what}, not the file; is there a page to sign in to, or a proxy?")
    length = answer.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else expected
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=Path(url).name)
    with answer, open(partial, "ab" if have else "wb") as file, bar:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    arrived = partial.stat().st_size
    if total and arrived < total:
        raise OSError(f"the connection closed after {size(arrived)} of {size(total)}")


def _answer(url, have):
    """What a server sends of a file of which we `have` bytes, and how many of those it leaves out: 0 where it
    knows no ranges, sends another one, or has no more than we have."""
    if have:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT)
            if answer.status != 206:
                return answer, 0
            if answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return answer, have
            answer.close()
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
    return urllib.request.urlopen(url, timeout=TIMEOUT), 0


def place(fresh, path):
    """Move a file into place -> where another one that lay there, maybe a user's own, is kept, or None."""
    other = path.is_file() and digest(path) != digest(fresh)
    kept = set_aside(path) if other else None
    os.replace(fresh, path)
    return kept


def _tell(places, folder):
    if kept := [path.relative_to(folder) for path in places if path]:
        said = f"{len(kept)} files in {folder} were not as they came; they are kept as {few(kept)}"
        warnings.warn(said, stacklevel=3)


@contextmanager
def hub():
    """Other libraries' downloads from the Hugging Face hub: one short look whether it answers, else their
    cache alone, instead of a minute of retries."""
    before, offline = huggingface_hub.constants.HF_HUB_OFFLINE, False
    try:
        look = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(look, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, http.client.HTTPException):
        offline = True
    except ValueError as error:
        raise ValueError(f"HF_ENDPOINT: {error}; write it like https://huggingface.co") from error
    huggingface_hub.constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def unpack(archive, root):
    """Unpack a tar or zip under `root`: into a folder beside it first, then file by file into place, so that
    no file is ever half there and none is lost -> {file: [bytes, digest]} for `differing`. Raises ValueError
    for an archive with members that would land outside, OSError for no room; nothing is written then."""
    root = Path(root)
    members = _members(archive)
    require_space(root, sum(count for _, count, _ in members), Path(archive).name)
    root.mkdir(parents=True, exist_ok=True)
    with alone(_lock(root)), tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as staged:
        for left in {*root.glob(".unpacking-*")} - {Path(staged)}:
            shutil.rmtree(left, ignore_errors=True)  # by a program that was killed
        zipped = zipfile.is_zipfile(archive)
        filtered = {} if zipped else {"filter": "data"}
        with zipfile.ZipFile(archive) if zipped else tarfile.open(archive) as file:
            inside = file.infolist() if zipped else file
            for member in tqdm(inside, desc=f"unpacking {Path(archive).name}", unit="file"):
                file.extract(member, staged, **filtered)
        listed, kept = {}, []
        for path in sorted(p for p in Path(staged).rglob("*") if p.is_file()):
            target = root / path.relative_to(staged)
            listed[str(path.relative_to(staged))] = [path.stat().st_size, digest(path)]
            target.parent.mkdir(parents=True, exist_ok=True)
            kept.append(place(path, target))
    _tell(kept, root)
    return listed


def differing(listed, root, contents=False):
    """The files of `unpack` that are not under `root` as they came: by their size, and their digest with
    `contents`."""

    def same(path, about):
        if not path.is_file() or not isinstance(about, list) or about[:1] != [path.stat().st_size]:
            return False
        return not contents or about[1:] == [digest(path)]

    return [name for name, about in listed.items() if not same(Path(root, name), about)]


def _members(archive):
    """(name, bytes, plain file or folder) of all in a tar or zip. Raises ValueError where one would land
    outside, or is a link."""
    if zipfile.is_zipfile(archive):
        members = [(m.filename, m.file_size, True) for m in zipfile.ZipFile(archive).infolist()]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            members = [(m.name, m.size, m.isfile() or m.isdir()) for m in tar]
    else:
        raise ValueError(f"{archive} is neither a tar nor a zip archive; remove it and fetch again")
    for name, _, plain in members:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0] or not plain:
            said = f"{archive} holds {name!r}, which would land outside its folder or is no plain file"
            raise ValueError(f"{said}: not unpacked")
    return members
