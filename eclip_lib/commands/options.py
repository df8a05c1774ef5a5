"""Options of the command line that several commands have."""

import functools
import inspect
from typing import Annotated

import typer
import yaml

from .. import files


def about(text):
    """An option, by what it is."""
    return typer.Option(help=text)


def argument(text):
    return typer.Argument(help=text)


ProfileOption = Annotated[
    str, about("demo, photos, paper-quick, paper, or the path of a YAML file of that form")
]
PAIR = "a trained pair for eclip: a file, a folder of pairs, or a name on the hub"
NetworkOption = Annotated[str, about("an open_clip model name, or a demo network")]
Pretrained = Annotated[str, about("an open_clip tag or a checkpoint")]
Device = Annotated[str, about("cpu, cuda, cuda:1, …; auto is a GPU where there is one")]
Projected = Annotated[str | None, about(PAIR)]
Size = Annotated[str | None, about("the network's input, e.g. 336 or 336x448, in place of its own square")]
Out = Annotated[str | None, about("folder of the run; default runs/<profile>")]
SETTINGS = {  # of a profile, each an option that replaces the profile's own
    "networks": (str, "names, separated by commas"),
    "datasets": (str, "names, separated by commas"),
    "root": (str, "folder of the datasets, or name=folder,name=folder"),
    "pretrained": (str, "an open_clip tag, a checkpoint, or 'random'"),
    "pairs": (str, "image-caption pairs to train on, e.g. web:'gcc3m/*.tar'"),
    "projection": (str, PAIR),
    "limit": (int, "only so many images a dataset"),
    "limit_pairs": (int, "only so many image-caption pairs"),
    "device": (str, "cpu, cuda, cuda:1, …"),
    "precision": (str, "fp32 or bf16"),
    "workers": (int, "processes that decode images"),
    "batch_size": (int, "images of a forward pass"),
    "seed": (int, "of trainings and of intervals"),
    "trainings": (int, "trainings of each pair, from different seeds"),
}


def with_settings(command):
    """The command with an option for every setting of a profile that one word can give, and `--set` for the
    others: its `settings` are those that were typed."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
    every = {**SETTINGS, "set": (list[str], "another setting, e.g. training.epochs=3")}
    panel, options = "In place of the profile's own settings", []
    for name, (kind, said) in every.items():
        option = Annotated[kind | None, typer.Option(help=said, rich_help_panel=panel)]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(name, keyword, default=None, annotation=option))

    @functools.wraps(command)
    def parsed(**given):
        settings = {name: given.pop(name) for name in every}
        words = settings.pop("set") or []
        typed = {name: value for name, value in settings.items() if value is not None}
        return command(**given, settings=typed | _set(words, **typed))

    parsed.__signature__ = inspect.Signature([*own, *options])
    parsed.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
    return parsed


def _set(words, **typed):
    """["trainings=2", "training.epochs=3"] -> {"trainings": 2, "training": {"epochs": 3}}. typed: settings
    that were given by options of their own. Raises ValueError where one is given twice."""
    found = {}
    for word in words:
        name, mark, value = word.partition("=")
        if not mark:
            raise ValueError(f"--set takes NAME=VALUE, like training.epochs=3, not {files.few([word])!r}")
        outer, _, inner = name.partition(".")
        try:
            value = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"--set {files.few([word])!r}: the value is not readable YAML") from error
        known = (typed | found).get(outer, {})
        twice = not isinstance(known, dict) or (inner in known if inner else bool(known))
        if outer in ("out", "part", "dropped") or twice:
            said = f"--set cannot give {files.few([name])!r}"
            raise ValueError(f"{said}; it takes a setting of the profile, once")
        if value is None and outer != "pretrained" and not inner:  # a setting that nobody gave
            said = "null leaves a setting as the profile has it; write a value, or a profile of your own"
            raise ValueError(f"--set {files.few([word])}: {said}")
        found[outer] = found.get(outer, {}) | {inner: value} if inner else value
    return found


def device_of(word):
    """ "auto" is a GPU where torch sees one, else the CPU; any other word is itself."""
    if word != "auto":
        return word
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def size_of(text):
    """ "336" or "336x448" -> (height, width). Raises ValueError."""
    sides = (text or "").lower().split("x")
    if text and not (len(sides) <= 2 and all(side.isdecimal() and len(side) < 5 for side in sides)):
        said = "--size is a side, or height x width, like 336 or 336x448"
        raise ValueError(f"{said}, not {files.few([text])!r}")
    return (int(sides[0]), int(sides[-1])) if text else None
