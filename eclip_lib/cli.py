"""The command line: `eclip explain | reproduce | promote | evaluate | train | data | bench`."""

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__.splitlines()[0], pretty_exceptions_enable=False)
ProfileOption = Annotated[str, typer.Option(help="demo, paper, or the path of a YAML file of that form")]
METHODS = "clip, rclip, eclip, grad_cam, bi_model, clip_surgery, mask_clip, sclip, gem, legrad or rollout"  # test: equal to the registry
Text = Annotated[str | None, typer.Option(help="comma-separated; replaces the profile's")]


def _size(text):
    sides = (text or "").lower().split("x")
    if text and not (len(sides) <= 2 and all(side.isdecimal() for side in sides)):
        raise ValueError(f"--size is a side, or height x width, like 336 or 336x448, not {text!r}")
    return (int(sides[0]), int(sides[-1])) if text else None


@app.command()
def explain(
    photo: Annotated[str, typer.Argument(help="a picture, a folder or a glob")],
    texts: Annotated[list[str], typer.Argument(help="one or more texts, e.g. 'a photo of the dog'")],
    network: Annotated[str, typer.Option(help="an open_clip model name, or a demo network")] = "scenes-ViT-32",
    method: Annotated[str, typer.Option(help=METHODS)] = "rclip",
    pretrained: Annotated[str, typer.Option(help="an open_clip tag or a checkpoint")] = "default",
    projection: Annotated[str | None, typer.Option(help="a trained pair, for eclip")] = None,
    size: Annotated[
        str | None, typer.Option(help="the network's input, e.g. 336 or 336x448, in place of its own square")
    ] = None,
    out: Annotated[str, typer.Option(help="the overlay to write, or a folder for several")] = "heat.png",
    json: Annotated[str | None, typer.Option(help="also write CLIP's scores as JSON")] = None,
    npz: Annotated[str | None, typer.Option(help="also write the maps as npz")] = None,
    device: str = "cpu",
):
    """Show where a text is in your own pictures: one overlay a text, side by side."""
    from . import explain as explaining

    for path in (json, npz):
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = explaining.explain(photo, texts, network, method, pretrained, projection, device, size=_size(size))
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
    pairs: Annotated[str | None, typer.Option(help="image-caption pairs to train on, e.g. web:'gcc3m/*.tar'")] = None,
    force: Annotated[bool, typer.Option(help="run even what is done already")] = False,
    dry_run: Annotated[bool, typer.Option(help="only print what would run, what is missing and what it will cost")] = False,
):
    """Execute the notebooks, in order; what is done already with the same parameters is skipped."""
    from . import reproduce as runner
    from .profiles import load_profile

    parameters = {
        "networks": networks,
        "datasets": datasets,
        "root": root,
        "pairs": pairs,
        "limit": limit,
        "device": device,
        "seed": seed,
        "out": out,
    }
    parameters = {name: value for name, value in parameters.items() if value is not None}
    parameters |= {} if pretrained == "profile" else {"pretrained": pretrained}
    if dry_run:
        return _print_plan(load_profile(profile, **{"device": "cpu", **parameters}))
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


def _print_plan(run):
    from . import data

    table, text = data.plan(run)
    print(text, table.round(2).to_string(index=False), sep="\n\n")
    missing = data.status(run).query("state != 'present'")
    missing = missing[~missing["state"].str.startswith("present")]
    print(
        "\nnothing is missing"
        if missing.empty
        else f"\nmissing:\n{missing[['part', 'state', 'size', 'how']].to_string(index=False)}"
    )


data_app = typer.Typer(
    no_args_is_help=True, help="What a profile needs from outside, and getting it.", pretty_exceptions_enable=False
)
app.add_typer(data_app, name="data")


@data_app.command()
def status(profile: ProfileOption = "paper", root: Text = None, networks: Text = None, datasets: Text = None):
    """Each dataset and each weight of a profile: present, partial or missing, where it was looked for, and the command that gets it."""
    from . import data
    from .profiles import load_profile

    print(
        data.status(load_profile(profile, device="cpu", root=root, networks=networks, datasets=datasets)).to_string(index=False)
    )


@data_app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="voc2012, coco2017, imagenet-s50, gcc3m, cc12m, or a checkpoint's file name")
    ],
    root: Annotated[Path, typer.Option(help="folder to unpack under")] = Path("data"),
):
    """Download what may be downloaded, resumed and checked; print the exact steps for the rest."""
    from . import data

    for name in names:
        print(data.fetch(name, root))


@app.command()
def promote(profile: ProfileOption = "demo"):
    """Copy a run's tables and figures to the committed results/ (what `make results` does)."""
    from .reproduce import promote as copy

    for path in copy(profile):
        print(path)


