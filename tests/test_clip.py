"""clip.py against open_clip's own methods, for the paper's five networks and the demo's, at random weights."""

import logging

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import eclip_lib as eclip
from eclip_lib import clip as load_network
from eclip_lib import demo
from eclip_lib.encoders import residual_block

PAPER = {"RN50": 7, "RN101": 7, "ViT-B-32": 7, "ViT-B-16": 14, "ViT-L-14": 16}
DEMO = {"scenes-ViT-32": 7, "scenes-ViT-16": 14, "scenes-RN": 7}
TEXTS = ["a photo of the house", "this is a small fish and one ring"]


@pytest.fixture(scope="module", params=[*PAPER, *DEMO])
def clip(request):
    return eclip.load_clip(request.param, pretrained=None)


@torch.no_grad()
def test_features_agree_with_open_clip(clip):
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    features, side = clip.encode_image(images), (PAPER | DEMO)[clip.network]
    torch.testing.assert_close(
        clip.projection.image(features.class_token), clip.model.encode_image(images), atol=2e-5, rtol=1e-4
    )
    assert features.grid == (side, side) and features.tokens.shape[1] == side * side
    assert (features.feature_map is None) == ("ViT" in clip.network)
    text = clip.encode_text(TEXTS)
    own = clip.model.encode_text(clip.tokenizer(TEXTS))
    torch.testing.assert_close(clip.projection.text(text), own, atol=2e-5, rtol=1e-4)


OTHERS = {"convnext_tiny": (7, 7), "EVA02-B-16": (14, 14), "MobileCLIP-S1": (8, 8), "MobileCLIP-B": (14, 14), "ViTamin-S": (14, 14),
          "swin_base_patch4_window7_224": (7, 7), "ViT-S-32-alt": (7, 7), "vit_medium_patch16_gap_256": (16, 16)}  # fmt: skip


@pytest.mark.parametrize("network", OTHERS)
@torch.no_grad()
def test_other_families_agree_with_open_clip(network):
    clip = eclip.load_clip(network, None)
    images = torch.randn(1, 3, *clip.size)
    features, text = clip.encode_image(images), clip.encode_text(TEXTS)
    assert features.grid == OTHERS[network] and features.tokens.shape[1] == OTHERS[network][0] * OTHERS[network][1]
    torch.testing.assert_close(
        clip.projection.image(features.class_token), clip.model.encode_image(images), atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(clip.projection.text(text), clip.model.encode_text(clip.tokenizer(TEXTS)), atol=2e-5, rtol=1e-4)
    assert features.tokens.shape[-1] == clip.projection.image.in_features


def test_the_families_that_the_readme_lists_load_or_refuse():
    for network in (
        "convnext_large",
        "EVA02-L-14",
        "MobileCLIP2-S0",
        "ViT-H-14-quickgelu",
        "ViT-L-14-336",
        "RN50x4",
        "ViTamin-L",
    ):
        load_network.empty_clip(network)
    for network in ("ViT-B-16-SigLIP2", "PE-Core-B-16", "ViT-H-14-CLIPA", "coca_base", "xlm-roberta-base-ViT-B-32"):
        with pytest.raises(ValueError, match=network):
            load_network.empty_clip(network)


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
        assert images.shape[2:] == size == clip.size and features.grid == grid and features.tokens.shape[1] == grid[0] * grid[1]
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
    maps = [eclip.similarity(c.encode_image(images), c.encode_text(TEXTS), c.projection).cpu() for c in (here, there)]
    torch.testing.assert_close(*maps, atol=1e-3, rtol=0)


@torch.no_grad()
def test_attention_pool_asked_by_every_token_is_done_by_hand():
    clip = eclip.load_clip("scenes-RN", None)
    features, pool = clip.encode_image(torch.randn(1, 3, 224, 224)), clip.model.visual.attnpool
    x = torch.cat([features.feature_map.mean(1, keepdim=True), features.feature_map], 1)[0] + pool.positional_embedding
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
    from PIL import Image

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


def test_quickgelu_is_on_for_the_openai_tag_and_by_name(monkeypatch, tmp_path):
    seen = {}

    def create(network, tag=None, **options):
        seen.update(options, tag=tag)
        return open_clip.factory.create_model(network, None, **options)

    monkeypatch.setattr(load_network, "registered", lambda network, tag: None)
    monkeypatch.setattr(eclip.clip.open_clip, "create_model", create)
    assert is_quick(eclip.load_clip("ViT-B-32")) and seen["tag"] == "openai"
    monkeypatch.undo()
    plain = {name: tensor.half() for name, tensor in eclip.load_clip("ViT-B-32", None).model.state_dict().items()}
    torch.save(plain, tmp_path / "ViT-B-32.pt")  # no stamp says that it is OpenAI's, but its place does
    monkeypatch.setenv("ECLIP_WEIGHTS", str(tmp_path))
    assert is_quick(eclip.load_clip("ViT-B-32", "openai"))
    assert is_quick(eclip.load_clip("ViT-B-32-quickgelu", None)) and not is_quick(eclip.load_clip("ViT-B-32", None))


def test_local_checkpoints_of_every_kind(tmp_path):
    clip = eclip.load_clip("scenes-RN", None)
    state = {name: tensor + 0.01 if tensor.is_floating_point() else tensor for name, tensor in clip.model.state_dict().items()}
    save_file(state, str(tmp_path / "a.safetensors"))
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        loaded = eclip.load_clip("scenes-RN", str(tmp_path / name)).model.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_what_cannot_be_loaded_says_why(tmp_path):
    good = eclip.load_clip("scenes-ViT-32", None).model.state_dict()
    (tmp_path / "text.pt").write_text("not a checkpoint")
    save_file({k: v for k, v in good.items() if k != "visual.proj"}, str(tmp_path / "part.safetensors"))
    save_file({k: v * float("nan") if k == "visual.proj" else v for k, v in good.items()}, str(tmp_path / "nan.safetensors"))
    for name, error, message in (
        ("missing.pt", FileNotFoundError, "missing.pt"),
        ("text.pt", ValueError, "not a readable checkpoint"),
        ("part.safetensors", ValueError, "does not fit"),
        ("nan.safetensors", ValueError, "not finite"),
    ):
        with pytest.raises(error, match=message):
            eclip.load_clip("scenes-ViT-32", tmp_path / name)
    for network, pretrained, message in (
        ("ViT-B-61", None, "ViT-B-16"), ("ViT-B-16", "nobody", "has no weights"), ("scenes-RN", "seed77", "no bundled"),
        ("ViT-B-16-SigLIP", None, "attention head of its own"), ("coca_ViT-B-32", None, "an attention pool, not through its class token"),
        ("ViT-L-14-CLIPA", None, "pools by 'avg'"), ("convnext_large_d", None, "no linear projection"), ("roberta-ViT-B-32", None, "transformers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            eclip.load_clip(network, pretrained)


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
    with pytest.raises(ValueError, match="224"):
        clip.encode_image(torch.zeros(1, 3, 100, 224))


def test_projection_survives_a_save(tmp_path):
    clip = eclip.load_clip("scenes-RN")
    clip.projection.save(tmp_path / "pair.safetensors")
    again = eclip.Projection.load(tmp_path / "pair.safetensors")
    assert again.reads == "tokens" and again.metadata == clip.projection.metadata
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), clip.projection.state_dict().values(), strict=True)
    )
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
    from eclip_lib.clip import is_vit

    names = ["scenes-ViT-32", "ViT-B-16", "ViT-L-14", "scenes-RN", "RN50", "RN101"]
    assert [is_vit(name) for name in names] == [True, True, True, False, False, False]
