"""The demo networks: mini CLIPs of open_clip's own classes that read 112x112 scenes.

    scenes-ViT-32   7x7 tokens, like ViT-B/32     scenes-ViT-16   14x14 tokens, like ViT-B/16
    scenes-RN       ModifiedResNet, 7x7, like ResNet50

Two things differ from open_clip's classes, both so that small networks learn shapes from small images. The
ViTs' patch embedding `visual.conv1` is a stem of six 3x3 convolutions (Xiao et al., "Early Convolutions Help
Transformers See Better", 2021); with one linear layer they learn colours alone. The ResNet's last stage keeps
its input's resolution, so that 112 pixels give the 7x7 map that 224 give a ResNet50.
"""

from functools import cache, partial
from pathlib import Path

import torch
import world
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from timm.optim import muon
from torch import nn

# bfloat16 trains 1.4 times as fast where the CPU computes in it, and is emulated, many times slower, elsewhere
BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
if not BF16:  # so does Muon's iteration, which took two thirds of a step there
    muon.zeropower_via_newtonschulz = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
MERGES = Path(__file__).parents[1] / "scenes_bpe.txt.gz"  # one token for every word that captions use
CONTEXT = 32

_VIT = {"image_size": world.SIZE, "width": 128, "layers": 4, "head_width": 32}
VISION = {
    "scenes-ViT-32": _VIT | {"patch_size": 16},
    "scenes-ViT-16": _VIT | {"patch_size": 8},
    "scenes-RN": {"image_size": 2 * world.SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32},
}


class Stem(nn.Sequential):
    """Patch embedding of six 3x3 convolutions: images [B, 3, S, S] -> [B, width, S / patch, S / patch]."""

    def __init__(self, width, patch, hidden=(24, 48, 48, 96, 96)):
        strides = {16: (2, 2, 1, 2, 1, 2), 8: (2, 2, 1, 2, 1, 1)}[patch]
        layers, channels = [], 3
        for out, stride in zip((*hidden, width), strides, strict=True):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        super().__init__(*layers[:-1])


@cache
def tokenizer():
    """list of captions -> int64 [n, 32]."""
    return SimpleTokenizer(str(MERGES), context_length=CONTEXT)


def _max_pool(tokens):
    """In place of a ViT's pooling: its tokens [B, 1 + N, C] -> (their maximum without the class token [B, C],
    tokens)."""
    return tokens[:, 1:].amax(1), tokens[:, 1:]


POOLS = {  # what becomes a ViT's image feature -> open_clip's options
    "token": {},
    "average": {"pool_type": "avg"},
    "max": {},
    "attention": {"attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 4},
}


def create(network, pool="token"):
    """The network with random weights, in training mode; open_clip's `CLIP`. pool: one of `POOLS`; a ResNet
    has its own."""
    vision = VISION[network] | POOLS[pool]
    text = {"context_length": CONTEXT, "vocab_size": tokenizer().vocab_size}
    model = CLIP(128, vision, text | {"width": 128, "heads": 2, "layers": 2}, output_dict=True)
    if "patch_size" in vision:
        model.visual.conv1 = Stem(vision["width"], vision["patch_size"])
    else:
        first = model.visual.layer4[0]
        first.avgpool, first.downsample[0], model.visual.image_size = nn.Identity(), nn.Identity(), world.SIZE
    if pool == "max":
        model.visual._global_pool = _max_pool
    return model
