"""networks/attention.py against q·k softmax written out, fused or not, with registers, on other grids."""

from argparse import Namespace

import pytest
import timm
import torch
from safetensors.torch import save_file

import eclip_lib as eclip
from eclip_lib.networks.attention import moco_v3_state, resize_attention

NETWORKS = ["vit_small_patch16_224.dino", "vit_small_patch14_reg4_dinov2"]


def by_hand(backbone, images):
    """The last block's attention, head by head, from its input tokens."""
    model = backbone.model
    x = model.patch_embed((images - backbone.mean) / backbone.std)
    x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
    for block in model.blocks[:-1]:
        x = block(x)
    attn = model.blocks[-1].attn
    q, k, _ = attn.qkv(model.blocks[-1].norm1(x)).chunk(3, -1)
    width, maps = q.shape[-1] // attn.num_heads, []
    for query, key in zip(q.split(width, -1), k.split(width, -1), strict=True):
        maps.append((query[:, :1] @ key.transpose(1, 2) / width**0.5).softmax(-1))
    return torch.stack(maps).mean(0)[:, 0, model.num_prefix_tokens :]


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_attention_is_the_softmax_of_queries_and_keys(network):
    torch.manual_seed(0)
    backbone = eclip.load_attention(network, None)
    images = torch.rand(1, 3, backbone.size, backbone.size)
    attention = backbone(images)
    torch.testing.assert_close(attention, by_hand(backbone, images), atol=1e-6, rtol=1e-4)
    assert attention.shape == (1, backbone.grid[0] * backbone.grid[1]) and attention.sum() <= 1
    assert backbone(images, grid=(7, 7)).shape == (1, 49)


@torch.no_grad()
def test_fused_or_not_gives_the_same():
    images, maps = torch.rand(2, 3, 224, 224), []
    for fused in (True, False):
        torch.manual_seed(0)
        backbone = eclip.load_attention("vit_tiny_patch16_224", None)
        for block in backbone.model.blocks:
            block.attn.fused_attn = fused
        maps.append(backbone(images))
    torch.testing.assert_close(*maps, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_clips_own_attention_is_its_last_blocks():
    clip = eclip.load_clip("scenes-ViT-32", None)
    images, visual = torch.randn(2, 3, 224, 224), clip.model.visual
    x = visual._embeds(images)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    x = visual.transformer.resblocks[-1].ln_1(x)
    _, weights = visual.transformer.resblocks[-1].attn(x, x, x, need_weights=True)
    torch.testing.assert_close(eclip.clip_attention(clip, images), weights[:, 0, 1:], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="no ViT"):
        eclip.clip_attention(eclip.load_clip("scenes-RN", None), images)


def test_resize_keeps_a_constant_and_the_identity():
    a, constant = torch.rand(2, 12), torch.full((2, 12), 0.3)
    assert resize_attention(a, (3, 4), (3, 4)) is a
    torch.testing.assert_close(resize_attention(constant, (3, 4), (7, 5)), torch.full((2, 35), 0.3))


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


TWO = torch.zeros(2, 2)
FORMS = {  # what a program saves of the weights s, and of others, o
    "MoCo v3": lambda s, o: {
        "state_dict": under("module.base_encoder.", s | {"head.0.weight": TWO})
        | under("module.momentum_encoder.", o)
        | {"module.predictor.0.weight": TWO},
        "optimizer": {},
    },
    "MoCo v3, the average alone": lambda s, o: {"state_dict": under("module.momentum_encoder.", s)},
    "DINO": lambda s, o: {
        "student": under("module.backbone.", o),
        "teacher": under("backbone.", s) | {"head.mlp.0.weight": TWO},
        "args": Namespace(arch="vit"),
    },
    "DINOv2": lambda s, o: {"teacher": under("backbone.", s) | {"ibot_head.mlp.0.weight": TWO}},
    "iBOT": lambda s, o: {"state_dict": s | {"masked_embed": TWO}},
    "MAE": lambda s, o: {"model": s | {"mask_token": TWO, "decoder_embed.weight": TWO}},
    "timm": lambda s, o: s | {"head.weight": TWO},
    "Lightning": lambda s, o: {"state_dict": under("model.", s), "pytorch-lightning_version": "2"},
    "torch.compile": lambda s, o: {"model_state_dict": under("_orig_mod.module.", s)},
    "an average": lambda s, o: {"state_dict_ema": under("module.", s)},
}


@pytest.mark.filterwarnings("ignore:form.pth")
@pytest.mark.parametrize("form", FORMS)
def test_official_files_are_mapped(tmp_path, form):
    torch.manual_seed(1)
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    others = {name: tensor + 1 for name, tensor in state.items()}
    torch.save(FORMS[form](state, others), tmp_path / "form.pth")
    found = eclip.load_attention("vit_tiny_patch16_224", tmp_path / "form.pth").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="class token"):
        eclip.load_attention("resnet18", None)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        eclip.load_attention("vit_tiny_patch16_224", tmp_path / "gone.pth")
    save_file({"a.weight": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="does not fit"):
        eclip.load_attention("vit_tiny_patch16_224", tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not MoCo v3"):
        moco_v3_state({"a": torch.zeros(1)})
