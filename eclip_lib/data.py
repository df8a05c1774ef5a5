"""`eclip data` and `eclip reproduce --dry-run`: what a profile needs, what of it is here, how to get the rest, and what a run will cost."""

import glob
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from . import demo, download, weights
from .clip import empty_clip
from .datasets import load_dataset
from .datasets.pairs import load_pairs
from .profiles import REPOSITORY
from .reproduce import notebooks

PASSES = REPOSITORY / "results" / "benchmarks" / "passes.csv"  # measured by `passes.py`
ASSUMED_RATE = 30e12  # FLOP/s that a data-centre GPU sustains on these networks in float32: an assumption, `eclip bench --device cuda` measures it
# bytes of a stored picture, seconds of a core to decode and augment it: `bench_device.picture_cost("coco:…", count=395)` on 79 photos of COCO
PICTURE = (24e3, 1.9e-3)


def _dataset_row(run, name):
    about = weights.registry()["datasets"].get(name)
    if about is None:
        return {
            "part": name,
            "state": "present",
            "size": "rendered",
            "where": "eclip_lib/datasets/scenes.py",
            "licence": "MIT",
            "how": "",
        }
    if run.root_of(name) is None:
        return {
            "part": name,
            "state": "missing",
            "size": "",
            "where": "no root given",
            "licence": about["licence"],
            "how": f"-p root {name}=FOLDER",
        }
    root = Path(run.root_of(name))
    size = download.size(sum(f["bytes"] for f in about["files"])) if "files" in about else "see the steps"
    try:
        count = len(load_dataset(name, root))
        state = "present" if count >= about["images"] else f"partial: {count} of {about['images']} images"
    except (FileNotFoundError, ValueError) as error:
        found = any((root / mark).exists() for mark in about["marks"]) or any(root.glob("*.partial"))
        state = f"partial: {str(error).splitlines()[0]}" if found else "missing"
    how = "" if state == "present" else f"eclip data fetch {name} --root {root}"
    return {"part": name, "state": state, "size": size, "where": str(root), "licence": about["licence"], "how": how}


def _pairs_row(run):
    kind, _, place = run.pairs.partition(":")
    if kind.startswith("scenes"):
        return {"part": run.pairs, "state": "present", "size": "rendered", "where": "", "licence": "MIT", "how": ""}
    known, name = weights.registry()["pairs"], _registered_pairs(place)
    files = glob.glob(place) if kind in ("web", "csv") else [place] if Path(place).exists() else []
    stored = sum(Path(f).stat().st_size for f in files if Path(f).is_file())
    size = download.size(stored) if files or not name else f"about {download.size(known[name]['images'] * PICTURE[0])}"
    state = f"present: {len(files)} files" if files else "missing"
    how = "" if files or not name else f"eclip data fetch {name}"
    return {
        "part": run.pairs,
        "state": state,
        "size": size,
        "where": place,
        "licence": known[name]["licence"] if name else "its own",
        "how": how,
    }


def _registered_pairs(place):
    return next((name for name in weights.registry()["pairs"] if name in place), None)


def _pair_count(run):
    kind, _, place = run.pairs.partition(":")
    if kind.startswith("scenes"):
        return int(place)
    if name := _registered_pairs(place):
        return weights.registry()["pairs"][name]["images"]
    source = load_pairs(run.pairs)
    return len(source.pairs) if hasattr(source, "pairs") else 10_000 * len(source.parts)  # img2dataset's default for a tar file


def _weights_row(name, network):
    about = weights.registry()["weights"][name]
    path = weights.folder() / name
    if not path.is_file():
        state = "partial: a broken transfer" if path.with_name(name + ".partial").exists() else "missing"
    else:
        state = (
            "present"
            if path.stat().st_size == about.get("bytes", path.stat().st_size)
            else "partial: another size than it should have"
        )
    how = "" if state == "present" else f"eclip data fetch {name}"
    return {"part": f"{network}: {name}", "state": state, "size": download.size(about.get("bytes")), "where": str(path.parent),
            "licence": about["licence"], "how": how}  # fmt: skip


def _files(run):
    """{registered file: the network it is for} that a profile's CLIPs and masks need."""
    found = {}
    if run.pretrained is not None:
        for network in run.networks:
            tag = "openai" if run.pretrained == "default" else run.pretrained
            found |= {name: network for name in [weights.registered(network, tag)] if name}
        for where in run.masks.values():
            network, _, checkpoint = where.partition("=")
            name = checkpoint if checkpoint in weights.registry()["weights"] else weights.registered(network, "dino")
            found |= {name: network} if name else {}
    return found


def status(run):
    """What a profile needs -> DataFrame: part, state (present, partial or missing), size, where it was looked for, licence, how to get it."""
    rows = [_dataset_row(run, name) for name in run.datasets] + [_pairs_row(run)]
    return pd.DataFrame(rows + [_weights_row(name, network) for name, network in _files(run).items()])


