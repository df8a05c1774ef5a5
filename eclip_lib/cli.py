"""The command line: `eclip explain | reproduce | promote | evaluate | train | data | app | bench`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .commands import boundary
from .commands.options import (
    Device,
    NetworkOption,
    Out,
    Pretrained,
    ProfileOption,
    Projected,
    Size,
    about,
    argument,
    device_of,
    size_of,
    with_settings,
)

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__.splitlines()[0], pretty_exceptions_enable=False
)
FITTING = "default: the paper's, for a demo network the demo's"
# test: equal to the registry, which would take seconds to import here
METHODS = (
    "clip, rclip, eclip, grad_cam, bi_model, clip_surgery, mask_clip, sclip, clear_clip, naclip, gem, "
    "legrad, grad_eclip or rollout"
)
MEASURES = "miou, msc, image_threshold, argmax, argmax_background, faithfulness, road; see docs/measures.md"


@app.command()
def explain(
    photo: Annotated[str, argument("a picture, a folder or a glob")],
    texts: Annotated[list[str], argument("one or more texts, e.g. 'a photo of the dog'")],
    network: NetworkOption = "scenes-ViT-32",
    method: Annotated[str, about(f"one, or several separated by commas: {METHODS}")] = "rclip",
    pretrained: Pretrained = "default",
    projection: Projected = None,
    size: Size = None,
    out: Annotated[str, about("the overlay to write, or a folder for several")] = "heat.png",
    json: Annotated[str | None, about("also write CLIP's scores as JSON")] = None,
    npz: Annotated[str | None, about("also write the maps, and the raw scores on the grid, as npz")] = None,
    bare: Annotated[bool, about("each overlay alone, of the picture's own size")] = False,
    alpha: Annotated[float, about("how much the map covers the picture, 0 to 1")] = 0.65,
    colormap: Annotated[str, about("matplotlib's name, e.g. cividis, safe for every eye")] = "coolwarm",
    batch_size: Annotated[int, about("pictures of a forward pass")] = 16,
    precision: Annotated[str, about("fp32 or bf16")] = "fp32",
    device: Device = "auto",
):
    """Show where a text is in your own pictures.

    One overlay a text and method, side by side. Those of a folder that are
    there already, of the same pictures and settings, are not made again.

    A map runs from 0 to 1 whether or not its text fits the picture."""
    from .commands import explain as command

    weights = {"network": network, "pretrained": pretrained, "projection": projection}
    weights |= {"size": size_of(size), "precision": precision, "device": device_of(device)}
    look = {"bare": bare, "alpha": alpha, "colormap": colormap, "batch_size": batch_size}
    print(*command.run(photo, texts, out, json, npz, method, **look, **weights), sep="\n")


@app.command(name="app")
def web(
    networks: Annotated[str | None, about("what is offered, comma-separated; the first one opens")] = None,
    pretrained: Pretrained = "default",
    projection: Projected = None,
    device: Device = "auto",
    port: Annotated[int | None, about("of this machine; default: the first free one from 7860 on")] = None,
):
    """Open a page in the browser: drop a picture, type texts, see every method's map (needs gradio)."""
    from . import files
    from .commands import app as command

    offered = files.names(networks, "--networks") if networks is not None else []
    command.serve(offered, port, pretrained=pretrained, projection=projection, device=device)


