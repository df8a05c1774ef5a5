"""What notebook 06 measures: every method on every network and dataset, rows on disk, tables with paired intervals (Tables 1, 2, 4)."""

import json
import os
import time

import pandas as pd
import torch

from . import demo
from .clip import is_vit, stacked
from .discovery import MEASURES
from .evaluation import batches, evaluate, prompts, recognize, summarize
from .explainers import NEEDS, explainer
from .itsm import itsm
from .mmp_study import gain

TABLE_1, TABLE_2 = ["clip", "rclip", "eclip"], ["clip", "grad_cam", "bi_model", "rclip", "eclip"]
LATER = ["clip_surgery", "mask_clip", "sclip", "gem", "legrad", "rollout"]


def explainers_of(run, clip, methods):
    """{method: explainer}; ECLIP with the pair that notebook 05 trained."""
    options = {"eclip": {"projection": run.load_pair(clip)}} if "eclip" in methods else {}
    return {method: explainer(method, clip, **options.get(method, {})) for method in methods}


def vits(run):
    """The profile's first two ViTs, coarse and fine (Table 2)."""
    return [network for network in run.networks if is_vit(network)][:2]


# ---------------------------------------------------------------------------------------------------- rows on disk


def _about(run):
    return {name: getattr(run, name) for name in ("pretrained", "precision", "pairs", "limit", "seed")}


def measure(run, plan):
    """Evaluate {network: methods} on the run's datasets, one pass over each dataset a network; every (network, dataset, method) goes to its
    own file under `out`/rows at once, so that runs side by side share no file. Returns {(network, dataset, method): rows}."""
    rows = {}
    for network, methods in plan.items():
        clip = run.load_clip(network)
        for name in run.datasets:
            found = evaluate(
                explainers_of(run, clip, methods), run.load_dataset(name), clip, run.workers, run.batch_size,
                description=f"{network} on {name}",
            )  # fmt: skip
            for method, part in found.items():
                rows[network, name, method] = part
                path = run.out / "rows" / name / network / f"{method}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(f".{os.getpid()}.partial")
                partial.write_text(f"# {json.dumps(_about(run))}\n{part.to_csv(index=False)}")
                os.replace(partial, path)
    return rows


def join(run, rows, plan):
    """`rows` and whatever other runs left under `out`/rows with the same settings (`_about`) -> (rows, what `plan` still misses)."""
    rows = dict(rows)
    for path in sorted((run.out / "rows").glob("*/*/*.csv")):
        key = (path.parent.name, path.parent.parent.name, path.stem)
        with open(path) as file:
            about = json.loads(file.readline().removeprefix("# "))
            if key not in rows and about == _about(run):
                rows[key] = pd.read_csv(file, dtype={"image_id": str})
    missing = [(n, d, m) for n, methods in plan.items() for d in run.datasets for m in methods if (n, d, m) not in rows]
    return rows, missing


# ---------------------------------------------------------------------------------------------------- tables


def table(run, rows, methods):
    """One line a dataset, network and method of `methods`, with intervals over images; then the mean over datasets as "average"."""
    lines = [
        {"dataset": name, "network": run.title(network), "method": method, "backward": NEEDS[method].backward}
        | summarize(part, seed=run.seed)[MEASURES].to_dict()
        for (network, name, method), part in rows.items()
        if method in methods
    ]
    result = pd.DataFrame(lines)
    if result.empty:
        return result
    mean = result.groupby(["network", "method"], sort=False)[["mIoU", "mSC"]].mean().reset_index().assign(dataset="average")
    return pd.concat([result, mean], ignore_index=True)


def wide(result):
    """A table as the paper prints it: one row a network and method, mIoU and mSC below each dataset."""
    return result.pivot_table(index=["network", "method"], columns="dataset", values=["mIoU", "mSC"], sort=False)


def gains(run, rows, ours, others):
    """Paired differences of method `ours` against each of `others` in points, intervals over images; one line each."""
    lines = []
    for (network, name, method), part in rows.items():
        if method == ours:
            for other in others:
                if (network, name, other) in rows:
                    line = {"dataset": name, "network": run.title(network), "better": ours, "than": other}
                    lines.append(line | gain(part, rows[network, name, other], run.seed))
    return pd.DataFrame(lines)


def times(run, clip, methods, repeats=3):
    """Milliseconds an image of each method, without decoding and scoring: the pairs of one batch of the first dataset."""
    batch = next(iter(batches(run.load_dataset(run.datasets[0]), clip, run.batch_size, 0, "timing")))
    images, text = stacked([prepared for _, prepared, *_ in batch], clip.device), None
    dataset = run.load_dataset(run.datasets[0])
    text, number = prompts(dataset, clip), {name: k for k, name in enumerate(dataset.classes)}
    index = torch.tensor([(i, number[n]) for i, (_, _, names, *_) in enumerate(batch) for n in names], device=clip.device)
    lines = []
    for method, explain in explainers_of(run, clip, methods).items():
        spent = []
        for _ in range(repeats):
            begin = time.perf_counter()
            with torch.set_grad_enabled(hasattr(explain, "pairs")):
                explain.pairs(images, text, index) if hasattr(explain, "pairs") else explain(images, text)
            spent.append(1000 * (time.perf_counter() - begin) / len(images))
        lines.append({"network": run.title(clip.network), "method": method, "ms": min(spent)})
    return pd.DataFrame(lines)