def fetch(name, root):
    """Get a dataset (downloaded, checked, unpacked under `root`) or a registered checkpoint; for what needs an account or a crawl, the exact
    steps. Returns what to print. Raises ValueError, OSError."""
    known = weights.registry()
    if name in known["weights"]:
        return f"{name}: {weights.obtain(name)}"
    about = (known["datasets"] | known["pairs"]).get(name)
    if about is None:
        raise ValueError(
            f"nothing known of {name!r}; there are {', '.join([*known['datasets'], *known['pairs'], *known['weights']])}"
        )
    if "files" not in about:
        return f"{name} cannot be downloaded by a program alone ({about['licence']}):\n{about['steps'].format(root=root)}"
    root = Path(root)
    # an archive and what comes out of it lie side by side for a while
    download.require_space(root, 2 * sum(f["bytes"] for f in about["files"]), name)
    for file in about["files"]:
        archive = root / Path(file["url"]).name
        done = root / f".{archive.name}.unpacked"
        if done.exists():
            continue
        kind = "sha256" if "sha256" in file else "md5"
        download.fetch(file["url"], archive, file["bytes"], f"{kind}:{file[kind]}")
        download.unpack(archive, root)
        done.touch()
        archive.unlink()
    return f"{name}: {len(load_dataset(name, root))} images under {root}"


def encoder_flops(network, text=False):
    """FLOPs of one image through a network's image encoder, or of one text through its text encoder, counted on an empty copy."""
    model = empty_clip(network)
    side = model.visual.image_size
    image = torch.zeros(1, 3, *(side if isinstance(side, tuple) else (side, side)), device="meta")
    tokens = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_text(tokens) if text else model.visual(image)
    return counter.get_total_flops()


def plan(run):
    """What `reproduce` would do -> (DataFrame: network, image passes, pair passes, PFLOP, GPU hours at the assumed rate, cache GB; text)."""
    images = {name: _length(run, name) for name in run.datasets}
    passes, rows = pd.read_csv(PASSES).drop(columns="notebook").sum(), []
    seen, trained = sum(images.values()), _pair_count(run) * run.training["views"]
    for network in run.networks:
        encoder, text, mask = _flops_of(network)
        own, masks = (passes[f"{of}_image"] * seen + passes[f"{of}_pair"] * trained for of in ("clip", "masks"))
        total = own * encoder + masks * mask + trained * text
        columns, width = 3 + len(run.masks) + 1, 4 * 1024
        rows.append({"network": network, "image passes": round(passes["clip_image"] * seen), "pair passes": round(passes["clip_pair"] * trained),
                     "PFLOP": total / 1e15, "GPU hours": total / ASSUMED_RATE / 3600, "cache GB": trained * columns * width / 1e9})  # fmt: skip
    lines = [
        f"profile {run.name}: {len(notebooks())} notebooks ({', '.join(p.stem for p in notebooks())})",
        f"networks: {', '.join(run.networks)}; datasets: {', '.join(f'{n} ({c} images)' for n, c in images.items())}; pairs: {run.pairs}",
        f"GPU hours are PFLOP at an assumed {ASSUMED_RATE / 1e12:.0f} TFLOP/s, not measured; cache GB is an upper bound on the pooled features",
    ]
    return pd.DataFrame(rows), "\n".join(lines)


def _flops_of(network):
    """FLOPs of (an image, a text, an image through a mask's network: a ViT-B/16, in the demo one as large as the CLIP)."""
    mask = encoder_flops("scenes-ViT-16" if network in demo.NETWORKS else "ViT-B-16")
    return encoder_flops(network), encoder_flops(network, text=True), mask


def crawl_plan(network="ViT-B-16", masks=2, rate=ASSUMED_RATE, picture=PICTURE):
    """The pooled-feature pass over GCC3M and CC12M, one view, on 1, 8 and 64 GPUs of `rate` FLOP/s -> DataFrame: hours, TB of tar files, GB of
    cache, and for each GPU the MB/s that it reads and the cores that decode and augment for it. picture: (bytes, seconds), `PICTURE`."""
    encoder, text, mask = _flops_of(network)
    flops, (tar, decode) = encoder + text + masks * mask, picture
    weight = empty_clip(network).visual.proj
    cached = 4 * ((3 + masks) * weight.shape[0] + weight.shape[1])  # the columns of C numbers, and a text; here Ct = D
    rows = []
    for name, pairs in ((name, about["images"]) for name, about in weights.registry()["pairs"].items()):
        for gpus in (1, 8, 64):
            rows.append({"pairs": name.upper(), "GPUs": gpus, "hours": pairs * flops / rate / gpus / 3600, "tar TB": pairs * tar / 1e12, "cache GB": pairs * cached / 1e9,
                         "MB/s a GPU": rate / flops * tar / 1e6, "cores a GPU": rate / flops * decode})  # fmt: skip
    return pd.DataFrame(rows)


def _length(run, name):
    known = weights.registry()["datasets"].get(name)
    return run.limit or (known["images"] if known else len(load_dataset(name)))
