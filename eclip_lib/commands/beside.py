"""What a run measured beside the paper's own numbers, and the difference (Tables 1 and 2).

.venv/bin/python -m eclip_lib.commands.beside runs/photos"""

import sys
from pathlib import Path

import pandas as pd

from ..experiment import reported
from ..explainers import about

NETWORKS = {"RN50": "ResNet50", "RN101": "ResNet101"}  # as the paper calls them; ViT-B-32 is ViT-B/32
MEASURES = ("mIoU", "mSC")


def beside(tables):
    """A run's tables 1 and 2 and its later methods, in the folder `tables` -> DataFrame, one line a dataset, network
    and method: mIoU and mSC in %, the paper's, and ours less the paper's. Raises FileNotFoundError where there are
    none."""
    found = [Path(tables, f"{name}.csv") for name in ("table_1", "table_2", "later_methods")]
    found = [pd.read_csv(path) for path in found if path.exists()]
    if not found:
        raise FileNotFoundError(f"no tables in {tables}: run `eclip reproduce --profile photos` first")
    ours = pd.concat(found).drop_duplicates(["dataset", "network", "method"])
    ours = ours[ours["dataset"] != "average"]
    ours["method"] = [about(method).name for method in ours["method"]]
    paper = pd.concat([reported(name) for name in ("table_1", "table_2")])
    paper = paper.drop_duplicates(["network", "method"]).set_index(["network", "method"])
    lines = []
    for _, row in ours.iterrows():
        key = (
            NETWORKS.get(row["network"], row["network"].replace("-", "/").replace("ViT/", "ViT-")),
            row["method"],
        )
        line = {name: row[name] for name in ("dataset", "network", "method")}
        for measure in MEASURES:
            column = f"{row['dataset']}_{measure}"
            quoted = paper[column].get(key, float("nan")) if column in paper else float("nan")
            line |= {
                measure: row[measure],
                f"paper's {measure}": quoted,
                f"less the paper's {measure}": row[measure] - quoted,
            }
        lines.append(line)
    return pd.DataFrame(lines).sort_values(["dataset", "network"], kind="stable", ignore_index=True)


if __name__ == "__main__":
    print(beside(Path(sys.argv[1], "tables")).round(2).to_string(index=False, na_rep="-"))
