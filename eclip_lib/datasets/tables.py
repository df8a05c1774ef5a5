"""Tables of image-caption pairs, by tabs or commas, as people write them: quotes may hold a field together or
be part of it."""

import csv
import io
import os
import re

from .. import files


def rows(path):
    """A table with the columns filepath and title -> [(line, {column: field})].

    A quote inside a caption is a quote: only where quotes pair up do they hold a field together. Raises
    ValueError that names the line, FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"no table of image-caption pairs at {path}")
    text = files.read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a field may be as long as its file
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
    separator = "\t" if lines and "\t" in lines[0][1] else ","
    found = _quoted(text, separator, path.parent) or _single(lines, separator, path)
    columns = [name.strip() for name in found[0][1]] if found else []
    if not columns.count("filepath") == columns.count("title") == 1:
        said = f"{path}: needs the columns filepath and title once each, by tabs or commas"
        raise ValueError(f"{said}; name them so in its first line, which has {files.few(columns) or 'none'}")
    for number, row in found[1:]:
        if len(row) < len(columns) or any(field.strip() for field in row[len(columns) :]):
            said = f"{path}, line {number}: {len(row)} fields, not {len(columns)}"
            raise ValueError(f"{said}; quote fields that hold {separator!r}")
    return [(number, dict(zip(columns, row, strict=False))) for number, row in found[1:]]


def _quoted(text, separator, folder):
    """[(number of its last line, fields)] where every quote of a table opens or closes a field, also one of
    several lines; else None. A field whose further lines name files is several lines with lone quotes."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if "".join(row).strip()]
    except csv.Error:
        return None
    more = (line for _, row in rows for field in row for line in re.split("[\r\n]+", field)[1:])
    return None if any(_names_a_file(line, separator, folder) for line in more) else rows


def _single(lines, separator, path):
    """[(number, fields)] of a table whose fields end with their line: quotes hold a field together where they
    pair up, else they are part of it. Raises ValueError where a field seems to go on in the next line."""
    found = []
    for (number, line), (_, after) in zip(lines, [*lines[1:], (0, "")], strict=True):
        try:
            found.append((number, next(csv.reader([line], delimiter=separator, strict=True))))
        except csv.Error as error:
            ends = "unexpected end" not in str(error) or not after
            if not (ends or _names_a_file(after, separator, path.parent)):
                said = f"{path}, line {number}: a quote opens here, and where it closes cannot be told"
                raise ValueError(f"{said}; double each quote that is part of a caption") from error
            found.append((number, line.split(separator)))
    return found


def _names_a_file(line, separator, folder):
    """Whether a line is a row of its own: one of its several fields is a file."""
    words = line.split(separator)
    return len(words) > 1 and any(word and os.path.isfile(folder / word) for word in words)
