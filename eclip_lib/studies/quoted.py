"""The paper's tables beside ours, where a run has the same network and dataset.

.venv/bin/python -m eclip_lib.studies.quoted runs/photos"""

import sys
from pathlib import Path

import pandas as pd

from ..explainers import named
from ..files import REPOSITORY
from ..poolings import Pooling

NETWORKS = {"ResNet50": "RN50", "ResNet101": "RN101"}
KEYS = ["dataset", "network", "method", "pooling", "size"]


def reported(name):
    """A table of the paper, quoted (`results/reported/`)."""
    return pd.read_csv(REPOSITORY / "results" / "reported" / f"{name}.csv")


def _with(table, values):
    """The rows of a table that have these values {column: value}."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _long(name):
    """A table of the paper in the form of ours: one line a dataset, network and method, pooling or size."""
    table = reported(name)
    if name == "table_3":
        rows = zip(table["pooling"], table["mask"], strict=True)
        labels = [p if mask == "no" else Pooling("masked_max", mask).label for p, mask in rows]
        return table.assign(dataset="voc2012", network="ViT-B-16", pooling=labels).drop(columns="mask")
    if name == "table_5":
        table = table.assign(dataset="voc2012", network="ViT-B-16", same=table["B2B_or_F2F"])
        return table.drop(columns="B2B_or_F2F")
    network = table.get("network", pd.Series("ViT-B/16", index=table.index))
    network = [NETWORKS.get(n, n.replace("/", "-")) for n in network]
    method = table["method"]
    if "data_millions" in table:  # Table 4's second row is a CLIP of the small set
        method = method.mask((method == "CLIP") & table["data_millions"].notna(), "CLIP from random weights")
    parts = []
    for dataset in ("voc2012", "coco2017", "imagenet-s50"):
        values = {c.partition("_")[2]: table[c] for c in table if c.startswith(f"{dataset}_")}
        parts.append(pd.DataFrame({"dataset": dataset, "network": network, "method": method, **values}))
    return pd.concat(parts, ignore_index=True)


def beside(ours, name, **rows):
    """The paper's table, quoted, with ours and the difference in every line that this run measured too; where
    it measured none, as printed. ours: a table with dataset, network (the titles) and what else its lines are
    called by. rows: {column: value} of those wanted."""
    quoted = _with(_long(name), rows)
    keys = [key for key in KEYS if key in quoted and key in ours]
    measures = [c for c in quoted if c not in KEYS and c in ours]
    if "method" in keys:
        ours = ours.assign(method=ours["method"].map(named).str.replace(", .*", "", regex=True))
    named_by = (" (paper)", " (ours)")
    both = quoted[keys + measures].merge(ours[keys + measures], on=keys, how="inner", suffixes=named_by)
    if both.empty:
        return _with(reported(name), rows).reset_index(drop=True)
    for measure in measures:
        both[f"{measure} (difference)"] = both[f"{measure} (ours)"] - both[f"{measure} (paper)"]
    return both.set_index(keys)


def as_text(tables):
    """Tables 1 and 2 of a run (`tables`: their folder) beside the paper's, and its later methods. Raises
    FileNotFoundError where there are none."""
    found = {name: Path(tables, f"{name}.csv") for name in ("table_1", "table_2", "later_methods")}
    found = {name: pd.read_csv(path) for name, path in found.items() if path.exists()}
    if not found:
        raise FileNotFoundError(f"no tables in {tables}: run `eclip reproduce --profile photos` first")
    later = found.pop("later_methods", pd.DataFrame())
    parts = [f"{name}\n{beside(table, name).round(2).to_string()}" for name, table in found.items()]
    if len(later):
        columns = ["dataset", "network", "method", "mIoU", "mSC"]
        parts.append(f"later methods\n{later[columns].round(2).to_string(index=False)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(as_text(Path(sys.argv[1], "tables")))
