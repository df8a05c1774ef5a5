"""Tables of image-caption pairs, by tabs or commas, as people write them: quotes may hold a field together or
be part of it."""

import csv
import io
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
    found = _quoted(text, separator) or [(number, _fields(line, separator)) for number, line in lines]
    columns = [name.strip() for name in found[0][1]] if found else []
    if not columns.count("filepath") == columns.count("title") == 1:
        said = f"{path}: needs the columns filepath and title once each, has {files.few(columns) or 'none'}"
        raise ValueError(f"{said} (separator {separator!r})")
    for number, row in found[1:]:
        if len(row) < len(columns) or any(field.strip() for field in row[len(columns) :]):
            said = f"{path}, line {number}: {len(row)} fields, not {len(columns)}"
            raise ValueError(f"{said}; quote fields that hold {separator!r}")
    return [(number, dict(zip(columns, row, strict=False))) for number, row in found[1:]]


def _quoted(text, separator):
    """[(number of its last line, fields)] where every quote of a table opens or closes a field, also one of
    several lines; else None. A field that holds a line end and a separator is two lines with a quote each."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if "".join(row).strip()]
    except csv.Error:
        return None
    torn = (separator in field and re.search("[\r\n]", field) for _, row in rows for field in row)
    return None if any(torn) else rows


def _fields(line, separator):
    """The fields of one line: quotes hold a field together where they pair up, else they are part of it."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return line.split(separator)
