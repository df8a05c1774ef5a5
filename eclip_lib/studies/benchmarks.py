"""Notebook 06: every method on every network and dataset, tables with paired intervals (Tables 1, 2, 4; Figs.
1, 7, 8, 11 to 13)."""

from functools import partial
from timeit import timeit

import numpy as np
import pandas as pd
import torch

from ..evaluation import batches, bootstrap, class_mean, counts, gains, grouped, interval, prompts, spread
from ..evaluation import table as summary_table
from ..evaluation.statistics import VALUES
from ..explainers import Shared, about, explainer, maps, named
from ..method import itsm
from ..networks.loading import is_vit
from . import controls
from .mmp_training import recognition

TABLE_1, TABLE_2 = ["clip", "rclip", "eclip"], ["clip", "grad_cam", "bi_model", "rclip", "eclip"]
KEYS = ["dataset", "network", "method"]
LATER = ["clip_surgery", "mask_clip", "sclip", "gem", "legrad"]  # as far as the sheets show them
LATER += ["grad_eclip", "clear_clip", "naclip", "rollout"]


def has_pair(run):
    """Whether ECLIP has a learned pair: trained in this run, or one's own."""
    return bool(run.pairs or run.projection)


def explainers_of(run, clip, methods):
    """{method: explainer}; ECLIP with the pair that notebook 05 trained, in a run that trains."""
    methods = [method for method in methods if method != "eclip" or has_pair(run)]
    options = {"eclip": {"projection": run.load_pair(clip)}} if "eclip" in methods else {}
    return {method: explainer(method, clip, **options.get(method, {})) for method in methods}


def vits(run):
    """The profile's first two ViTs, coarse and fine (Table 2)."""
    return [network for network in run.networks if is_vit(network)][:2]


def plan(run):
    """{network: methods}: Table 1's on every network, all of them on the coarse and the fine ViT."""
    return {network: TABLE_2 + LATER if network in vits(run) else TABLE_1 for network in run.networks}


def table(run, rows, methods):
    """One line a dataset, network and method of `methods`, with intervals over images; then the mean over
    datasets as "average"."""
    result = summary_table(rows[rows["method"].isin(methods)], seed=run.seed)
    if result.empty:
        return result
    result.insert(3, "backward", [about(method).backward for method in result["method"]])
    mean = result.groupby(["network", "method"], sort=False)[["mIoU", "mSC"]].mean().reset_index()
    return pd.concat([result, mean.assign(dataset="average")], ignore_index=True)


def wide(result, values=("mIoU", "mSC")):
    """A table as the paper prints it: one row a network and method, the values below each dataset."""
    if result.empty:
        return result
    shape = {"index": ["network", "method"], "columns": "dataset", "values": list(values)}
    return result.assign(method=result["method"].map(named)).pivot_table(**shape, sort=False)


def best_in_words(measured):
    """Which method is best by mIoU and by mSC, and by how much, on every network and dataset of a `table`."""
    lines = []
    for (name, network), part in measured.groupby(["dataset", "network"], sort=False):
        said = []
        for value in VALUES:
            best = part.set_index("method")[value].dropna().nlargest(2)
            words = ", then ".join(f"{named(method)} {number:.1f}" for method, number in best.items())
            place = part.set_index("method")[value].rank(ascending=False, method="min").get("eclip", 1)
            behind = f" (ECLIP is number {place:.0f} of {part[value].count()})" if place > 2 else ""
            said.append(f"{value} {words or 'no method'}{behind}")
        lines.append(f"{name}, {network}: best by {'; by '.join(said)}")
    return "\n".join(lines)


def all_gains(run, rows):
    """RCLIP against the gradient methods, ECLIP against every method there is (§4.2, Table 2), paired over
    images."""
    others = {"rclip": ("bi_model", "grad_cam", "clip"), "eclip": rows["method"].unique()}
    parts = [[(ours, other) for other in others[ours] if other != ours] for ours in others]
    return pd.concat([gains(rows, comparisons, run.seed) for comparisons in parts], ignore_index=True)


