"""Explainers, one registry: method -> what it needs and the function (clip, **options) that makes one. The
contract is in `base`; a new method is one small file and one entry here; of one's own, a plain function of
(clip, **options) is an entry too."""

from collections.abc import Callable
from typing import NamedTuple

from .. import files
from .base import FeatureMap, PairMap, Shared, map_of, maps, scored
from .bi_model import bi_model
from .clip_maps import clip_map, eclip_map, rclip_map
from .dense import clear_clip, clip_surgery, gem, mask_clip, naclip, rollout, sclip
from .grad_cam import grad_cam
from .grad_eclip import grad_eclip
from .legrad import legrad


class Method(NamedTuple):
    """`make`: (clip, **options) -> explainer. `name`: as the paper and its figures call it. `title`: one line
    for lists. `backward`: whether it needs a backward pass."""

    make: Callable
    name: str
    title: str
    backward: bool = False


REGISTRY: dict[str, Method | Callable] = {
    "clip": Method(clip_map, "CLIP", "CLIP's own map (Eq. 4, 5)"),
    "rclip": Method(rclip_map, "RCLIP", "RCLIP, the map reversed (Eq. 10)"),
    "eclip": Method(eclip_map, "ECLIP", "ECLIP, a pair trained by masked max pooling (§3.3)"),
    "grad_cam": Method(grad_cam, "Grad-CAM", "Grad-CAM of the image-text cosine", True),
    "bi_model": Method(bi_model, "Bi-Model", "Bi-Model: relevance through attention (Chefer et al.)", True),
    "clip_surgery": Method(
        clip_surgery, "CLIP Surgery", "CLIP Surgery: value-value attention, feature surgery"
    ),
    "mask_clip": Method(mask_clip, "MaskCLIP", "MaskCLIP: value features of the last block"),
    "sclip": Method(sclip, "SCLIP", "SCLIP: correlative self-attention in the last block"),
    "clear_clip": Method(clear_clip, "ClearCLIP", "ClearCLIP: query-query attention alone in the last block"),
    "naclip": Method(naclip, "NACLIP", "NACLIP: key-key attention to neighbours in the last block"),
    "gem": Method(gem, "GEM", "GEM: self-self attention on a second path"),
    "legrad": Method(legrad, "LeGrad", "LeGrad: gradient by the attention of the last blocks", True),
    "grad_eclip": Method(
        grad_eclip, "Grad-ECLIP", "Grad-ECLIP: gradient and values of the last block's attention", True
    ),
    "rollout": Method(rollout, "rollout", "attention rollout: the same map for every text"),
}


def about(method: str) -> Method:
    """What is known of a method; of a plain function of one's own, its name."""
    entry = REGISTRY[method]
    return entry if isinstance(entry, Method) else Method(entry, method, method)


def named(method: str) -> str:
    """A method as the paper calls it, for tables and figures; any other word as it is."""
    return about(method).name if method in REGISTRY else method


def require(method: str):
    """Raise ValueError for an unknown method."""
    files.require_known(method, REGISTRY, "no method")


def explainer(method: str, clip, **options) -> Callable:
    """The explainer `method` (a key of `REGISTRY`) of a loaded `Clip`; options: eclip takes projection=,
    bi_model and legrad layers=, clip_surgery redundant=. Raises ValueError for an unknown method, or one that
    does not fit the network."""
    require(method)
    entry = REGISTRY[method]
    if not isinstance(entry, Method):  # of one's own: only its author knows when it changes
        return entry(clip, **options)
    made = entry.make(clip, **options)
    # with CLIP's: what decides a map; two pairs of equal weights may read different features
    contents = {name: [files.digest(v), getattr(v, "reads", None)] for name, v in options.items()}
    made.identity = [method, contents]
    return made
