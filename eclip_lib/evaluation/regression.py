"""What differs between a table and the committed one: the regression cell of every notebook."""

import re

import pandas as pd

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


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