def finer_grid(run, rows):
    """What the fine grid costs every method: mIoU and mSC of the fine ViT less those of the coarse one, and
    `less_than_eclip`, how much more mIoU it loses than ECLIP; in points, with 95 % bootstrap intervals over
    the images, the same for all. rows: of two networks, the coarse one first; else no line."""
    networks = rows["network"].unique()

    def change(own, value):
        """Of a method's rows: [the change, its draws ...]."""
        coarse, fine = (own[own["network"] == network] for network in networks)
        both = ([class_mean(part, value), *bootstrap(part, value, seed=run.seed)] for part in (fine, coarse))
        return np.subtract(*both)

    def lines(part):
        changes = {}
        for method, own in part.groupby("method", sort=False):
            changes[method] = {measure: change(own, value) for measure, value in VALUES.items()}
        for method, found in changes.items():
            if "eclip" in changes:
                found = found | {"less_than_eclip": changes["eclip"]["mIoU"] - found["mIoU"]}
            line = {"method": method}
            for column, (value, *draws) in found.items():
                line |= spread(column, (value, *interval(draws)))
            yield line

    return grouped(rows if len(networks) == 2 else rows[:0], ["dataset"], lines)


def finer_in_words(found):
    """`finer_grid`: whose mIoU and mSC rise, and whose fall, on every dataset; two sentences."""
    lines = []
    for value in VALUES:
        sides = {"rises for": [], "falls for": [], "neither, or not on every dataset, for": []}
        for method, part in found.groupby("method", sort=False):
            up, _, down = counts(part, value)
            side = "rises for" if up == len(part) else "falls for" if down == len(part) else [*sides][-1]
            sides[side].append(named(method))
        said = "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
        lines.append(f"from the coarse to the fine grid (95 % intervals over images) {value} {said}")
    return "\n".join(lines)


def one_threshold(run, rows):
    """mIoU with one threshold for every (image, class), and `mIoU_image` with one for all classes of an
    image; one line a dataset, network and method."""
    values = [f"{name}{end}" for name in ("mIoU", "mIoU_image") for end in ("", "_low", "_high")]
    return summary_table(rows, measures=values, seed=run.seed)


def thresholds_in_words(found):
    """`one_threshold`: what one threshold an image costs, and whether it changes the order of methods."""
    cost, cases = found["mIoU"] - found["mIoU_image"], found.groupby(["dataset", "network"], sort=False)
    order = [part.set_index("method")[["mIoU", "mIoU_image"]].rank() for _, part in cases]
    same = sum((ranks["mIoU"] == ranks["mIoU_image"]).all() for ranks in order)
    said = f"One threshold an image costs {cost.min():.1f} to {cost.max():.1f} mIoU"
    return f"{said}; the order of methods stays the same in {same} of {len(order)} cases."


def timings(run):
    """Milliseconds an image of every method on the coarse and the fine ViT, without decoding and scoring, one
    column each: the pairs of one batch of the first dataset. Also written beside the tables, in a file of its
    own."""
    lines, dataset = [], run.load_dataset(run.datasets[0])
    for network in vits(run):
        clip = run.load_clip(network)
        batch = next(batches(dataset, clip, run.batch_size, 0, "timing", least=1))
        text, index = prompts(dataset, clip), batch.index(dataset.classes)
        for method, explain in explainers_of(run, clip, TABLE_2 + LATER).items():
            call = partial(maps, explain, batch.images, text, index)
            call()  # the first one takes longer
            seconds = timeit(lambda: call().cpu(), number=1)  # noqa: B023 (`cpu` waits for a GPU)
            lines.append({"network": clip.title, "method": method, "ms": 1000 * seconds / len(batch)})
    found = pd.DataFrame(lines)
    if found.empty:
        return found
    run.save_timings(found)
    found["method"] = found["method"].map(named)
    return found.pivot_table(index="method", columns="network", values="ms", sort=False)