def recognition(run, network, scratch=None):
    """Table 4 for one network: mAP in % of CLIP, RCLIP and ECLIP (CLIP's class token and own pair in all three), and of the same network
    trained from random weights on the small caption set (checkpoint `scratch`), one line a dataset and method."""
    lines = []
    for name in run.datasets:
        dataset, clip = run.load_dataset(name), run.load_clip(network)
        scores = recognize(dataset, clip, run.workers, run.batch_size)
        lines.append({"dataset": name, "method": "CLIP", "mAP": scores[2]})
        run.load_pair(clip)  # ECLIP's pair is read, and changes nothing of the class token's scores
        again = recognize(dataset, clip, run.workers, run.batch_size)
        identical = (again[0] == scores[0]).all()
        for method in ("RCLIP", "ECLIP"):
            lines.append({"dataset": name, "method": method, "mAP": again[2], "identical": bool(identical)})
        if scratch:
            small = run.load_clip(network, scratch)
            value = recognize(dataset, small, run.workers, run.batch_size)[2]
            lines.append({"dataset": name, "method": f"CLIP from random weights, {run.pairs}", "mAP": value})
    return pd.DataFrame(lines).assign(network=run.title(network))


@torch.no_grad()
def map_statistics(run, methods, limit=100):
    """Fig. 11 in numbers, on the coarse and the fine ViT: `likeness` of the maps of two classes present in one image (Pearson correlation),
    `roughness` (mean step between neighbouring cells of the map at 28x28, where every grid is compared), images with two classes or more."""
    lines = []
    for network in vits(run):
        clip = run.load_clip(network)
        found = explainers_of(run, clip, methods)
        for name in run.datasets:
            dataset = run.load_dataset(name, limit)
            text, number, sums = prompts(dataset, clip), {c: k for k, c in enumerate(dataset.classes)}, {m: [] for m in methods}
            for batch in batches(dataset, clip, run.batch_size, run.workers, f"maps of {network} on {name}"):
                batch = [item for item in batch if len(item[2]) > 1]
                images = stacked([prepared for _, prepared, *_ in batch], clip.device)
                index = [(i, number[n]) for i, (_, _, names, *_) in enumerate(batch) for n in names[:2]]
                index = torch.tensor(index, device=clip.device)
                for method, explain in found.items():
                    pairs = hasattr(explain, "pairs")
                    maps = explain.pairs(images, text, index) if pairs else explain(images, text)[index[:, 0], index[:, 1]]
                    maps = itsm(maps.detach()[:, None], (28, 28))[:, 0]
                    step = maps.diff(dim=1).abs().mean((1, 2)) + maps.diff(dim=2).abs().mean((1, 2))
                    two = torch.stack([torch.corrcoef(two.flatten(1))[0, 1] for two in maps.split(2)])
                    sums[method].append(torch.stack([two, step.unflatten(0, (-1, 2)).mean(1)], 1))
            for method, parts in sums.items():
                every = torch.cat(parts).double().cpu()
                mean, half = every.nanmean(0), 1.96 * every.std(0) / len(every) ** 0.5
                line = {
                    "dataset": name,
                    "network": run.title(network),
                    "method": method,
                    "grid": clip.model.visual.grid_size[0],
                }
                for k, value in enumerate(("likeness", "roughness")):
                    line |= {
                        value: float(mean[k]),
                        f"{value}_low": float(mean[k] - half[k]),
                        f"{value}_high": float(mean[k] + half[k]),
                    }
                lines.append(line | {"images": len(every)})
    return pd.DataFrame(lines)


def all_gains(run, rows):
    """RCLIP against the gradient methods, ECLIP against every method there is (§4.2, Table 2)."""
    others = list(dict.fromkeys(method for _, _, method in rows if method != "eclip"))
    return pd.concat(
        [gains(run, rows, "rclip", ["bi_model", "grad_cam", "clip"]), gains(run, rows, "eclip", others)], ignore_index=True
    )


def timings(run):
    """`times` on the coarse and the fine ViT, one column each; also written beside the tables, in a file of its own."""
    found = pd.concat([times(run, run.load_clip(n), TABLE_2 + LATER) for n in vits(run)] or [pd.DataFrame()], ignore_index=True)
    if found.empty:
        return found
    (run.out / "timings.csv").write_text(found.to_csv(index=False))
    return found.pivot_table(index="method", columns="network", values="ms", sort=False)


def table_4(run):
    """`recognition` of every network, with the networks that have one trained from random weights beside them."""
    return pd.concat(
        [recognition(run, n, demo.scratch(n) if run.pretrained == "default" else None) for n in run.networks], ignore_index=True
    )


def gains_in_words(table):
    """One sentence a comparison: on how many network and dataset pairs the difference and its interval lie above 0, below it, or neither."""
    lines = []
    for (better, other), part in table.groupby(["better", "than"], sort=False):
        counts = []
        for measure in ("mIoU", "mSC"):
            up, down = (part[f"{measure}_low"] > 0).sum(), (part[f"{measure}_high"] < 0).sum()
            counts.append(f"{measure} higher on {up}, lower on {down}, undecided on {len(part) - up - down}")
        lines.append(f"{better} against {other} ({len(part)}): {'; '.join(counts)}")
    return "\n".join(lines)
