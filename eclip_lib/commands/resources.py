"""`eclip data` and `eclip reproduce --dry-run`: what a profile needs, what of it is here, how to get the
rest, and what a run will cost."""

import glob
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import downloads
from ..datasets import load_dataset
from ..datasets.image_text import load_pairs
from ..files import REPOSITORY
from ..networks import checkpoints, demo
from ..networks.loading import empty_clip
from .notebooks import notebooks

PASSES = REPOSITORY / "results" / "benchmarks" / "passes.csv"  # measured by `passes.py`
# FLOP/s that a data-centre GPU sustains on these networks in float32: an assumption, `eclip bench --device
# cuda` measures it
ASSUMED_RATE = 30e12
# bytes of a stored picture, seconds of a core to decode and augment it: `bench.picture_cost("coco:…",
# count=395)` on 79 photos of COCO
PICTURE = (24e3, 1.9e-3)


@dataclass(frozen=True)
class Resource:
    """One thing that a profile needs. `state`: present, partial or missing, with a word why; `how`: the
    command that gets it."""

    part: str
    state: str = "present"
    size: str = ""
    where: str = ""
    licence: str = ""
    how: str = ""


def status(run):
    """What a profile needs -> DataFrame, one `Resource` a line."""
    found = [_dataset(run, name) for name in run.datasets] + [_pairs(run)]
    found += [_weights(name, network) for name, network in _weight_files(run).items()]
    return pd.DataFrame([asdict(resource) for resource in found])


def _dataset(run, name):
    about = checkpoints.registry()["datasets"].get(name)
    if about is None:
        return Resource(name, size="rendered", where="eclip_lib/datasets/scenes.py", licence="MIT")
    if run.root_of(name) is None:
        return Resource(
            name, "missing", where="no root given", licence=about["licence"], how=f"-p root {name}=FOLDER"
        )
    root = Path(run.root_of(name))
    size = downloads.size(sum(f["bytes"] for f in about["files"])) if "files" in about else "see the steps"
    try:
        count = len(load_dataset(name, root))
        state = "present" if count >= about["images"] else f"partial: {count} of {about['images']} images"
    except (OSError, ValueError) as error:
        found = any((root / mark).exists() for mark in about["marks"]) or any(root.glob("*.partial"))
        state = f"partial: {str(error).splitlines()[0]}" if found else "missing"
    how = "" if state == "present" else f"eclip data fetch {name} --root {root}"
    return Resource(name, state, size, str(root), about["licence"], how)


def _pairs(run):
    kind, _, place = run.pairs.partition(":")
    if kind.startswith("scenes"):
        return Resource(run.pairs, size="rendered", licence="MIT")
    known, name = checkpoints.registry()["pairs"], _registered_pairs(place)
    found = glob.glob(place) if kind in ("web", "csv") else [place] if Path(place).exists() else []
    stored = sum(Path(f).stat().st_size for f in found if Path(f).is_file())
    size = downloads.size(stored)
    if name and not found:
        size = f"about {downloads.size(known[name]['images'] * PICTURE[0])}"
    state = f"present: {len(found)} files" if found else "missing"
    how = "" if found or not name else f"eclip data fetch {name}"
    return Resource(run.pairs, state, size, place, known[name]["licence"] if name else "its own", how)


def _registered_pairs(place):
    return next((name for name in checkpoints.registry()["pairs"] if name in place), None)


def _weight_files(run):
    """{registered file: the network it is for} that a profile's CLIPs and masks need."""
    if run.pretrained is None:
        return {}
    tag = "openai" if run.pretrained == "default" else run.pretrained
    found = {checkpoints.registered(network, tag): network for network in run.networks}
    for where in run.masks.values():
        network, _, checkpoint = where.partition("=")
        known = checkpoint in checkpoints.registry()["weights"]
        found[checkpoint if known else checkpoints.registered(network, "dino")] = network
    return {name: network for name, network in found.items() if name}


def _weights(name, network):
    about, path = checkpoints.registry()["weights"][name], checkpoints.folder() / name
    if path.is_file():
        size = path.stat().st_size
        state = "present" if size == about.get("bytes", size) else "partial: another size than it should have"
    else:
        broken = path.with_name(name + ".partial").exists()
        state = "partial: a broken transfer" if broken else "missing"
    how = "" if state == "present" else f"eclip data fetch {name}"
    return Resource(
        f"{network}: {name}",
        state,
        downloads.size(about.get("bytes")),
        str(path.parent),
        about["licence"],
        how,
    )


def fetch(name, root):
    """Get a dataset (downloaded, checked, unpacked under `root`) or a registered checkpoint; for what needs
    an account or a crawl, the exact steps. Returns what to print. Raises ValueError, OSError."""
    known = checkpoints.registry()
    if name in known["weights"]:
        return f"{name}: {checkpoints.obtain(name)}"
    about = (known["datasets"] | known["pairs"]).get(name)
    if about is None:
        names = ", ".join([*known["datasets"], *known["pairs"], *known["weights"]])
        raise ValueError(f"nothing known of {name!r}; there are {names}")
    if "files" not in about:
        steps = about["steps"].format(root=root)
        return f"{name} cannot be downloaded by a program alone ({about['licence']}):\n{steps}"
    root = Path(root).expanduser()
    # an archive and what comes out of it lie side by side for a while
    downloads.require_space(root, 2 * sum(f["bytes"] for f in about["files"]), name)
    marks = {file["url"]: root / f".{Path(file['url']).name}.unpacked" for file in about["files"]}
    if all(mark.exists() for mark in marks.values()) and not _whole(name, root):
        for mark in marks.values():  # unpacked once, but something is gone since
            mark.unlink()
    for file in about["files"]:
        archive, done = root / Path(file["url"]).name, marks[file["url"]]
        if done.exists():
            continue
        kind = "sha256" if "sha256" in file else "md5"
        downloads.fetch(file["url"], archive, file["bytes"], f"{kind}:{file[kind]}")
        downloads.unpack(archive, root)
        done.touch()
        archive.unlink()
    return f"{name}: {len(load_dataset(name, root))} images under {root}"


