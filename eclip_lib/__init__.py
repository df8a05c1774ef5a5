"""ECLIP: visual explanations for CLIP. What a notebook imports: `import eclip_lib as eclip`."""

import importlib.util
from pathlib import Path

import torch


def _declare_missing_torchvision_operators():
    # PyPI's torchvision is linked against CUDA. Beside a CPU-only torch its operators do not load, and its import fails when it
    # registers `nms` and `qnms`. Declaring these two is enough (nothing here calls them), and only where loading failed:
    # elsewhere torchvision declares them itself.
    try:
        torch.ops.load_library(next(Path(importlib.util.find_spec("torchvision").origin).parent.glob("_C*")))
        return None
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library  # the declaration lives as long as this object


_torchvision_operators = _declare_missing_torchvision_operators()

from .attention import clip_attention, load_attention  # noqa: E402
from .clip import PROMPT, Clip, ImageFeatures, Projection, load_clip  # noqa: E402
from .datasets import Dataset, Example, load_dataset  # noqa: E402
from .evaluation import bootstrap, evaluate, recognize, summarize  # noqa: E402
from .explainers import explainer  # noqa: E402
from .itsm import itsm, reverse, similarity  # noqa: E402
from .metrics import average_precision, best_iou, score_contrast  # noqa: E402
from .pooling import pool  # noqa: E402
from .profiles import load_profile  # noqa: E402
