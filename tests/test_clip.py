"""networks/clip.py and checkpoints.py against open_clip's own methods, at random weights."""

import argparse
import json
import logging
import re

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import eclip_lib as eclip
from eclip_lib import files
from eclip_lib.networks import demo
from eclip_lib.networks import loading as networks
from eclip_lib.networks.encoders import residual_block

SIDES = {"RN50": 7, "RN101": 7, "ViT-B-32": 7, "ViT-B-16": 14, "ViT-L-14": 16}  # the paper's
SIDES |= {"scenes-ViT-32": 7, "scenes-ViT-16": 14, "scenes-RN": 7}
SIDES |= {"convnext_tiny": 7, "EVA02-B-16": 14, "MobileCLIP-S1": 8, "MobileCLIP-B": 14, "ViTamin-S": 14}
SIDES |= {"swin_base_patch4_window7_224": 7, "ViT-S-32-alt": 7, "vit_medium_patch16_gap_256": 16}
TEXTS = ["a photo of the house", "this is a small fish and one ring"]


@pytest.mark.parametrize("network", SIDES)
@torch.no_grad()
def test_features_agree_with_open_clip(network, shallow):
    clip, side = eclip.load_clip(network, None), SIDES[network]
    images = torch.randn(2, 3, *clip.size)
    features, text, close = clip.encode_image(images), clip.encode_text(TEXTS), {"atol": 2e-5, "rtol": 1e-4}
    own, words = clip.model.encode_image(images), clip.model.encode_text(clip.tokenizer(TEXTS))
    torch.testing.assert_close(clip.projection.image(features.class_token), own, **close)
    torch.testing.assert_close(clip.projection.text(text), words, **close)
    assert features.grid == (side, side)
    assert features.tokens.shape == (2, side * side, clip.projection.image.in_features)
    assert (features.feature_map is not None) == ("RN" in network)


def test_the_families_that_the_readme_lists_load_or_refuse():
    names = "convnext_large EVA02-L-14 MobileCLIP2-S0 ViT-H-14-quickgelu ViT-L-14-336 RN50x4 ViTamin-L"
    for network in names.split():
        networks.empty_clip(network)
    names = "ViT-B-16-SigLIP2 PE-Core-B-16 ViT-H-14-CLIPA coca_ViT-B-32 coca_base convnext_large_d"
    for network in names.split():
        networks.empty_clip(network)
    with pytest.raises(ValueError, match="xlm-roberta-base-ViT-B-32"):
        networks.empty_clip("xlm-roberta-base-ViT-B-32")


@torch.no_grad()
def test_other_input_sizes_interpolate_the_positions():
    for network, size, grid in (
        ("scenes-ViT-32", (224, 448), (7, 14)),
        ("scenes-ViT-16", (320, 224), (20, 14)),
        ("scenes-RN", (256, 320), (8, 10)),
    ):
        native, clip = eclip.load_clip(network), eclip.load_clip(network, size=size)
        images = clip.preprocess(Image.new("RGB", (300, 200), "red"))[None]
        features = clip.encode_image(images)
        assert images.shape[2:] == size == clip.size and features.grid == grid
        assert features.tokens.shape[1] == grid[0] * grid[1]
        same = eclip.load_clip(network, size=(224, 224))
        for ours, theirs in zip(same.model.parameters(), native.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match="does not divide"):
            eclip.load_clip(network, size=(225, 224))


@torch.no_grad()
def test_other_input_sizes_of_timms_encoders():
    clip = eclip.load_clip("EVA02-B-16", None, size=(160, 224))
    features = clip.encode_image(torch.randn(1, 3, 160, 224))
    assert features.grid == (10, 14) and features.tokens.shape[1] == 140
    for network, cell in (("EVA02-B-16", "16x16"), ("convnext_tiny", "32x32")):
        with pytest.raises(ValueError, match=f"225x224 does not divide into cells of {cell}"):
            eclip.load_clip(network, None, size=(225, 224))


