"""How the suite runs: notebooks are compared without progress bars, one thread a process (kernels and other
processes that tests start inherit both), and long files come first, so that two workers end together."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# 05 makes features and pairs that others read; 07 reads the tables of all
FIRST = ["05_mmp", "01_itsm", "04_semantic", "06_bench", "02_dino", "03_pooling", "08_causes", "00_quick"]
FIRST += ["07_claims"]


def pytest_collection_modifyitems(items):
    """`make test` hands out whole files in this order (`--dist loadfile`), so that a notebook's cells stay in
    one worker, in order."""

    def place(item):
        name = item.path.name
        return next((k for k, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))

    items.sort(key=place)
