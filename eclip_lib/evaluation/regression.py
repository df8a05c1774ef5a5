"""What differs between a table and the committed one: the regression cell of every notebook."""

import re

import pandas as pd

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def compare(names, ours, theirs, about, tolerance):
    """The tables `names` in the folder `ours` against those in `theirs`, which messages call `about` -> a
    line a table. Raises AssertionError that names all that differs, see `differences`."""
    lines, wrong = [], []
    for name in dict.fromkeys(names):
        here, committed = (_read(folder / f"{name}.csv") for folder in (ours, theirs))
        if committed is None:
            lines.append(f"{name}: nothing committed to compare with")
            continue
        here = pd.DataFrame(columns=committed.columns) if here is None else here
        wrong += [f"{name}: {what}" for what in differences(here, committed, tolerance)]
        lines.append(f"{name}: {len(committed)} rows agree with {about} within {tolerance}")
    if wrong:
        raise AssertionError("\n".join([f"{len(wrong)} differences from {about}:", *wrong]))
    return "\n".join(lines)


def _read(path):
    return pd.read_csv(path) if path.exists() else None


def differences(ours, theirs, tolerance):
    """What differs between two tables, a line each: numbers (see `Run.check`), also numbers inside words (to
    the last digit printed), other words, rows or columns."""
    if list(ours.columns) != list(theirs.columns) or len(ours) != len(theirs):
        return [f"other rows or columns ({len(ours)} rows here, {len(theirs)} committed)"]
    found = []
    for column in theirs:
        numeric = pd.api.types.is_numeric_dtype(theirs[column])
        scale = theirs[column].abs().max() if numeric else 0
        allowed = max(1e-4, min(tolerance, 0.01 * scale)) if numeric else tolerance
        for row, (a, b) in enumerate(zip(ours[column], theirs[column], strict=True)):
            if not _same(a, b, allowed):
                found.append(f"row {row}, {column}: {a} here, {b} committed")
    return found


def _same(a, b, allowed):
    if pd.isna(a) or pd.isna(b):
        return pd.isna(a) and pd.isna(b)
    if not isinstance(a, str) and not isinstance(b, str):
        return abs(a - b) <= allowed * (1 + 1e-9)
    if not (isinstance(a, str) and isinstance(b, str)) or NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    numbers = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(abs(float(x) - float(y)) <= (max(allowed, 0.11) if "." in y else 0) for x, y in numbers)
