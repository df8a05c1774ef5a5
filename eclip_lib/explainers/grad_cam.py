"""Grad-CAM (Selvaraju et al., 2017; the paper's [33]) of the image-text cosine, through the grad-cam package.

Target layer: on a ViT the first layer norm of the last block, on the grid; on a ResNet the last stage."""

import torch
from torch import nn

from ..method import score
from ..networks.encoders import in_steps
from .base import PairMap


class _Cosines(nn.Module):
    """What the last block or stage reads, of P pairs -> [P, T], Eq. 3."""

    def __init__(self, clip, text):
        super().__init__()
        self.model, self.clip, self.text = clip.model, clip, text

    def forward(self, x):
        steps = in_steps(self.model.visual)
        features = steps.finish(steps.blocks[-1](x))
        return score(features.class_token, self.text, self.clip.projection)


def grad_cam(clip):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class GridCAM(GradCAM):
        """The package scales its maps to the input's size; ours stay on the layer's grid."""

        def get_target_width_height(self, input_tensor):
            return self.activations_and_grads.activations[0].shape[:1:-1]

    visual = clip.model.visual
    if not clip.is_vit and not hasattr(visual, "layer4"):
        raise ValueError(f"grad_cam knows the layers of OpenAI's ViTs and ResNets; {clip.network} is neither")
    layer = visual.transformer.resblocks[-1].ln_1 if clip.is_vit else visual.layer4

    def to_grid(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, tuple(visual.grid_size))

    def explain(x, text, index):  # nothing but x requires a gradient: the weights are locked
        with GridCAM(_Cosines(clip, text), [layer], to_grid if clip.is_vit else None) as cam:
            maps = cam(x, [ClassifierOutputTarget(t) for t in index[:, 1].tolist()])
        return torch.from_numpy(maps).to(x.device)

    return PairMap(explain, clip, -1)
