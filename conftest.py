"""Notebooks are compared without progress bars: the kernels that nbval starts inherit this."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")
