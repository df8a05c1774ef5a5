"""networks/attention.py against q·k softmax written out, fused or not, with registers, on other grids."""

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


@pytest.mark.parametrize("kind", ["base_encoder", "momentum_encoder"])
def test_moco_v3_files_are_mapped(tmp_path, kind):
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    state = {f"module.{kind}.{k}": v for k, v in model.state_dict().items()}
    state |= {f"module.{kind}.head.0.weight": torch.zeros(2, 2), "module.predictor.0.weight": torch.zeros(2)}
    torch.save({"epoch": 300, "state_dict": state, "optimizer": {}}, tmp_path / "moco.pth.tar")
    backbone = eclip.load_attention("vit_tiny_patch16_224", tmp_path / "moco.pth.tar")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in backbone.model.state_dict().items())


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
