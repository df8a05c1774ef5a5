"""The boundary of the command line: a warning becomes a note, whatever goes wrong one sentence."""

import os
import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path

said: set[str] = set()


def note(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, UserWarning) and (text := f"note: {message}") not in said:
        said.add(text)
        print(text, file=sys.stderr)


def unraisable(error):
    """torch tells of a killed worker wherever this process is then, in a destructor too, where it is lost;
    the next batch tells it again."""
    if "DataLoader worker" not in str(error.exc_value):
        sys.__unraisablehook__(error)


def sentence(error):
    """What a user reads: the sentence of a mistake; of anything else its kind and first line, and how to see
    more."""
    line = " ".join(str(error).split())
    if hasattr(error, "format_message"):  # of the command line's words; empty where help was shown
        line, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        return line and f"{line[:200]}; see {context.command_path if context else 'eclip'} --help"
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        path = Path(error.filename)
        file = next((place for place in [*reversed(path.parents), path] if place.is_file()), path)
        return f"{file}: a file is in the way of a folder; name another place"
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | os.PathLike):
        name = re.sub("(?s)^(.{120}).{30,}(.{120})$", r"\1…\2", str(error.filename))
        return f"{name}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return line if len(line) < 300 else re.sub(r"(\S{30})\S{40,}(\S{30})", r"\1…\2", line)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: run with a smaller --batch-size, or with --device cpu"
    if "DataLoader worker" in line:  # told by a signal, wherever this process is then
        from ..networks.clip import KILLED  # of torch, which is loaded then

        return KILLED
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; pip install 'eclip-lib[notebooks]' has all that commands need"
    return (
        f"an unexpected {type(error).__name__}: {line[:250]}; run it with --debug to see where, and report it"
    )


def require_values(words):
    """Raise ValueError where an option is given an empty value, as by a shell's variable that is not set: it
    would count as left out."""
    for option, value in pairwise([*words, "-"]):
        if re.fullmatch("--[^=]+=" if value else "--[^=]+=?", option):
            raise ValueError(f"{option.rstrip('=')} is given an empty value; write one, or leave it out")


def run(app):
    """Run a typer app: whatever goes wrong ends in one sentence. `--debug` shows where."""
    if hasattr(sys.stdout, "reconfigure"):  # a program that calls this may have put another one there
        sys.stdout.reconfigure(errors="replace")  # names of files need not be text
    debug = "--debug" in sys.argv or os.environ.get("ECLIP_DEBUG")
    sys.argv = [word for word in sys.argv if word != "--debug"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning, sys.unraisablehook = note, unraisable
        try:
            require_values(sys.argv[1:])
            sys.exit(app(prog_name="eclip", standalone_mode=False))
        except Exception as error:
            if debug:
                raise
            sys.exit((text := sentence(error)) and f"eclip: {text}")
        finally:
            sys.unraisablehook = sys.__unraisablehook__
