"""Progress bars: drawn by tqdm where the work is, or, under `eclip reproduce`, told to the terminal, which is
another process than the notebook's."""

import io
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from tqdm import auto, std

TOLD = "ECLIP_PROGRESS"  # names the file whose content is the line of the bar that moved last


PAUSE = (0.5, 30)  # seconds between two looks for a terminal, and for a log


class _Line(io.StringIO):
    def write(self, text):
        line = text.strip()
        if line and not line.startswith("\x1b"):  # where it puts the cursor
            Path(os.environ[TOLD]).write_text(line)
        return len(text)


def tqdm(*arguments, **options):
    """`tqdm.auto.tqdm`, which under `eclip reproduce` leaves nothing in the notebook."""
    if options.get("disable") is None and os.environ.get("TQDM_DISABLE"):
        options["disable"] = True  # said by name it would count more than the environment
    if TOLD not in os.environ:
        return auto.tqdm(*arguments, **options)
    if options.get("disable") is None:  # where there is no terminal
        options.pop("disable", None)
    return std.tqdm(*arguments, **options, file=_Line(), ncols=100)


def begun(parent):
    """In a process that was forked from `parent`: it ends when that one does, at Ctrl-C without a word, and
    its bars have a lock of their own. The one that it inherits may be held by a thread that is not here to
    let it go."""
    for bars in (std.tqdm, auto.tqdm):
        bars.set_lock(threading.RLock())
    _end_with(parent)
    signal.default_int_handler = lambda *_: os._exit(1)  # asyncio puts it back after each notebook
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_with(parent):
    """End this process, which was forked from `parent`, when that one ends: it holds that one's locks."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def shown():
    """The bars of processes that are started in this block, as one line below the bar that is there; in a log
    a line now and then."""
    terminal, done = sys.stderr.isatty(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "bar")

        def follow():
            last = ""
            with std.tqdm(bar_format="{desc}", position=1, leave=False, disable=not terminal) as bar:
                while not done.wait(PAUSE[not terminal]):
                    line = told.read_text() if told.exists() else ""
                    if line and line != last:
                        last = line
                        bar.set_description_str(line) if terminal else print(
                            line, file=sys.stderr, flush=True
                        )

        os.environ[TOLD] = str(told)
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            del os.environ[TOLD]
            done.set()
            thread.join()