def _whole(name, root):
    try:
        return bool(len(load_dataset(name, root)))
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------------- what a run costs


def encoder_flops(network, text=False):
    """FLOPs of one image through a network's image encoder, or of one text through its text encoder, counted
    on an empty copy."""
    model = empty_clip(network)
    side = model.visual.image_size
    image = torch.zeros(1, 3, *(side if isinstance(side, tuple) else (side, side)), device="meta")
    tokens = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_text(tokens) if text else model.visual(image)
    return counter.get_total_flops()


def flops_of_a_pair(network):
    """FLOPs of (an image, a text, an image through a mask's network: a ViT-B/16, in the demo one as large as
    the CLIP)."""
    mask = encoder_flops("scenes-ViT-16" if network in demo.NETWORKS else "ViT-B-16")
    return encoder_flops(network), encoder_flops(network, text=True), mask


def plan(run):
    """What `reproduce` would do -> (DataFrame: network, image passes, pair passes, PFLOP, GPU hours at the
    assumed rate, cache GB; text)."""
    images = {name: _length(run, name) for name in run.datasets}
    passes, rows = pd.read_csv(PASSES).drop(columns="notebook").sum(), []
    seen, trained = sum(images.values()), pair_count(run) * run.training.views
    for network in run.networks:
        encoder, text, mask = flops_of_a_pair(network)
        kinds = ("clip", "masks")
        own, masks = (passes[f"{kind}_image"] * seen + passes[f"{kind}_pair"] * trained for kind in kinds)
        total = own * encoder + masks * mask + trained * text
        columns, width = 3 + len(run.masks) + 1, 4 * 1024
        row = {"network": network, "image passes": round(passes["clip_image"] * seen)}
        row |= {"pair passes": round(passes["clip_pair"] * trained), "PFLOP": total / 1e15}
        rows.append(
            row | {"GPU hours": total / ASSUMED_RATE / 3600, "cache GB": trained * columns * width / 1e9}
        )
    names = ", ".join(path.stem for path in notebooks())
    counts = ", ".join(f"{name} ({count} images)" for name, count in images.items())
    rate = f"{ASSUMED_RATE / 1e12:.0f} TFLOP/s"
    lines = [
        f"profile {run.name}: {len(notebooks())} notebooks ({names})",
        f"networks: {', '.join(run.networks)}; datasets: {counts}; pairs: {run.pairs}",
        f"GPU hours are PFLOP at an assumed {rate}, not measured; cache GB is an upper bound on the "
        "pooled features",
    ]
    return pd.DataFrame(rows), "\n".join(lines)


def as_text(run):
    """`plan` and what is missing, as the dry run prints it."""
    table, text = plan(run)
    needed = status(run)
    missing = needed[~needed["state"].str.startswith("present")]
    listed = missing[["part", "state", "size", "how"]].to_string(index=False)
    last = "nothing is missing" if missing.empty else f"missing:\n{listed}"
    return "\n\n".join([text, table.round(2).to_string(index=False), last])


def _length(run, name):
    known = checkpoints.registry()["datasets"].get(name)
    return run.limit or (known["images"] if known else len(load_dataset(name)))


def pair_count(run):
    """How many image-caption pairs a run trains on, as far as is known without reading them."""
    kind, _, place = run.pairs.partition(":")
    if name := _registered_pairs(place):
        return checkpoints.registry()["pairs"][name]["images"]
    source = load_pairs(run.pairs)
    img2datasets_tar = 10_000
    return img2datasets_tar * len(source.parts) if kind == "web" else len(source)


def crawl_plan(network="ViT-B-16", masks=2, rate=ASSUMED_RATE, picture=PICTURE):
    """The pooled-feature pass over GCC3M and CC12M, one view, on 1, 8 and 64 GPUs of `rate` FLOP/s ->
    DataFrame: hours, TB of tar files, GB of cache, and for each GPU the MB/s that it reads and the cores that
    decode and augment for it. picture: (bytes, seconds), `PICTURE`."""
    encoder, text, mask = flops_of_a_pair(network)
    flops, (tar, decode) = encoder + text + masks * mask, picture
    weight = empty_clip(network).visual.proj
    # the columns of C numbers, and a text; here Ct = D
    cached = 4 * ((3 + masks) * weight.shape[0] + weight.shape[1])
    rows = []
    for name, about in checkpoints.registry()["pairs"].items():
        for gpus in (1, 8, 64):
            row = {"pairs": name.upper(), "GPUs": gpus, "hours": about["images"] * flops / rate / gpus / 3600}
            row |= {"tar TB": about["images"] * tar / 1e12, "cache GB": about["images"] * cached / 1e9}
            rows.append(row | {"MB/s a GPU": rate / flops * tar / 1e6, "cores a GPU": rate / flops * decode})
    return pd.DataFrame(rows)
