"""Families of networks, each tiny and with random weights, against open_clip's own output; names by folder, and
weights in transformers' names."""

import json
import re
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

import eclip_lib as eclip
from eclip_lib import recipe
from eclip_lib.commands import forecast
from eclip_lib.networks import hugging_face
from eclip_lib.networks import loading as networks
from eclip_lib.networks.attention import ClipAttention, mask_identity
from eclip_lib.networks.encoders import finish_vit, image_features

TEXTS = ["a photo of the house", "this is a small fish and one ring"]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SIGLIP_TEXT = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}


def vit(**options):
    return {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32} | options


def of_timm(name, pool, proj=None, size=160):
    timm_keys = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    return timm_keys | {"image_size": size, "timm_model_pretrained": False}


POOLED = vit(attentional_pool=True, attn_pooler_queries=8, attn_pooler_heads=4, output_tokens=True)
VISION = {
    "sig-lip": of_timm("tiny_siglip", "map", "none", 64),
    "PE-Core": of_timm("vit_pe_core_tiny_patch16_384", "map", None, 384),
    "CLIPA": vit(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
    "mean": vit(pool_type="avg"),
    "maximum": vit(pool_type="max"),
    "CoCa": POOLED,
    "timm mean": of_timm("test_vit", "avg"),
    "timm maximum": of_timm("test_vit", "max", "linear"),
    "with registers": of_timm("test_vit2", "avg", "linear"),
    "MLP after": of_timm("test_convnext", "avg", "mlp"),
    "own": vit(),
}
CONFIGURATIONS = {
    name: {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT} for name, vision in VISION.items()
}
CONFIGURATIONS["sig-lip"] |= {
    "embed_dim": 96,
    "custom_text": True,
    "init_logit_bias": -10.0,
    "text_cfg": SIGLIP_TEXT,
}
UNFIT = {"embed_dim": 32, "vision_cfg": of_timm("test_vit", "avg", "none of all"), "text_cfg": TEXT}
CONFIGURATIONS["PE-Core"] |= {"custom_text": True}
CONFIGURATIONS["CoCa"] |= {
    "custom_text": True,
    "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    def tiny_siglip(pretrained=False, num_classes=0, global_pool="map", **rest):
        size = {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
        kind = {"num_classes": num_classes, "global_pool": global_pool, "class_token": False}
        return timm.models.VisionTransformer(**size, **kind)

    tiny_siglip.__module__ = timm.models.vision_transformer.__name__
    timm.models.register_model(tiny_siglip)
    folder = tmp_path_factory.mktemp("configurations")
    for name, configuration in (CONFIGURATIONS | {"unfit": UNFIT}).items():
        (folder / f"{name}.json").write_text(json.dumps(configuration))
    open_clip.add_model_config(folder)


@torch.no_grad()
@pytest.mark.parametrize("network", CONFIGURATIONS)
def test_features_agree_with_open_clip(network):
    clip, close = eclip.load_clip(network, None), {"atol": 2e-5, "rtol": 1e-4}
    images, tokens = torch.randn(2, 3, *clip.size), clip.tokenizer(TEXTS)
    features, raw = clip.encode_image(images), {"normalize": False}
    own, words = clip.model.encode_image(images, **raw), clip.model.encode_text(tokens, **raw)
    torch.testing.assert_close(clip.projection.image(features.class_token), own, **close)
    torch.testing.assert_close(clip.projection.text(clip.encode_text(TEXTS)), words, **close)
    h, w = features.grid
    assert features.tokens.shape == (2, h * w, clip.projection.image.in_features)
    assert (clip.is_vit, clip.pools) == (networks.is_vit(network), networks.pools(network))
    assert clip.is_vit == (network == "own")
    maps = eclip.explainer("clip", clip)(images, clip.encode_text(TEXTS))
    assert maps.shape == (2, 2, h, w) and maps.isfinite().all() and maps.std() > 0


@pytest.mark.parametrize("network", CONFIGURATIONS)
def test_the_dry_run_counts_them(network):
    image, text, joint = forecast.widths(network)
    assert image in (32, 64, 96, 192) and (text, joint) == (32, CONFIGURATIONS[network]["embed_dim"])
    for kind in (False, True):
        assert forecast.encoder_flops(network, text=kind) > 0


@torch.no_grad()
@pytest.mark.parametrize("network", [name for name in VISION if name != "MLP after"])
def test_a_token_is_what_a_picture_of_this_token_alone_gives(network, monkeypatch):
    visual = eclip.load_clip(network, None).model.visual
    trunk = getattr(visual, "trunk", None)
    width = trunk.embed_dim if trunk else visual.conv1.out_channels
    count = trunk.num_prefix_tokens + trunk.patch_embed.num_patches if trunk else 17
    several = torch.randn(1, count, width)

    def of(x):
        if not trunk:
            return finish_vit(visual, x)
        monkeypatch.setattr(trunk, "forward_features", lambda images: x)
        return image_features(visual, None)

    found = of(several).tokens
    for k in (0, 5):
        alone = several[:, None, count - found.shape[1] + k].expand(-1, count, -1)
        torch.testing.assert_close(found[:, k], of(alone).class_token, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_attention_pool_maps_one_token_by_its_value_path_alone():
    clip = eclip.load_clip("sig-lip", None)
    trunk, images = clip.model.visual.trunk, torch.randn(1, 3, 64, 64)
    pool, found = trunk.attn_pool, clip.encode_image(images).tokens[0]
    for x, token in zip(trunk.forward_features(images)[0], found, strict=True):
        value = pool.proj(pool.kv.weight[96:] @ x + pool.kv.bias[96:])
        torch.testing.assert_close(token, value + pool.mlp(pool.norm(value)), atol=1e-5, rtol=1e-4)
    pair = clip.projection  # nothing follows that head, and the text's projection has a bias
    assert torch.equal(pair.image.weight, torch.eye(96)) and pair.image.bias is None
    assert pair.text.bias.shape == (96,) and recipe.new_pair(clip, 96, "tokens").text.bias is None
    copied = recipe.new_pair(clip, 96, "tokens", init="clip").state_dict()
    assert all(torch.equal(copied[name], tensor) for name, tensor in pair.state_dict().items())


def test_a_pair_with_biases_survives_a_save(tmp_path):
    pair = eclip.load_clip("sig-lip", None).projection
    pair.text.bias.data.normal_()
    pair.save(tmp_path / "pair.safetensors")
    again = eclip.Projection.load(tmp_path / "pair.safetensors")
    assert all(torch.equal(again.state_dict()[name], t) for name, t in pair.state_dict().items())


@pytest.mark.parametrize("method", ["bi_model", "mask_clip", "rollout"])
def test_methods_that_read_attention_say_which_vits_they_know(method):
    with pytest.raises(ValueError, match="pooled by their class token; CLIPA is none"):
        eclip.explainer(method, eclip.load_clip("CLIPA", None))


def test_a_text_that_is_cut_is_told_also_by_a_tokenizer_of_transformers():
    class OfTransformers:  # as open_clip wraps them
        context_length, tokenizer = 16, SimpleNamespace(encode=lambda text: [*text.split(), "end"])
        __call__ = staticmethod(lambda texts: torch.ones(len(texts), 16, dtype=torch.long))

    clip = eclip.load_clip("own", None)
    clip.tokenizer = OfTransformers()
    with pytest.warns(UserWarning, match="own reads 16 tokens; 'b b"):
        clip.encode_text(["a " * 15, "b " * 16])


def test_what_stays_refused_says_why():
    for network, reason in (
        ("ViT-B-16-SigLIP", "SigLIP's tokenizer.*pip install transformers"),
        ("ViT-L-14-CLIPA", "tokenizer.*pip install transformers"),
        ("roberta-ViT-B-32", "cannot be built here.*transformers|text encoder"),
        ("hf-hub:nobody/nothing", "neither in the cache nor could they be downloaded|could not be read"),
        ("local-dir:nowhere", "no folder nowhere"),
        ("unfit", r"unfit: it cannot be built here \(\w+"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
            eclip.load_clip(network, None)
        assert len(str(caught.value)) < 300


# ---------------------------------------------------------------------- names by folder, transformers' names


def written(folder, network, state=None, **more):
    """A folder as open_clip pushes one to the hub."""
    configuration = {
        "model_cfg": CONFIGURATIONS[network],
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    for name, content in {"open_clip_config.json": configuration, **more}.items():
        (folder / name).write_text(json.dumps(content))
    model = eclip.load_clip(network, None).model.state_dict()
    state = {name: tensor + 0.01 for name, tensor in (state or model).items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return state


def same(clip, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in clip.model.state_dict().items())


def test_a_clip_named_by_its_folder_or_its_place_on_the_hub(tmp_path, monkeypatch):
    asked, state = [], written(tmp_path, "own")

    def download(repository, name):
        asked.append((repository, name))
        if not (tmp_path / name).exists():
            raise hugging_face.EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(hugging_face, "hf_hub_download", download)
    hugging_face._downloaded.cache_clear()
    for network in (f"local-dir:{tmp_path}", "hf-hub:org/model"):
        clip = eclip.load_clip(network)
        assert same(clip, state)
        assert clip.network == network
        assert clip.is_vit
        assert networks.pools(network) == "tokens"
        assert clip.statistics == ([0.5] * 3, [0.25] * 3) and clip.preprocess is not None
        assert clip.pretrained == (tmp_path.name if network.startswith("local") else "model")
        assert not same(eclip.load_clip(network, None), state)
        with pytest.raises(ValueError, match="brings its own weights"):
            eclip.load_clip(network, "openai")
    assert {place for place, _ in asked} == {"org/model"} and len(asked) == len(set(asked)) + 3
    assert same(eclip.load_clip("own", "hf-hub:org/model"), state)
    assert eclip.load_clip("own", f"local-dir:{tmp_path}").identity["statistics"] == [[0.5] * 3, [0.25] * 3]
    (tmp_path / "open_clip_model.safetensors").unlink()
    hugging_face._downloaded.cache_clear()
    with pytest.raises(ValueError, match="hf-hub:org/model: its files are neither in the cache"):
        eclip.load_clip("own", "hf-hub:org/model")  # there is its configuration alone
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="has no open_clip_config.json.*--network ViT-B-16 --pretrained"):
        eclip.load_clip(f"local-dir:{tmp_path}")


def test_the_preprocessing_is_that_of_the_weights(tmp_path):
    half, openai = [0.5] * 3, open_clip.OPENAI_DATASET_MEAN
    assert eclip.load_clip("PE-Core-T-16-384", None).statistics == (
        (0.5,) * 3,
        (0.5,) * 3,
    )  # as all its tags say
    assert eclip.load_clip("own", None).statistics[0] == openai
    written(tmp_path, "own", **{"preprocessor_config.json": {"image_mean": [0.1] * 3, "image_std": half}})
    path = tmp_path / "open_clip_model.safetensors"
    first = eclip.load_clip("own", path)
    assert first.statistics[0] == half
    (tmp_path / "open_clip_config.json").unlink()
    second = eclip.load_clip("own", path)
    assert second.statistics == ([0.1] * 3, half)
    for name in ("open_clip_model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).rename(tmp_path / name.replace("open_clip_model", "mine"))
    assert eclip.load_clip("own", tmp_path / "mine.safetensors").statistics[0] == openai  # not of its layout
    one, other = (mask_identity(ClipAttention(clip)) for clip in (first, second))
    assert first.identity["model"] == second.identity["model"] and one != other  # it looks through them


SIGLIP = r"""trunk.patch_embed.proj=embeddings.patch_embedding trunk.pos_embed=embeddings.position_embedding.weight
trunk.norm=post_layernorm trunk.blocks=encoder.layers norm([12])=layer_norm\1 attn.proj=self_attn.out_proj
trunk.attn_pool.latent=head.probe trunk.attn_pool.proj=head.attention.out_proj trunk.attn_pool.norm=head.layernorm
trunk.attn_pool.mlp=head.mlp token_embedding=embeddings.token_embedding transformer.resblocks=encoder.layers
positional_embedding=embeddings.position_embedding.weight ln_([12])=layer_norm\1
attn.out_proj=self_attn.out_proj mlp.c_fc=mlp.fc1 mlp.c_proj=mlp.fc2 ln_final=final_layer_norm text_projection=head"""


def transformers_names(state):
    """A SigLIP's weights as Hugging Face's transformers names them."""
    new, pool = {}, "visual.trunk.attn_pool."
    for name, tensor in state.items():
        theirs = name.replace("visual.", "vision_model.", 1).replace("text.", "text_model.", 1)
        for pattern, replacement in (pair.split("=") for pair in SIGLIP.split()):
            theirs = re.sub(rf"(?<=\.){pattern}", replacement, theirs)
        if match := re.search(r"attn\.(?:qkv\.|in_proj_)(weight|bias)$", theirs):
            letters = zip("qkv", tensor.chunk(3), strict=True)
            new |= {
                f"{theirs[: match.start()]}self_attn.{k}_proj.{match[1]}": t.contiguous() for k, t in letters
            }
        elif name.startswith(pool + "q."):
            whole = torch.cat([tensor, state[name.replace(".q.", ".kv.")]])
            new[f"vision_model.head.attention.in_proj_{name.rpartition('.')[2]}"] = whole
        elif not name.startswith(pool + "kv."):
            whole = tensor[0] if name.endswith("pos_embed") else tensor
            new[theirs] = whole[None] if name.startswith("logit_") else whole
    return new


def test_a_siglip_of_transformers_has_the_same_weights(tmp_path):
    state = eclip.load_clip("sig-lip", None).model.state_dict()
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    theirs = transformers_names(state)
    assert "vision_model.encoder.layers.1.self_attn.k_proj.bias" in theirs and len(theirs) > len(state)
    save_file(theirs, tmp_path / "model.safetensors")
    assert same(eclip.load_clip("sig-lip", tmp_path / "model.safetensors"), state)