@app.command()
@with_settings
def reproduce(
    profile: ProfileOption = "demo",
    out: Out = None,
    figure: Annotated[str | None, about("only this figure, e.g. 10: its notebook as far as that")] = None,
    table: Annotated[str | None, about("only this table, e.g. 1: its notebook as far as that")] = None,
    force: Annotated[bool, about("run even what is done already")] = False,
    go_on: Annotated[bool, about("leave out networks, masks and datasets that are missing")] = False,
    dry_run: Annotated[
        bool, about("only print what would run, what is missing and what it will cost")
    ] = False,
    *,
    settings: dict,
):
    """Execute the notebooks, in order; what is done already with the same parameters is skipped."""
    from .commands import by_number, forecast

    settings |= {"out": out} if out else {}
    wanted = [f"{kind}_{number}" for kind, number in (("figure", figure), ("table", table)) if number]
    if dry_run:
        return print(forecast.dry_run(profile, wanted, **settings))
    outcome, made = by_number.make(profile, wanted, force, go_on, **settings)
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
    """List each dataset and weight of a profile, where it was looked for, and the command that gets it."""
    from .commands import resources
    from .experiment import load_profile

    print(resources.as_text(resources.status(load_profile(profile, **settings | {"device": "cpu"}))))


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

    resources.require_known(names)
    for name in names:
        print(resources.fetch(name, root))


@app.command()
def promote(
    profile: ProfileOption = "demo",
    out: Out = None,
    into: Annotated[str | None, about("folder to copy to; default results/<profile>")] = None,
    partial: Annotated[bool, about("also a run that is not whole; its run.json says so")] = False,
):
    """Copy a whole run's tables, figures and run.json to the committed results/ (`make results`)."""
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
    """Score a method on every network and dataset of a profile: a line of numbers in % for each.

    ECLIP takes the pairs that notebook 05 trained, or --projection."""
    from .commands import scores

    for line in scores.measure(method, profile, out, ray, measures, slide, ensemble, **settings):
        print(line)


@app.command()
def train(
    data: Annotated[str, argument("scenes:COUNT, coco:ROOT, coco-train:ROOT, web:GLOB or csv:PATH")],
    out: Annotated[Path, argument("the pair to write, .safetensors; its loss curve lies beside it as CSV")],
    network: NetworkOption = "scenes-ViT-32",
    pretrained: Pretrained = "default",
    pooling: Annotated[str, about("attention, average, max or masked_max")] = "masked_max",
    mask: Annotated[
        str | None, about("the ViT whose attention masks, for masked_max; default: a DINO")
    ] = None,
    mask_checkpoint: Annotated[str | None, about("a local file, e.g. MoCo v3's, or 'random'")] = None,
    cache: Annotated[str, about("folder of the pooled-feature cache")] = "runs/cache",
    views: Annotated[
        int, about("augmented views of each image; the paper augments afresh in each of 10 epochs")
    ] = 1,
    epochs: Annotated[int | None, about(FITTING)] = None,
    batch_size: Annotated[int | None, about(FITTING)] = None,
    lr: Annotated[float | None, about(FITTING)] = None,
    init: Annotated[str, about("random, or clip for a copy of CLIP's own pair")] = "random",
    seed: Annotated[int, about("of the new pair and the order of batches")] = 0,
    workers: Annotated[int, about("processes that decode images")] = 2,
    device: Device = "auto",
    ray: Annotated[
        int, about("fill the cache on so many Ray workers, on whatever cluster RAY_ADDRESS names")
    ] = 0,
):
    """Train a pair of projections by masked max pooling (§3.3).

    `torchrun --no-python eclip train …` uses several GPUs.

    A table for csv:PATH has the columns filepath and title."""
    from .commands import pairs

    model = {"network": network, "pretrained": pretrained, "device": device_of(device)}
    wanted: dict = {"pooling": pooling, "mask": mask, "mask_checkpoint": mask_checkpoint}
    wanted |= {"epochs": epochs, "batch_size": batch_size, "lr": lr, "views": views}
    wanted |= {"init": init, "seed": seed, "workers": workers, "ray": ray}
    print(pairs.train(data, out, model, cache, **wanted), end="")


@app.command()
def bench(device: str = "cpu", out: Annotated[Path | None, about("also write the table as CSV")] = None):
    """Measure speed and memory as ratios in one run."""
    from .commands import bench as command

    print(command.run(device, out))


def main():
    """Entry point of `eclip`."""
    boundary.run(app)
