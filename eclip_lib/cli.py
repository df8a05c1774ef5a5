"""The command line: `eclip explain | reproduce | promote | evaluate | bench`."""

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__.splitlines()[0], pretty_exceptions_enable=False)
ProfileOption = Annotated[str, typer.Option(help="demo, paper, or the path of a YAML file of that form")]
Text = Annotated[str | None, typer.Option(help="comma-separated; replaces the profile's")]


@app.command()
def explain(
    photo: Annotated[str, typer.Argument(help="a picture, a folder or a glob")],
    texts: Annotated[list[str], typer.Argument(help="one or more texts, e.g. 'a photo of the dog'")],
    network: Annotated[str, typer.Option(help="an open_clip model name, or a demo network")] = "scenes-ViT-32",
    method: Annotated[str, typer.Option(help="clip, rclip, eclip, grad_cam or bi_model")] = "rclip",
    pretrained: Annotated[str, typer.Option(help="an open_clip tag or a checkpoint")] = "default",
    projection: Annotated[str | None, typer.Option(help="a trained pair, for eclip")] = None,
    out: Annotated[str, typer.Option(help="the overlay to write, or a folder for several")] = "heat.png",
    json: Annotated[str | None, typer.Option(help="also write CLIP's scores as JSON")] = None,
    npz: Annotated[str | None, typer.Option(help="also write the maps as npz")] = None,
    device: str = "cpu",
):
    """Show where a text is in your own pictures: one overlay a text, side by side."""
    from . import explain as explaining

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = explaining.explain(photo, texts, network, method, pretrained, projection, device)
        paths = explaining.write(results, texts, out, json, npz)
    for message in dict.fromkeys([explaining.limits(network), *(str(w.message) for w in caught if w.category is UserWarning)]):
        if message:
            print(f"note: {message}", file=sys.stderr)
    print(*paths, sep="\n")


@app.command()
def reproduce(
    profile: ProfileOption = "demo",
    networks: Text = None,
    datasets: Text = None,
    root: Annotated[str | None, typer.Option(help="folder of the datasets, or name=folder,name=folder")] = None,
    pretrained: Annotated[str, typer.Option(help="an open_clip tag, a checkpoint, or 'random'")] = "profile",
    limit: Annotated[int | None, typer.Option(help="only so many images a dataset")] = None,
    device: Text = None,
    seed: Annotated[int | None, typer.Option()] = None,
    out: Annotated[str | None, typer.Option(help="folder to write; default runs/<profile>")] = None,
    figure: Annotated[str | None, typer.Option(help="only the notebook that makes this figure, e.g. 10")] = None,
    table: Annotated[str | None, typer.Option(help="only the notebook that makes this table, e.g. 1")] = None,
    force: Annotated[bool, typer.Option(help="run even what is done already")] = False,
):
    """Execute the notebooks, in order; what is done already with the same parameters is skipped."""
    from . import reproduce as runner
    from .profiles import load_profile

    parameters = {
        "networks": networks,
        "datasets": datasets,
        "root": root,
        "limit": limit,
        "device": device,
        "seed": seed,
        "out": out,
    }
    parameters = {name: value for name, value in parameters.items() if value is not None}
    parameters |= {} if pretrained == "profile" else {"pretrained": pretrained}
    settings, only = load_profile(profile, **parameters), None
    wanted = [f"{kind}_{number}" for kind, number in (("figure", figure), ("table", table)) if number]
    for name in wanted:
        only = runner.making(name)
        if not only:
            raise ValueError(f"no notebook makes {name}")
    outcome = runner.reproduce(profile, only, force or bool(wanted), **parameters)
    for kind in ("tables", "figures"):
        for path in sorted((settings.out / kind).glob("*")):
            if not wanted or any(path.stem == name or path.stem.startswith(f"{name}_") for name in wanted):
                print(f"{kind[:-1]:7} {path}")
    failed = [name for name, what in outcome.items() if what.startswith("failed")]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


@app.command()
def promote(profile: ProfileOption = "demo"):
    """Copy a run's tables and figures to the committed results/ (what `make results` does)."""
    from .reproduce import promote as copy

    for path in copy(profile):
        print(path)


@app.command()
def evaluate(
    method: Annotated[str, typer.Argument(help="clip or rclip")] = "clip",
    profile: ProfileOption = "demo",
    networks: Text = None,
    datasets: Text = None,
    root: Text = None,
    pretrained: str = "profile",
    limit: Annotated[int | None, typer.Option()] = None,
    device: Text = None,
    out: Annotated[Path | None, typer.Option(help="write one CSV of rows per network and dataset into this folder")] = None,
):
    """Score a method on every network and dataset of a profile and print a summary line for each."""
    import eclip_lib as eclip

    run = eclip.load_profile(
        profile, networks=networks, datasets=datasets, root=root, pretrained=pretrained, limit=limit, device=device
    )
    for network in run.networks:
        clip = run.load_clip(network)
        for name in run.datasets:
            rows = eclip.evaluate(eclip.explainer(method, clip), run.load_dataset(name), clip, run.workers, run.batch_size)
            if out:
                out.mkdir(parents=True, exist_ok=True)
                rows.to_csv(out / f"{method}-{network}-{name}.csv", index=False)
            s = eclip.summarize(rows, seed=run.seed)
            numbers = f"mIoU {s.mIoU:.2f} (floor {s.floor:.2f}) mSC {s.mSC:.2f}, {s.images:.0f} images"
            print(f"{run.title(network)} {name} {method}: {numbers}")


@app.command()
def bench(device: str = "cpu", out: Annotated[Path | None, typer.Option(help="also write the table as CSV")] = None):
    """Measure speed and memory as ratios in one run."""
    from .bench import bench as measure

    table = measure(device)
    print(table.to_string(index=False))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)


def main():
    """Entry point of `eclip`: a user's mistake ends in one sentence, not in a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"eclip: {error}")
