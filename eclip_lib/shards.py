"""Tensors by the parts of a source of image-caption pairs: one safetensors file a part, atomically written,
and a note beside it that says what it was made from.

The folder's name is the digest of the configuration, so another configuration never meets old shards; a part
that was replaced, and a shard that was damaged, are noticed."""

import warnings
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from safetensors.torch import save

from . import files

FORMAT = 4  # of the shards and their notes


class _Skipped(BaseModel, strict=True):
    count: int
    first: list[str]


class _Note(BaseModel, strict=True):
    """What is read of a note."""

    sha256: str
    state: Any
    stamp: Any
    pairs: int
    skipped: dict[str, _Skipped]


class Shards:
    """What was computed from a source under one configuration `about`, in a folder below `folder`."""

    def __init__(self, folder, about, source):
        self.source = source
        self.folder = Path(folder, files.digest({"format": FORMAT, **about})[:12])

    def path(self, number):
        return self.folder / f"{self.source.names[number]}.safetensors"

    def state(self, number):
        """What a part holds now: taken before it is read. Raises ValueError where it cannot be."""
        part = self.source.parts[number]
        try:
            return {"stamp": self.source.stamp(part), "state": self.source.state(part)}
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error

    def note(self, number):
        """The note of a part, if what was made from it was made from what it holds now; else None. The shard
        itself may have been dropped."""
        note = files.read_json(self.path(number).with_suffix(".json"))
        try:
            _Note.model_validate(note)
        except ValidationError:
            return None
        if note["stamp"] == self.source.stamp(self.source.parts[number]):
            return note
        try:
            return note if note["state"] == self.state(number)["state"] else None
        except ValueError:  # who makes it says so
            return None

    def done(self, number):
        """Whether a shard is there and as its note says; a damaged one is named, its note removed."""
        path, note = self.path(number), self.note(number)
        if note is None or not path.exists():
            return False
        if files.digest(path) == note["sha256"]:
            return True
        warnings.warn(f"{path} is damaged; it is made again", stacklevel=2)
        path.with_suffix(".json").unlink(missing_ok=True)
        return False

    def write(self, number, tensors, about):
        """about: the part's `state`, and what else the note says."""
        data = save(tensors)
        files.write(self.path(number), data)
        note = about | {"sha256": files.digest(data)}
        files.write(self.path(number).with_suffix(".json"), files.as_json(note))

    def drop(self):
        """Free the disk; the notes stay."""
        for number in range(len(self.source.parts)):
            self.path(number).unlink(missing_ok=True)
