"""The command line: `eclip explain | reproduce | promote | evaluate | train | data | bench`."""

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .commands.options import Out, ProfileOption, Projected, about, argument, size_of, with_settings

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__.splitlines()[0], pretty_exceptions_enable=False
)
# test: equal to the registry, which would take seconds to import here
METHODS = (
    "clip, rclip, eclip, grad_cam, bi_model, clip_surgery, mask_clip, sclip, clear_clip, naclip, gem, legrad, "
    "grad_eclip or rollout"
)
MEASURES = "miou, msc, image_threshold, argmax, argmax_background, faithfulness, road; see docs/measures.md"


@app.command()
def explain(
    photo: Annotated[str, argument("a picture, a folder or a glob")],
    texts: Annotated[list[str], argument("one or more texts, e.g. 'a photo of the dog'")],
    network: Annotated[str, about("an open_clip model name, or a demo network")] = "scenes-ViT-32",
    method: Annotated[str, about(METHODS)] = "rclip",
    pretrained: Annotated[str, about("an open_clip tag or a checkpoint")] = "default",
    projection: Projected = None,
    size: Annotated[
        str | None, about("the network's input, e.g. 336 or 336x448, in place of its own square")
    ] = None,
    out: Annotated[str, about("the overlay to write, or a folder for several")] = "heat.png",
    json: Annotated[str | None, about("also write CLIP's scores as JSON")] = None,
    npz: Annotated[str | None, about("also write the maps as npz")] = None,
    device: str = "cpu",
):
    """Show where a text is in your own pictures: one overlay a text, side by side."""
    from .commands import explain as command

    options = {"network": network, "method": method, "pretrained": pretrained, "projection": projection}
    note = command.limits(network)
    if note:
        warnings.warn(note, stacklevel=2)
    print(*command.run(photo, texts, out, json, npz, **options, device=device, size=size_of(size)), sep="\n")


@app.command()
@with_settings
def reproduce(
    profile: ProfileOption = "demo",
    out: Out = None,
    figure: Annotated[str | None, about("only the notebooks that make this figure, e.g. 10")] = None,
    table: Annotated[str | None, about("only the notebooks that make this table, e.g. 1")] = None,
    force: Annotated[bool, about("run even what is done already")] = False,
    go_on: Annotated[bool, about("leave out networks, masks and datasets that are missing")] = False,
    dry_run: Annotated[
        bool, about("only print what would run, what is missing and what it will cost")
    ] = False,
    *,
    settings: dict,
):
    """Execute the notebooks, in order; what is done already with the same parameters is skipped."""
    from .commands import forecast, notebooks
    from .experiment import load_profile
    from .profiles import read_settings

    settings |= {"out": out} if out else {}
    if dry_run:
        wanted = read_settings(profile, settings)[1]["device"]  # which this machine need not have
        print(forecast.as_text(load_profile(profile, **settings | {"device": "cpu"}), wanted))
        return
    wanted = [f"{kind}_{number}" for kind, number in (("figure", figure), ("table", table)) if number]
    outcome, made = notebooks.make(profile, wanted, force, go_on, **settings)
    print(*made, sep="\n")
    failed = [name for name, what in outcome.items() if what.startswith("failed")]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