@app.command()
def evaluate(
    method: Annotated[str, typer.Argument(help=METHODS)] = "clip",
    profile: ProfileOption = "demo",
    networks: Text = None,
    datasets: Text = None,
    root: Text = None,
    pretrained: str = "profile",
    limit: Annotated[int | None, typer.Option()] = None,
    device: Text = None,
    out: Annotated[Path | None, typer.Option(help="write one CSV of rows per network and dataset into this folder")] = None,
    ray: Annotated[
        int, typer.Option(help="on so many Ray workers; parts are kept under --out, so that a stopped run goes on")
    ] = 0,
):
    """Score a method on every network and dataset of a profile and print a summary line for each; ECLIP by notebook 05's pairs."""
    import eclip_lib as eclip
    from eclip_lib.benchmarks import explainers_of

    run = eclip.load_profile(
        profile, networks=networks, datasets=datasets, root=root, pretrained=pretrained, limit=limit, device=device
    )
    if ray and not out:
        raise ValueError("--ray needs --out, the folder where the parts are kept")
    if out:
        out.mkdir(parents=True, exist_ok=True)
    for network in run.networks:

        def load(network=network):
            clip = run.load_clip(network)
            return explainers_of(run, clip, [method])[method], clip

        explain, clip = load()
        for name in run.datasets:
            if ray and out:
                from eclip_lib import cluster

                parts, gpus = out / f"{method}-{network}-{name}", int(run.device.startswith("cuda"))
                rows = cluster.evaluate_parts(load, run.load_dataset(name), parts, method, ray, gpus, batch_size=run.batch_size)
            else:
                rows = eclip.evaluate(explain, run.load_dataset(name), clip, run.workers, run.batch_size)
            if out:
                rows.to_csv(out / f"{method}-{network}-{name}.csv", index=False)
            s = eclip.summarize(rows, seed=run.seed)
            numbers = f"mIoU {s.mIoU:.2f} (floor {s.floor:.2f}) mSC {s.mSC:.2f}, {s.images:.0f} images"
            print(f"{run.title(network)} {name} {method}: {numbers}")


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="scenes:COUNT, coco:ROOT, coco-train:ROOT, web:GLOB or csv:PATH")],
    out: Annotated[Path, typer.Argument(help="the pair to write, .safetensors; its loss curve lies beside it as CSV")],
    network: str = "scenes-ViT-32",
    pretrained: str = "default",
    pooling: Annotated[str, typer.Option(help="attention, average, max or masked_max")] = "masked_max",
    mask: Annotated[str, typer.Option(help="a timm ViT whose attention masks, for masked_max")] = "vit_base_patch16_224.dino",
    mask_checkpoint: Annotated[str, typer.Option(help="a local file, e.g. MoCo v3's, or 'random'")] = "default",
    cache: Annotated[str, typer.Option(help="folder of the pooled-feature cache")] = "runs/cache",
    views: Annotated[
        int, typer.Option(help="augmented views of each image; the paper augments afresh in each of 10 epochs")
    ] = 1,
    epochs: int = 10,
    batch_size: int = 1024,
    lr: float = 1e-4,
    init: Annotated[str, typer.Option(help="random, or clip for a copy of CLIP's own pair")] = "random",
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
    ray: Annotated[int, typer.Option(help="fill the cache on so many Ray workers, on whatever cluster RAY_ADDRESS names")] = 0,
):
    """Train a pair of projections by masked max pooling (§3.3); `torchrun --no-python eclip train …` uses several GPUs."""
    import torch.distributed as dist

    import eclip_lib as eclip
    from eclip_lib import cache as caching
    from eclip_lib import training
    from eclip_lib.datasets.pairs import load_pairs

    pairs = load_pairs(data)
    out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before the work
    masked = pooling == "masked_max"
    pooling = "masked_max:mask" if masked else pooling

    def load():
        checkpoint = None if mask_checkpoint == "random" else mask_checkpoint
        return eclip.load_clip(network, pretrained, device), {
            "mask": eclip.load_attention(mask, checkpoint, device)
        } if masked else {}

    clip, masks = load()
    if "RANK" in os.environ:  # under torchrun: the first rank fills the cache, the others find it full
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=7))
        if dist.get_rank() > 0:
            dist.barrier()
    if ray:
        from eclip_lib import cluster

        gpus = 1 if device.startswith("cuda") else 0
        features = cluster.cache_features(load, pairs, cache, ray, gpus, views=views, seed=seed)
    else:
        features = caching.cache_features(clip, pairs, cache, masks, views, seed=seed, workers=workers)
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()
    pair, history = training.train_pair(clip, features, pooling, epochs, batch_size, lr, seed=seed, init=init)
    if not dist.is_initialized() or dist.get_rank() == 0:
        pair.save(out)
        history.to_csv(out.with_suffix(".csv"), index=False)
        print(f"{len(features)} pairs, loss {history['loss'].iloc[0]:.3f} to {history['loss'].iloc[-1]:.3f}; {out}")


@app.command()
def bench(device: str = "cpu", out: Annotated[Path | None, typer.Option(help="also write the table as CSV")] = None):
    """Measure speed and memory as ratios in one run."""
    from .bench import bench as measure
    from .bench_device import agreement

    table = measure(device)
    print(table.to_string(index=False))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)
        agreement().to_csv(out.with_name("agreement.csv"), index=False, float_format="%.5f")


def main():
    """Entry point of `eclip`: a user's mistake ends in one sentence, not in a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"eclip: {error}")
