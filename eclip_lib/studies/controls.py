"""Notebook 06, controls: does a map say where the *named* object is, or where any object is?"""

from functools import partial

import numpy as np
import pandas as pd
import torch

from .. import files
from ..evaluation import batches, counts, grouped, mean_interval, prompts, score_contrast, spread, table
from ..explainers import FeatureMap, Shared, maps, named
from ..explainers.base import every_map
from ..method import itsm
from ..networks.attention import GRID, center_prior, mask_identity, noise, pixel_saliency

FEW = 100  # images are enough to control maps, and for Fig. 11's numbers
ROLLOUT = "rollout"  # the one method that knows no text
BASELINES = {"pixel saliency": pixel_saliency, "centre": center_prior, "noise": noise}


def text_free(clip, mask):
    """A mask (see `networks.attention`) as an explainer: the same map for every text."""

    def explain(images, text):
        cells = mask(clip.to_rgb(images).clamp(0, 1)).unflatten(1, getattr(mask, "grid", GRID))
        return cells[:, None].expand(-1, len(text), -1, -1)

    explain.identity = [*mask_identity(mask), files.code_digest("studies/controls.py")]
    return explain


def the_mean(explain):
    """A `FeatureMap`'s mean over all texts, as the map of each: what it shows whatever is named."""

    def of_features(given, text):
        found = explain.of_features(given, text)
        return found.mean(1, keepdim=True).expand_as(found)

    mean = FeatureMap(explain.clip, of_features, explain.blocks)
    mean.identity = ["mean", explain.identity, files.code_digest("studies/controls.py")]
    return mean


def first(run, name):
    """The first `FEW` images of one of a run's datasets."""
    return run.load_dataset(name, min(FEW, run.limit or FEW))


def measured(run, clip, name, explainers):
    """`control_rows` on the `first` images of one of a run's datasets, measured once."""
    dataset = first(run, name)
    measure = partial(control_rows, dataset, clip, explainers, run.workers, run.batch_size)
    rows = run.once("controls", [clip, dataset, [*explainers], *explainers.values()], measure)
    return rows.assign(dataset=name, network=clip.title)


@torch.no_grad()
def control_rows(dataset, clip, explainers, workers=0, batch_size=32):
    """One row a method and (image, class) present, contrasts in %: `own`, the object against all else (mSC);
    `absent`, the same of the map of a class that the image does not show (the next one in the list);
    `against_others`, the object against the image's other objects (nan without any); `centred`, `own` of the
    map less its mean over all texts (nan where a method needs a backward pass for every text)."""
    text, rows = prompts(dataset, clip), []
    for batch in batches(dataset, clip, batch_size, workers, "controls", least=1):
        index, shared, objects = batch.index(dataset.classes), Shared(clip, batch.images), batch.objects
        absent = [(i, _absent(batch.names[i], dataset.classes, t)) for i, t in index.tolist()]
        absent = index.new_tensor(absent)
        for method, explain in explainers.items():
            if hasattr(explain, "pairs"):
                own, other = (maps(explain, batch.images, text, pairs, shared) for pairs in (index, absent))
                found = {"own": own, "absent": other}
            else:
                every = every_map(explain, shared, text)
                found = {"own": every[tuple(index.T)], "absent": every[tuple(absent.T)]}
                found["centred"] = (every - every.mean(1, keepdim=True))[tuple(index.T)]
            for (i, t), cells in zip(index.tolist(), torch.stack([*found.values()], 1), strict=True):
                name, void = dataset.classes[t], batch.void[i]
                one = batch.masks[i][batch.names[i].index(name)]
                heats = itsm(cells[:, None], one.shape)[:, 0].cpu()
                values = [score_contrast(heat, one, void) for heat in heats]
                values.append(score_contrast(heats[0], one, void | ~objects[i]))
                line = {"method": method, "image_id": batch.ids[i], "class_name": name}
                kinds = [*found, "against_others"]
                rows.append(line | {k: 100 * float(v) for k, v in zip(kinds, values, strict=True)})
    return pd.DataFrame(rows)


