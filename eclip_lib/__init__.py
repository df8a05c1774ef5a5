"""ECLIP: visual explanations for CLIP. What a notebook imports: `import eclip_lib as eclip`.

Names are loaded when they are first used, so that the command line answers at once."""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class _TorchvisionBesideCpuTorch(MetaPathFinder):
    """PyPI's torchvision is linked against CUDA. Beside a CPU-only torch its operators do not load, and its
    import fails when it registers `nms` and `qnms`. Declaring these two before its first import is enough
    (nothing here calls them), and only where loading failed: elsewhere torchvision declares them itself."""

    declared = None  # the declaration lives as long as this object

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        if spec is not None:
            self._declare(Path(spec.origin).parent)
        return spec

    def _declare(self, folder):
        import torch

        try:
            torch.ops.load_library(next(folder.glob("_C*")))
        except (OSError, StopIteration):
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _TorchvisionBesideCpuTorch.declared = library


sys.meta_path.insert(0, _TorchvisionBesideCpuTorch())

_WHERE = {
    "method": "ImageFeatures contrastive_loss itsm pool reverse score similarity",
    "projection": "Projection",
    "networks.clip": "PROMPT Clip",
    "networks.loading": "load_clip",
    "networks.attention": "clip_attention load_attention",
    "explainers": "explainer map_of maps",
    "datasets": "Dataset Example examples load_dataset",
    "datasets.base": "read_image",
    "datasets.image_text": "load_pairs",
    "evaluation": "average_precision best_iou bootstrap evaluate recognize score_contrast summarize",
    "feature_cache": "cache_features",
    "poolings": "Pooling",
    "training": "train_pair",
    "experiment": "load_profile open_run",
    "studies.quoted": "reported",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
