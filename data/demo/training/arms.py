"""Measures the arms of notebook 08 and keeps their cards.

    python data/demo/training/arms.py [folder]

reads every arm in a folder (`runs/demo_training`, where `clips.py` leaves them) beside the shipped seeds of
scenes-ViT-32, and writes `data/demo/arms/`: rows.csv, one line a pool, training and level, and the cards. What was
measured before is read from `runs/arms`. The weights of an arm (3.4 MB each) are not shipped.
"""

import hashlib
import json
import sys
from pathlib import Path

import pandas as pd
import torch
from clips import overview

from eclip_lib import files
from eclip_lib.evaluation import recognize, table
from eclip_lib.experiment import load_profile
from eclip_lib.explainers import explainer
from eclip_lib.networks import demo
from eclip_lib.studies import arms, causes

# of new pairs; "own": as the arm pools itself, which is what `attention` reads of any network (F_c)
POOLINGS = {"own": "attention", "average": "average", "max": "max"}


def found_in(folder):
    """[(pool, training, weights)], the shipped seeds last."""
    place = {pool: demo.FOLDER if pool == arms.LONGER else Path(folder) for pool in arms.NETWORK}
    found = [
        (pool, path)
        for pool, network in arms.NETWORK.items()
        for path in sorted(place[pool].glob(f"{network}-seed*.safetensors"))
    ]
    return [(pool, path.stem.rpartition("-")[2], path) for pool, path in found]


def keep_card(weights):
    """A copy of an arm's card beside the rows, which have what it recognizes."""
    card = json.loads(weights.with_suffix(".json").read_text())
    card.pop("zero_shot_mAP", None)
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest(), weights
    files.write(arms.ROWS.with_name(f"{weights.stem}.json"), files.as_json(card))


def recognized(run, clip):
    """mAP and its chance in %, one line a dataset."""
    lines = []
    for name in run.datasets:
        _, labels, score = recognize(run.load_dataset(name), clip)
        lines.append({"dataset": name, "images": len(labels), "mAP": score, "chance": 100 * labels.mean()})
    return pd.DataFrame(lines)


def of_pairs(run, clip, seed):
    """mIoU and mSC in % of a new pair for each of `POOLINGS`, trained as notebook 03's are; one line a
    dataset."""
    trained = run.train_all(clip, run.features(clip, {}), [(p, seed, "random") for p in POOLINGS.values()])
    pairs = zip(POOLINGS, trained, strict=True)
    methods = {name: explainer("eclip", clip, projection=one.pair) for name, one in pairs}
    rows = pd.concat([run.evaluate(clip, name, methods) for name in run.datasets])
    found = table(rows, ("dataset", "method"), ["mIoU", "mSC"]).pivot(index="dataset", columns="method")
    found.columns = [f"pair_{method}_{measure}" for measure, method in found.columns]
    return found.reset_index()


def main(folder="runs/demo_training"):
    run, parts = load_profile("demo", out="runs/arms", workers=0), []
    known = arms.arms() if arms.ROWS.exists() else pd.DataFrame(columns=["pool", "training"])
    for pool, training, weights in found_in(folder):
        clip = run.load_clip(arms.NETWORK[pool], weights)
        about = {(clip.network, training): clip}
        part = causes.lines(causes.depth_table(run, about), causes.what_table(run, about))
        part = part.merge(recognized(run, clip), on="dataset")
        if pool in demo.POOLS:  # of the shipped seeds notebook 03 has them
            part = part.merge(of_pairs(run, clip, int(training.removeprefix("seed"))), on="dataset")
            keep_card(weights)
        part = part.drop(columns="network")
        part.insert(0, "pool", pool)
        parts.append(part)
        print(part.drop(columns=["images", "chance"]).round(1).to_string(), flush=True)
        rows = pd.concat([known, *parts]).drop_duplicates(["pool", "training", "dataset"], keep="last")
        files.write(arms.ROWS, files.as_csv(rows, index=False, float_format="%.4f"))
    overview()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