def _absent(present, classes, start):
    turned = classes[start + 1 :] + classes[: start + 1]
    return classes.index(next((name for name in turned if name not in present), classes[start]))


def control_table(rows):
    """Means over images with 95 % intervals, one line a dataset, network and method; `text`: own less absent,
    paired: how much of the contrast hangs on the text."""
    if rows.empty:
        return rows
    values = ["own", "absent", "text", "against_others", "centred"]

    def line(part):
        found = {}
        for value, image in part.groupby("image_id", sort=False)[values].mean().items():
            three = mean_interval(image) if image.notna().any() else (float("nan"),) * 3
            found |= spread(value, three)
        return found

    rows = rows.assign(text=rows["own"] - rows["absent"])
    rows = rows.reindex(columns=[*rows, *({"centred"} - {*rows})])  # no method without a backward pass
    return grouped(rows, ("dataset", "network", "method"), line)


def baseline_table(run, clip):
    """mIoU and mSC of maps that know no text, on every dataset: the bar that a map of a text has to clear."""
    explainers = {name: text_free(clip, mask) for name, mask in BASELINES.items()}
    rows = [run.evaluate(clip, name, explainers) for name in run.datasets]
    return table(pd.concat(rows), ("dataset", "method"), seed=run.seed)


def verdict(controls, baselines, measured):
    """What the controls say, sentences computed from the tables. measured: mIoU of every method, one line a
    dataset, network and method."""
    lines, methods = [], controls[controls["method"] != ROLLOUT].groupby("method", sort=False)
    for column, said in (
        ("text", "the map follows the text (the object is higher than in an absent class's map)"),
        ("against_others", "the named object is higher than the image's other objects"),
    ):
        up, _, down = zip(*(counts(part, column) for _, part in methods), strict=True)
        many = methods.size()
        lines.append(
            f"{said}: {_in_all_or_none(dict(zip(many.index, zip(up, many, strict=True), strict=True)))}"
        )
        if any(down):
            lower = [
                f"{named(name)} in {n} of {many[name]}" for name, n in zip(many.index, down, strict=True) if n
            ]
            lines.append(f"lower instead: {', '.join(lower)}")
    floor = controls.loc[controls["method"] == ROLLOUT, "against_others"].mean()
    if not np.isnan(floor):
        said = f"{named(ROLLOUT)} knows no text, and sets the named object {floor:+.1f} against the others"
        lines.append(f"{said}: as every object is named in turn, such a map gets about 0")
    for name, bar in baselines.sort_values("mIoU").groupby("dataset").last().iterrows():
        here = measured[(measured["dataset"] == name) & (measured["method"] != ROLLOUT)]
        above = (here["mIoU"] > bar["mIoU"]).groupby(here["method"], sort=False)
        said = f"{name}: {bar['method']} knows no text and reaches {bar['mIoU']:.1f} mIoU; above it"
        lines.append(f"{said} {_in_all_or_none(above.agg(['sum', 'size']).T.to_dict('list'), 'networks')}")
    return "\n".join([*lines, *_beside_rollout(measured)])


def _in_all_or_none(found, of="cases"):
    """{method: (in how many something holds, of how many)} in words, methods together."""
    sides = {f"in all {of}": [named(name) for name, (n, every) in found.items() if n == every]}
    sides["in some"] = [
        f"{named(name)} ({n} of {every})" for name, (n, every) in found.items() if 0 < n < every
    ]
    sides["in none"] = [named(name) for name, (n, _) in found.items() if not n]
    return (
        "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names) or "none measured"
    )


def _beside_rollout(measured):
    """In how many cases each method stays below attention rollout, by mIoU: a sentence."""
    wide = measured.pivot_table(index=["dataset", "network"], columns="method", values="mIoU", sort=False)
    if ROLLOUT in wide:
        wide = wide.dropna(subset=ROLLOUT)
        under = wide.drop(columns=ROLLOUT).lt(wide[ROLLOUT], axis=0).sum()
        who = ", ".join(f"{named(method)} in {n}" for method, n in under.items() if n) or "none"
        yield f"below {named(ROLLOUT)}, which knows no text either, by mIoU, of {len(wide)} cases: {who}"