@torch.no_grad()
def test_bf16_stays_close():
    for network in ("scenes-ViT-32", "scenes-RN"):
        clip, half = eclip.load_clip(network), eclip.load_clip(network, precision="bf16")
        images, text = torch.randn(2, 3, 224, 224), clip.encode_text(TEXTS)
        maps = [eclip.similarity(c.encode_image(images), text, clip.projection) for c in (clip, half)]
        assert maps[1].dtype == torch.float32 and 0 < (maps[0] - maps[1]).abs().max() < 0.05
    with pytest.raises(ValueError, match="precision is"):
        eclip.load_clip("scenes-RN", precision="int8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@torch.no_grad()
def test_cuda_agrees_with_cpu():
    images = torch.randn(2, 3, 224, 224)
    here, there = (eclip.load_clip("scenes-ViT-16", device=device) for device in ("cpu", "cuda"))
    features, text = there.encode_image(images), there.encode_text(TEXTS)
    maps = eclip.similarity(features, text, there.projection).cpu()
    own = eclip.similarity(here.encode_image(images), here.encode_text(TEXTS), here.projection)
    torch.testing.assert_close(maps, own, atol=1e-3, rtol=0)


@torch.no_grad()
def test_attention_pool_asked_by_every_token_is_done_by_hand():
    clip = eclip.load_clip("scenes-RN", None)
    features, pool = clip.encode_image(torch.randn(1, 3, 224, 224)), clip.model.visual.attnpool
    (cells,) = features.feature_map
    x = torch.cat([cells.mean(0, keepdim=True), cells]) + pool.positional_embedding
    heads, out = pool.num_heads, []
    for query in x:
        q, k, v = pool.q_proj(query), pool.k_proj(x), pool.v_proj(x)
        parts = []
        for h in range(heads):
            s = slice(h * len(q) // heads, (h + 1) * len(q) // heads)
            weights = (k[:, s] @ q[s] / (len(q) / heads) ** 0.5).softmax(0)
            parts.append(weights @ v[:, s])
        out.append(torch.cat(parts))
    torch.testing.assert_close(torch.stack(out[1:]), features.tokens[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out[0], features.class_token[0], atol=1e-5, rtol=1e-4)


def test_residual_block_equals_open_clips_and_carries_the_gradient():
    clip = eclip.load_clip("scenes-ViT-32", None)
    block, x = clip.model.visual.transformer.resblocks[1], torch.randn(2, 50, 128, requires_grad=True)
    y, attention = residual_block(block, x)
    torch.testing.assert_close(y, block(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.weights.sum(-1), torch.ones(2, 4, 50))
    assert torch.autograd.grad(y.sum(), attention.weights)[0].abs().sum() > 0


def test_images_are_resized_without_a_crop():
    clip, wide = eclip.load_clip("scenes-ViT-32", None), Image.new("L", (640, 200))
    wide.paste(255, (0, 0, 20, 200))  # a stripe at the left edge, which a centre crop would lose
    prepared = clip.preprocess(wide)
    assert prepared.shape == (3, 224, 224) and prepared.dtype == torch.float32
    assert prepared[:, :, 2].mean() > prepared[:, :, 200].mean() + 1


def is_quick(clip):
    return {type(b.mlp.gelu).__name__ for b in clip.model.visual.transformer.resblocks} == {"QuickGELU"}


@pytest.fixture(scope="module")
def openai_archive(tmp_path_factory):
    """A file of OpenAI's kind: a TorchScript archive with their three stamps, on a small network."""

    path = tmp_path_factory.mktemp("weights") / "openai.pt"
    state, holder = eclip.load_clip("scenes-ViT-32", None).model.state_dict(), torch.nn.Module()
    for name, tensor in state.items():
        place = holder
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.register_buffer(leaf, tensor.half() if tensor.is_floating_point() else tensor)
    for name, value in (("input_resolution", 224), ("context_length", 24), ("vocab_size", 1)):
        holder.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.script(holder), str(path))
    return path, state


def test_openai_files_are_read_and_get_quickgelu(openai_archive):
    path, state = openai_archive
    clip = eclip.load_clip("scenes-ViT-32", path)
    assert is_quick(clip)
    torch.testing.assert_close(clip.model.state_dict()["visual.proj"], state["visual.proj"].half().float())


def test_quickgelu_is_on_for_the_openai_tag_and_by_name(monkeypatch, tmp_path, shallow):
    seen = {}

    def create(network, tag=None, **options):
        seen.update(options, tag=tag)
        return open_clip.factory.create_model(network, None, **options)

    with monkeypatch.context() as patch:
        patch.setattr(networks, "registered", lambda network, tag: None)
        patch.setattr(networks.open_clip, "create_model", create)
        assert is_quick(eclip.load_clip("ViT-B-32")) and seen["tag"] == "openai"
    plain = {name: tensor.half() for name, tensor in weights("ViT-B-32").items()}
    torch.save(plain, tmp_path / "ViT-B-32.pt")  # no stamp says that it is OpenAI's, but its place does
    monkeypatch.setenv("ECLIP_WEIGHTS", str(tmp_path))
    assert is_quick(eclip.load_clip("ViT-B-32", "openai"))
    assert is_quick(eclip.load_clip("ViT-B-32-quickgelu", None))
    assert not is_quick(eclip.load_clip("ViT-B-32", None))


def weights(network):
    return eclip.load_clip(network, None).model.state_dict()


def equal(one, other):
    same = [torch.equal(one[name], other[name]) for name in one.keys() & other.keys()]
    return one.keys() == other.keys() and all(same)


def named(prefix, state, **more):
    return {prefix + name: tensor for name, tensor in state.items()} | more


FORMS = {  # how training programs write the same weights
    "bare": lambda state: state,
    "open_clip's": lambda state: {"epoch": 1, "state_dict": named("module.", state)},
    "with its optimizer": lambda state: {
        "model_state_dict": state,
        "optimizer": {"state": {0: torch.zeros(2)}},
    },
    "compiled": lambda state: {"model": named("_orig_mod.module.", state)},
    "Lightning's": lambda state: {"state_dict": named("model.", state, metric=torch.ones(1))},
    "DINO's teacher": lambda state: {"student": {}, "teacher": named("backbone.", state, head=torch.ones(1))},
    "with its arguments": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3)},
}


@pytest.mark.parametrize("name", [*FORMS, "safetensors"])
def test_a_checkpoint_is_read_in_whatever_form_it_was_written(tmp_path, name):
    state = {k: v + 0.01 if v.is_floating_point() else v for k, v in weights("scenes-RN").items()}
    path = tmp_path / ("model.pt" if name in FORMS else "model.safetensors")
    torch.save(FORMS[name](state), path) if name in FORMS else save_file(state, path)
    loaded = eclip.load_clip("scenes-RN", str(path)).model.state_dict()
    assert equal(loaded, state)


def test_weights_of_eight_bits_are_read(tmp_path):
    state = {k: v.to(torch.float8_e4m3fn) for k, v in weights("scenes-ViT-32").items() if v.ndim}
    state |= {"logit_scale": torch.tensor(2.0)}
    save_file(state, str(tmp_path / "small.safetensors"))
    loaded = eclip.load_clip("scenes-ViT-32", tmp_path / "small.safetensors").model.state_dict()
    assert equal(loaded, {k: v.float() for k, v in state.items()})


TRANSFORMERS = r"""^visual\.transformer=vision_model.encoder ^transformer=text_model.encoder resblocks=layers
ln_([12])=layer_norm\1 attn.out_proj=self_attn.out_proj mlp.c_fc=mlp.fc1 mlp.c_proj=mlp.fc2
visual.conv1=vision_model.embeddings.patch_embedding visual.ln_pre=vision_model.pre_layrnorm
visual.ln_post=vision_model.post_layernorm ln_final=text_model.final_layer_norm
visual.class_embedding=vision_model.embeddings.class_embedding
visual.positional_embedding=vision_model.embeddings.position_embedding.weight
^positional_embedding=text_model.embeddings.position_embedding.weight
^token_embedding=text_model.embeddings.token_embedding"""


def transformers_names(state):
    """A CLIP's weights as Hugging Face's transformers names them."""
    new = {"vision_model.embeddings.position_ids": torch.arange(50)[None]}
    new["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    new["text_projection.weight"] = state["text_projection"].T.contiguous()
    for name in state.keys() - {"visual.proj", "text_projection"}:
        theirs = name
        for pattern, replacement in (pair.split("=") for pair in TRANSFORMERS.split()):
            theirs = re.sub(pattern, replacement, theirs)
        parts = state[name].chunk(3) if "in_proj" in name else ()
        new |= {
            theirs.replace("attn.in_proj_", f"self_attn.{k}_proj."): t.contiguous()
            for k, t in zip("qkv", parts, strict=bool(parts))
        }
        new |= {} if parts else {theirs: state[name]}
    return new


@torch.no_grad()
def test_a_clip_of_transformers_gives_identical_features(tmp_path, shallow):
    ours = eclip.load_clip("ViT-B-32", None)
    save_file(transformers_names(ours.model.state_dict()), str(tmp_path / "model.safetensors"))
    for activation, same in (("gelu", True), ("quick_gelu", False)):
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": activation}}))
        theirs = eclip.load_clip("ViT-B-32", tmp_path / "model.safetensors")
        images = torch.randn(1, 3, 224, 224)
        features = [c.encode_image(images) for c in (ours, theirs)]
        assert torch.equal(*(f.tokens for f in features)) == same and is_quick(theirs) != same
        assert torch.equal(*(c.encode_text(TEXTS) for c in (ours, theirs))) == same
        assert theirs.identity["model"] == ours.identity["model"] and theirs.identity["quick_gelu"] != same


def test_weights_saved_at_another_input_size_need_that_size(tmp_path):
    large = eclip.load_clip("scenes-ViT-16", size=(320, 320)).model.state_dict()
    torch.save(large, tmp_path / "large.pt")
    with pytest.raises(ValueError, match="saved for images of 320x320.*add --size 320"):
        eclip.load_clip("scenes-ViT-16", tmp_path / "large.pt")
    clip = eclip.load_clip("scenes-ViT-16", tmp_path / "large.pt", size=(320, 320))
    assert clip.image_size == 320 and equal(clip.model.state_dict(), large)


def test_an_identity_stands_for_contents_not_for_names(tmp_path):
    state, paths = (
        weights("scenes-ViT-32"),
        [tmp_path / f"{name}.safetensors" for name in ("a", "same", "other")],
    )
    for path in paths:
        state["visual.proj"].view(torch.int32)[3, 5] ^= path is paths[2]  # one bit
        save_file(state, path)
    one, same, other = (eclip.load_clip("scenes-ViT-32", path).identity for path in paths)
    assert one | {"weights": ""} == same | {"weights": ""} and one["model"] != other["model"]
    assert files.digest(paths[0]) == files.digest(paths[1]) != files.digest(paths[2])
    kinds = [eclip.load_clip("scenes-ViT-32", None, precision="bf16").identity]
    kinds += [eclip.load_clip("scenes-ViT-32", None, size=(224, 256)).identity]
    assert len({files.digest(about | {"weights": ""}) for about in (one, same, other, *kinds)}) == 4
    named = (
        {"w": torch.zeros(4)},
        {"w": torch.zeros(2, 2)},
        {"v": torch.zeros(2, 2)},
        {"a": 1, "b": 2},
        {"a": 1},
    )
    assert len({files.digest(thing) for thing in named}) == 5
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})


