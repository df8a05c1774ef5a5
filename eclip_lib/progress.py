"""Progress bars: drawn by tqdm where the work is, or, under `eclip reproduce`, told to the terminal, which is
another process than the notebook's."""

import io
import os
from pathlib import Path

from tqdm import auto, std

TOLD = "ECLIP_PROGRESS"  # names the file whose content is the line of the bar that moved last


class _Line(io.StringIO):
    def write(self, text):
        line = text.strip()
        if line and not line.startswith("\x1b"):  # where it puts the cursor
            Path(os.environ[TOLD]).write_text(line)
        return len(text)


def tqdm(*arguments, **options):
    """`tqdm.auto.tqdm`, which under `eclip reproduce` leaves nothing in the notebook."""
    if TOLD not in os.environ:
        return auto.tqdm(*arguments, **options)
    if options.get("disable") is None:  # where there is no terminal
        options.pop("disable", None)
    return std.tqdm(*arguments, **options, file=_Line(), ncols=100)
