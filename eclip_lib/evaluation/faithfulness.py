"""Faithfulness: does CLIP's own answer change where the map says it should? No mask is needed, and none is
asked.

The answer to a pair is the softmax of CLIP's logits over the dataset's classes (Eq. 3), at the pair's class.
Pixels of the network's input are ordered by the map, resized as in Eq. 5; of equal ones the first comes
first. A constant map orders nothing: nan.

deletion, insertion   Petsiuk, Das and Saenko, "RISE", 2018: pixels are replaced by the mean colour, the most
                      relevant first; pixels come back into the blurred image, the most relevant first. The
                      area under the answer over the share of pixels: low deletion and high insertion are good
ROAD                  Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
                      2022, through the grad-cam package: pixels are imputed from their neighbours; (least
                      relevant removed - most relevant removed) / 2, high is good"""

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from ..method import score

STEPS = 20  # shares of pixels 0, 1/20, … 1
PERCENTILES = [20, 40, 60, 80]  # of ROAD


def answers(clip, text):
    """A function of images [B, 3, S, S] -> CLIP's probabilities of T texts [B, T]."""

    def answer(images):
        cosines = score(clip.encode_image(images).class_token, text, clip.projection)
        return (clip.logit_scale * cosines).softmax(-1)

    return answer


def removal_order(cells, size):
    """Maps [P, h, w] -> the place of every pixel among the most relevant, int64 [P, *size], 0 the first."""
    heat = F.interpolate(cells[:, None].float(), tuple(size), mode="bilinear", align_corners=False)
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).view(len(cells), *size)


@torch.no_grad()
def deletion_insertion(answer, image, place, target):
    """One image [3, S, S], prepared (its mean colour is 0), and the `removal_order` [S, S] of a map of class
    number `target` -> (deletion, insertion), in [0, 1]."""
    limits = torch.linspace(0, place.numel(), STEPS + 1, device=place.device).round()
    first = place < limits[:, None, None, None]  # the most relevant pixels, more from step to step
    blurred = gaussian_blur(image, 11, 5)
    areas = (torch.where(first, 0, image), torch.where(first, image, blurred))
    return tuple(torch.trapezoid(answer(x)[:, target].double(), dx=1 / STEPS).item() for x in areas)


@torch.no_grad()
def road(answer, image, place, target):
    """As `deletion_insertion` -> (ROAD,), in [-0.5, 0.5]; its noise is the same every time."""
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    relevance = (1 - place / (place.numel() - 1)).cpu().numpy()[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        measure = ROADCombined(PERCENTILES)
        return (float(measure(image[None], relevance, [ClassifierOutputTarget(target)], answer)[0]),)


def faithfulness(measure, clip, images, cells, text, index):
    """`deletion_insertion` or `road` of pairs: images [B, 3, S, S], maps [P, h, w] before Eq. 5, F_t [T, Ct],
    index [P, 2] of image and text -> float64 [P, numbers]."""
    answer, orders = answers(clip, text), removal_order(cells, clip.size)
    found = [measure(answer, images[i], orders[k], t) for k, (i, t) in enumerate(index.tolist())]
    low, high = cells.flatten(1).aminmax(dim=1)
    found = torch.tensor(found, dtype=torch.float64, device=cells.device)
    return found.masked_fill((low == high)[:, None], torch.nan)