data_app = typer.Typer(
    no_args_is_help=True,
    help="What a profile needs from outside, and getting it.",
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")


@data_app.command()
@with_settings
def status(profile: ProfileOption = "paper", *, settings: dict):
    """Each dataset and each weight of a profile: present, partial or missing, where it was looked for, and
    the command that gets it."""
    from .commands import resources
    from .experiment import load_profile

    print(resources.status(load_profile(profile, **settings | {"device": "cpu"})).to_string(index=False))


@data_app.command()
def fetch(
    names: Annotated[
        list[str],
        argument(
            "voc2012, coco2017, imagenet-s50, coco2017-train, gcc3m, cc12m, or a checkpoint's file name"
        ),
    ],
    root: Annotated[Path, about("folder to unpack under")] = Path("data"),
):
    """Download what may be downloaded, resumed and checked; print the exact steps for the rest."""
    from .commands import resources

    for name in names:
        print(resources.fetch(name, root))


@app.command()
def promote(
    profile: ProfileOption = "demo",
    out: Out = None,
    into: Annotated[str | None, about("folder to copy to; default results/<profile>")] = None,
    partial: Annotated[bool, about("also a run that is not whole; its run.json says so")] = False,
):
    """Copy a whole run's tables, figures and run.json to the committed results/ (what `make results`
    does)."""
    from .commands.promote import promote

    print(*promote(profile, out, into, partial), sep="\n")


@app.command()
@with_settings
def evaluate(
    method: Annotated[str, argument(METHODS)] = "clip",
    profile: ProfileOption = "demo",
    out: Annotated[
        Path | None, about("write one CSV of rows per network and dataset into this folder")
    ] = None,
    ray: Annotated[
        int, typer.Option(min=0, help="on so many Ray workers; parts are kept under --out, to go on from")
    ] = 0,
    measures: Annotated[str, about(MEASURES)] = "miou,msc",
    slide: Annotated[bool, about("argmax over sliding windows")] = False,
    ensemble: Annotated[bool, about("argmax with the mean of 80 prompts a class")] = False,
    *,
    settings: dict,
):
    """Score a method on every network and dataset of a profile and print a summary line for each; ECLIP by
    notebook 05's pairs, or by --projection."""
    from .commands import scores

    for line in scores.measure(method, profile, out, ray, measures, slide, ensemble, **settings):
        print(line)


@app.command()
def train(
    data: Annotated[str, argument("scenes:COUNT, coco:ROOT, coco-train:ROOT, web:GLOB or csv:PATH")],
    out: Annotated[Path, argument("the pair to write, .safetensors; its loss curve lies beside it as CSV")],
    network: str = "scenes-ViT-32",
    pretrained: str = "default",
    pooling: Annotated[str, about("attention, average, max or masked_max")] = "masked_max",
    mask: Annotated[
        str | None,
        about("the ViT whose attention masks; default DINO: the demo's for its networks, or timm's"),
    ] = None,
    mask_checkpoint: Annotated[str | None, about("a local file, e.g. MoCo v3's, or 'random'")] = None,
    cache: Annotated[str, about("folder of the pooled-feature cache")] = "runs/cache",
    views: Annotated[
        int, about("augmented views of each image; the paper augments afresh in each of 10 epochs")
    ] = 1,
    epochs: int = 10,
    batch_size: int = 1024,
    lr: float = 1e-4,
    init: Annotated[str, about("random, or clip for a copy of CLIP's own pair")] = "random",
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
    ray: Annotated[
        int, about("fill the cache on so many Ray workers, on whatever cluster RAY_ADDRESS names")
    ] = 0,
):
    """Train a pair of projections by masked max pooling (§3.3); `torchrun --no-python eclip train …` uses
    several GPUs."""
    from .commands import pairs

    model = {"network": network, "pretrained": pretrained, "device": device}
    wanted: dict = {"pooling": pooling, "mask": mask, "mask_checkpoint": mask_checkpoint}
    wanted |= {"epochs": epochs, "batch_size": batch_size, "lr": lr, "views": views}
    wanted |= {"init": init, "seed": seed, "workers": workers, "ray": ray}
    print(pairs.train(data, out, model, cache, **wanted), end="")


@app.command()
def bench(device: str = "cpu", out: Annotated[Path | None, about("also write the table as CSV")] = None):
    """Measure speed and memory as ratios in one run."""
    from .commands import bench as command

    print(command.run(device, out))


# ---------------------------------------------------------------------- the boundary for errors


def _note(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, UserWarning) and (text := f"note: {message}") not in _said:
        _said.add(text)
        print(text, file=sys.stderr)


_said: set[str] = set()


def main():
    """Entry point of `eclip`: whatever goes wrong ends in one sentence. `--debug` shows where."""
    if hasattr(sys.stdout, "reconfigure"):  # a program that calls this may have put another one there
        sys.stdout.reconfigure(errors="replace")  # names of files need not be text
    debug = "--debug" in sys.argv or os.environ.get("ECLIP_DEBUG")
    sys.argv = [word for word in sys.argv if word != "--debug"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _note
        try:
            sys.exit(app(prog_name="eclip", standalone_mode=False))
        except Exception as error:
            if debug:
                raise
            sys.exit((said := _sentence(error)) and f"eclip: {said}")


def _sentence(error):
    """What a user reads: the sentence of a mistake; of anything else its kind and first line, and how to see
    more."""
    line = " ".join(str(error).split())
    if hasattr(error, "format_message"):  # of the command line's words; empty where help was shown
        line, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        return line and f"{line[:200]}; see {context.command_path if context else 'eclip'} --help"
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | Path):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return line if len(line) < 300 else re.sub(r"(\S{30})\S{40,}(\S{30})", r"\1…\2", line)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: run with a smaller --batch-size, or with --device cpu"
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; pip install 'eclip-lib[notebooks]' has all that commands need"
    return (
        f"an unexpected {type(error).__name__}: {line[:250]}; run it with --debug to see where, and report it"
    )
