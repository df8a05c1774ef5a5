import torch


def _define_missing_torchvision_operators():
    # PyPI's torchvision beside a CPU-only torch fails at import because its compiled operators do not load and their
    # schemas are missing when it registers `nms` and `qnms`. Declaring them is enough: nothing here calls them.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(getattr(torch.ops, "torchvision"), name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_torchvision_operators = _define_missing_torchvision_operators()

from .clip import Clip, ImageFeatures, Projection, load_clip  # noqa: E402
from .datasets import Dataset, Example, load_dataset  # noqa: E402
from .evaluation import bootstrap, evaluate, recognize, summarize  # noqa: E402
from .explainers import explainer  # noqa: E402
from .itsm import itsm, reverse, similarity  # noqa: E402
from .metrics import average_precision, best_iou, score_contrast  # noqa: E402