def table_4(run):
    """Table 4: mAP in % of CLIP, RCLIP and ECLIP (CLIP's class token and own pair in all three; `identical`:
    the same scores to the bit after a pair was trained), and of the same network trained from random weights
    on the small caption set, where there is one; one line a network, dataset and method."""
    lines = []
    for network in run.networks:
        clip, scratch = run.load_clip(network), run.scratch.get(network)
        small = run.load_clip(network, scratch) if scratch else None
        pair = run.load_pair(clip) if has_pair(run) else None
        for name in run.datasets:
            (scores, value), (again, after) = (recognition(run, clip, p, name) for p in (None, pair))
            found = [("CLIP", value, None), ("RCLIP", after, again == scores if pair else None)]
            found += [("ECLIP", after, again == scores)] if pair else []
            if small:
                alone = recognition(run, small, name=name)[1]
                found.append((f"CLIP from random weights, {run.pairs}", alone, None))
            lines += [(name, *line, clip.title) for line in found]
    return pd.DataFrame(lines, columns=["dataset", "method", "mAP", "identical", "network"])


def map_statistics(run, methods):
    """Fig. 11 in numbers, on the coarse and the fine ViT: `likeness` of the maps of two classes present in
    one image (Pearson correlation), `roughness` (mean step between neighbouring cells of the map at 28x28,
    where every grid is compared), with 95 % intervals; images with two classes or more. A dataset without any
    has no line."""
    parts = []
    for network in vits(run):
        clip = run.load_clip(network)
        found = explainers_of(run, clip, methods)
        for name in run.datasets:
            dataset = controls.first(run, name)
            about, measure = [clip, dataset, *found.values()], partial(_statistics, run, clip, dataset, found)
            parts.append(run.once("map_statistics", about, measure))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=KEYS)


@torch.no_grad()
def _statistics(run, clip, dataset, found):
    text, sums, lines = prompts(dataset, clip), {method: [] for method in found}, []
    for batch in batches(dataset, clip, run.batch_size, run.workers, "maps of two classes", least=2):
        index, shared = _first_two(batch, dataset.classes), Shared(clip, batch.images)
        for method, explain in found.items():
            sums[method].append(_likeness_and_roughness(maps(explain, batch.images, text, index, shared)))
    grid = clip.model.visual.grid_size[0]
    for method, parts in sums.items():
        if parts:
            line = {"dataset": dataset.name, "network": clip.title, "method": method, "grid": grid}
            lines.append(line | _with_intervals(torch.cat(parts).double().cpu()))
    return pd.DataFrame(lines, columns=None if lines else KEYS)


def _first_two(batch, classes):
    """(image, class) of the first two classes of every image -> int64 [2 B, 2]."""
    pairs = [(i, classes.index(name)) for i, names in enumerate(batch.names) for name in names[:2]]
    return torch.tensor(pairs, device=batch.images.device)


def _likeness_and_roughness(cells):
    """Maps of two classes an image [2 B, h, w] -> [B, 2]."""
    heat = itsm(cells[:, None], (28, 28))[:, 0]
    step = heat.diff(dim=1).abs().mean((1, 2)) + heat.diff(dim=2).abs().mean((1, 2))
    likeness = torch.stack([torch.corrcoef(two.flatten(1))[0, 1] for two in heat.split(2)])
    return torch.stack([likeness, step.unflatten(0, (-1, 2)).mean(1)], 1)


def _with_intervals(every):
    line = {}
    for column, value in zip(every.T, ("likeness", "roughness"), strict=True):
        known = column[~column.isnan()]  # a constant map is like no other
        half = 1.96 * known.std() / len(known) ** 0.5 if len(known) > 1 else torch.tensor(torch.nan)
        mean = known.mean()
        line |= spread(value, (mean, mean - half, mean + half))
    return line | {"images": len(every)}