@torch.no_grad()
def test_another_image_encoder_beside_clips_text():
    clip, model = eclip.load_clip("scenes-ViT-32", None), eclip.load_attention("vit_tiny_patch16_224", None)
    own, other, images = clip.identity, clip.with_image_encoder(model), torch.randn(2, 3, 224, 224)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in clip.statistics)
    features = other.encode_image(images)
    inside = model.model.forward_features((images * std + mean - model.mean) / model.std)
    torch.testing.assert_close(torch.cat([features.class_token[:, None], features.tokens], 1), inside)
    torch.testing.assert_close(other.encode_text(TEXTS), clip.encode_text(TEXTS))
    assert features.grid == (14, 14) and other.network == "scenes-ViT-32 with vit_tiny_patch16_224"
    assert other.identity == own | {"network": other.network, "backbone": files.digest(model)}
    pools = [
        eclip.load_clip(f"scenes-ViT-32-{pool}", None).identity.get("pool")
        for pool in ("token", "average", "max")
    ]
    assert pools == [None, "avg", "max"]
    assert clip.identity == own and clip.backbone is None and clip.encode_image(images).grid == (7, 7)
    assert not other.is_vit and other.pools == "tokens"


def test_what_cannot_be_loaded_says_why(tmp_path):
    good = weights("scenes-ViT-32")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([good], tmp_path / "list.pt"), torch.save({"state_dict": {"epoch": 3}}, tmp_path / "empty.pt")
    save_file({k: v for k, v in good.items() if k != "visual.proj"}, str(tmp_path / "part.safetensors"))
    save_file(good | {"visual.proj": good["visual.proj"] * torch.nan}, str(tmp_path / "nan.safetensors"))
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        eclip.load_clip("scenes-ViT-32", tmp_path / "missing.pt")
    wrong = {"text.pt": "not a readable checkpoint", "list.pt": "holds a list, not a state dict"}
    wrong |= {"empty.pt": "no weights by name, but: epoch", "part.safetensors": "does not fit"}
    for name, message in (wrong | {"nan.safetensors": "not finite"}).items():
        with pytest.raises(ValueError, match=message):
            eclip.load_clip("scenes-ViT-32", tmp_path / name)
    wrong = {("ViT-B-61", None): "ViT-B-16", ("ViT-B-16", "nobody"): "has no weights"}
    for which, message in (wrong | {("scenes-RN", "seed77"): "no bundled"}).items():
        with pytest.raises(ValueError, match=message):
            eclip.load_clip(*which)


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        eclip.load_clip("scenes-ViT-32", tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_word_the_demo_never_saw_is_reported():
    clip = eclip.load_clip("scenes-ViT-32")
    with pytest.warns(UserWarning, match="zebra"):
        clip.encode_text("a photo of the zebra")
    with pytest.warns(UserWarning) as told:  # captions in batches: each note once, whatever the words
        for caption in ("zebra " * 30, "gnu " * 30):
            clip.encode_text([caption], quote=False)
    assert len(told) == 4 and len({str(note.message) for note in told}) == 2
    with pytest.raises(ValueError, match="224"):
        clip.encode_image(torch.zeros(1, 3, 100, 224))


def test_projection_survives_a_save(tmp_path):
    clip = eclip.load_clip("scenes-RN")
    clip.projection.save(tmp_path / "pair.safetensors")
    again = eclip.Projection.load(tmp_path / "pair.safetensors")
    assert again.reads == "tokens" and again.metadata == clip.projection.metadata
    assert equal(again.state_dict(), clip.projection.state_dict())
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="other.safetensors"):
        eclip.Projection.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError):
        eclip.Projection.load(tmp_path / "none.safetensors")


def test_every_word_of_the_demo_is_one_token():
    demo.register()
    tokenizer = open_clip.get_tokenizer("scenes-ViT-32")
    assert {len(tokenizer.encode(word)) for word in demo.words()} == {1}


def test_loading_is_quiet(caplog):
    with caplog.at_level(logging.WARNING):
        eclip.load_clip("scenes-ViT-32", None)
    assert not caplog.records


def test_the_registry_tells_vits_from_resnets():
    vits = [networks.is_vit(name) for name in ("scenes-ViT-32", "ViT-B-16", "ViT-L-14", "scenes-RN", "RN50")]
    assert vits == [True, True, True, False, False]
