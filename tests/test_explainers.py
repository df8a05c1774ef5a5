"""Grad-CAM and Bi-Model against slow versions written from their descriptions, one image and text at a time."""

import pytest
import torch

import eclip_lib as eclip
from eclip_lib.itsm import score

TEXTS = ["a photo of the star", "a photo of the drop", "a photo of the house"]


@pytest.fixture(scope="module", params=["scenes-ViT-32", "scenes-RN"])
def clip(request):
    return eclip.load_clip(request.param, None)


def images(clip, count=2):
    torch.manual_seed(0)
    return torch.randn(count, 3, clip.image_size, clip.image_size)


def minmax(a):
    return (a - a.min()) / (a.max() - a.min()).clamp_min(1e-30)  # the package divides by a hair more


def slow_grad_cam(clip, image, text):
    """Weights are the mean gradients of the cosine, the map is the rectified weighted sum of the activations."""
    visual = clip.model.visual
    layer, kept = visual.transformer.resblocks[-1].ln_1 if clip.is_vit else visual.layer4, []
    hook = layer.register_forward_hook(lambda m, i, out: kept.append(out))
    features = clip.encode_image(image[None].requires_grad_())
    hook.remove()
    gradient = torch.autograd.grad(score(features.class_token, text[None], clip.projection)[0, 0], kept[0])[0]
    shape = lambda z: z[0, 1:].T.reshape(-1, *features.grid) if clip.is_vit else z[0]  # noqa: E731
    activation, gradient = shape(kept[0].detach()), shape(gradient)
    return minmax((gradient.mean((1, 2))[:, None, None] * activation).sum(0).clamp_min(0))


def test_grad_cam_equals_the_slow_version(clip):
    text, batch = clip.encode_text(TEXTS), images(clip)
    maps = eclip.explainer("grad_cam", clip)(batch, text)
    assert maps.shape == (2, 3, 7, 7)
    for b in range(2):
        for t in range(3):
            torch.testing.assert_close(minmax(maps[b, t]), slow_grad_cam(clip, batch[b].clone(), text[t]), atol=1e-3, rtol=1e-3)


def slow_bi_model(clip, image, text, layers):
    """R ← R + cam R, head by head, from attention that this function computes itself."""
    visual = clip.model.visual
    x, blocks, kept = visual._embeds(image[None].requires_grad_()), visual.transformer.resblocks, []
    for block in blocks:
        y, attn, heads = block.ln_1(x), block.attn, []
        q, k, v = (y @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
        d = q.shape[-1] // attn.num_heads
        weights = [(q[0, :, s : s + d] @ k[0, :, s : s + d].T / d**0.5).softmax(-1) for s in range(0, q.shape[-1], d)]
        heads = [w @ v[0, :, s : s + d] for w, s in zip(weights, range(0, q.shape[-1], d), strict=True)]
        kept.append(weights)
        x = x + attn.out_proj(torch.cat(heads, -1))[None]
        x = x + block.mlp(block.ln_2(x))
    image_feature, text_feature = clip.projection.image(visual.ln_post(x[:, 0])), clip.projection.text(text[None])
    logit = clip.logit_scale * torch.cosine_similarity(image_feature, text_feature)[0]
    relevance = torch.eye(x.shape[1])
    for weights in kept[-1:] if layers == "last" else kept:
        gradients = torch.autograd.grad(logit, weights, retain_graph=True)
        cam = sum((w.detach() * g).clamp_min(0) for w, g in zip(weights, gradients, strict=True)) / len(weights)
        relevance = relevance + cam @ relevance
    return relevance[0, 1:].reshape(visual.grid_size)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_bi_model_equals_the_slow_version(layers):
    clip = eclip.load_clip("scenes-ViT-32", None)
    text, batch = clip.encode_text(TEXTS), images(clip)
    maps = eclip.explainer("bi_model", clip, layers=layers)(batch, text)
    for b in range(2):
        for t in range(3):
            torch.testing.assert_close(maps[b, t], slow_bi_model(clip, batch[b].clone(), text[t], layers), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["grad_cam", "bi_model"])
def test_selected_pairs_are_the_same_maps(method):
    clip = eclip.load_clip("scenes-ViT-32", None)
    text, batch, explain = clip.encode_text(TEXTS), images(clip), eclip.explainer(method, clip)
    index = torch.tensor([[1, 0], [0, 2], [1, 1]])
    torch.testing.assert_close(
        explain.pairs(batch, text, index), explain(batch, text)[index[:, 0], index[:, 1]], atol=1e-5, rtol=1e-4
    )
    rows = eclip.evaluate(explain, eclip.load_dataset("scenes", limit=3), clip)
    assert rows["iou"].between(0, 1).all()


def test_a_method_that_does_not_fit_says_so():
    with pytest.raises(ValueError, match="scenes-RN is none"):
        eclip.explainer("bi_model", eclip.load_clip("scenes-RN", None))
    with pytest.raises(ValueError, match="'last' or 'all'"):
        eclip.explainer("bi_model", eclip.load_clip("scenes-ViT-32", None), layers="first")


@torch.no_grad()
def by_hand(clip, image, method):
    """Tokens of one image through all blocks, the last one as the method's paper says, head by head -> (tokens, flow)."""
    visual = clip.model.visual
    x, blocks, flow = visual._embeds(image[None])[0], visual.transformer.resblocks, torch.eye(50)
    for number, block in enumerate(blocks):
        y, attn, out, maps = block.ln_1(x), block.attn, [], []
        q, k, v = (y @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
        d = q.shape[-1] // attn.num_heads
        for s in range(0, q.shape[-1], d):
            h = slice(s, s + d)
            soft = lambda a, b, h=h, d=d: (a[:, h] @ b[:, h].T / d**0.5).softmax(-1)  # noqa: E731
            weights = soft(q, k)
            maps.append(weights)
            if number == len(blocks) - 1 and method == "mask_clip":
                weights = torch.eye(len(x))
            if number == len(blocks) - 1 and method == "sclip":
                weights = soft(q, q) + soft(k, k)
            out.append(weights @ v[:, h])
        flow = (0.5 * sum(maps) / len(maps) + 0.5 * torch.eye(50)) @ flow
        x = x + attn.out_proj(torch.cat(out, -1))
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x)[1:], flow


@torch.no_grad()
@pytest.mark.parametrize("method", ["mask_clip", "sclip", "rollout"])
def test_dense_methods_equal_the_slow_version(method):
    clip = eclip.load_clip("scenes-ViT-32", None)
    text, batch = clip.encode_text(TEXTS), images(clip)
    maps = eclip.explainer(method, clip)(batch, text)
    assert maps.shape == (2, 3, 7, 7)
    for b in range(2):
        tokens, flow = by_hand(clip, batch[b], method)
        for t in range(3):
            cosine = torch.cosine_similarity(clip.projection.image(tokens), clip.projection.text(text[t])[None], dim=-1)
            slow = flow[0, 1:] if method == "rollout" else cosine
            torch.testing.assert_close(maps[b, t].flatten(), slow, atol=1e-5, rtol=1e-3)
    with pytest.raises(ValueError, match="scenes-RN is none"):
        eclip.explainer(method, eclip.load_clip("scenes-RN", None))


def heads_of(block, y):
    """Queries, keys and values of one image's tokens, head by head."""
    attn = block.attn
    q, k, v = (y @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
    d = q.shape[-1] // attn.num_heads
    return [[z[:, s : s + d] for z in (q, k, v)] for s in range(0, q.shape[-1], d)]


def slow_two_paths(clip, image, method):
    """The network's own path and the second one of the last two of four blocks -> (second path's tokens, own class token)."""
    visual = clip.model.visual
    x = visual._embeds(image[None])[0]
    second = None
    for number, block in enumerate(visual.transformer.resblocks):
        y, own, other = block.ln_1(x), [], []
        if number == 2:
            second = x.clone()
        sharp = y.norm(dim=-1).mean()
        for q, k, v in heads_of(block, y):
            d = q.shape[-1]
            own.append((q @ k.T / d**0.5).softmax(-1) @ v)
            if method == "clip_surgery":
                other.append((v @ v.T / d**0.5).softmax(-1) @ v)
            else:
                mean = 0
                for z in (q, k, v):
                    for _ in range(2):  # the first time to gather, the second time to say who takes whose value
                        z = z / z.norm(dim=-1, keepdim=True)
                        weights = (z @ z.T * sharp / d**0.5).softmax(-1)
                        z = weights @ z
                    mean = mean + weights @ v / 3
                other.append(mean)
        if number >= 2:
            second = second + block.attn.out_proj(torch.cat(other, -1))
        x = x + block.attn.out_proj(torch.cat(own, -1))
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(second)[1:], visual.ln_post(x)[0]


@torch.no_grad()
@pytest.mark.parametrize("method", ["clip_surgery", "gem"])
def test_two_path_methods_equal_the_slow_version(method):
    clip = eclip.load_clip("scenes-ViT-32", None)
    text, batch = clip.encode_text(TEXTS), images(clip)
    maps = eclip.explainer(method, clip)(batch, text)
    unit = lambda z: z / z.norm(dim=-1, keepdim=True)  # noqa: E731
    words = unit(clip.projection.text(text))
    for b in range(2):
        tokens, class_token = slow_two_paths(clip, batch[b], method)
        patches = unit(clip.projection.image(tokens))
        slow = patches @ words.T
        if method == "clip_surgery":  # element-wise products of token and text, less their mean over the texts
            probability = (2 * unit(clip.projection.image(class_token)) @ words.T).softmax(-1)
            products = patches[:, None] * words[None] * (probability / probability.mean())[None, :, None]
            slow = (products - products.mean(1, keepdim=True)).sum(-1)
        torch.testing.assert_close(maps[b].flatten(1), slow.T, atol=1e-5, rtol=1e-3)
    alone = eclip.explainer(method, clip)(batch, text[:1])
    assert alone.std() > 0


@pytest.mark.parametrize("layers", [1, 2])
def test_legrad_equals_the_slow_version(layers):
    clip = eclip.load_clip("scenes-ViT-32", None)
    text, batch, visual = clip.encode_text(TEXTS), images(clip), clip.model.visual
    maps = eclip.explainer("legrad", clip, layers=layers)(batch, text)
    for b in range(2):
        for t in range(3):
            x, slow = visual._embeds(batch[b][None].clone().requires_grad_())[0], 0
            for number, block in enumerate(visual.transformer.resblocks):
                inside = heads_of(block, block.ln_1(x))
                weights = [(q @ k.T / q.shape[-1] ** 0.5).softmax(-1) for q, k, _ in inside]
                x = x + block.attn.out_proj(torch.cat([w @ v for w, (_, _, v) in zip(weights, inside, strict=True)], -1))
                x = x + block.mlp(block.ln_2(x))
                if number >= 4 - layers:
                    feature = clip.projection.image(visual.ln_post(x.mean(0)))
                    cosine = torch.cosine_similarity(feature, clip.projection.text(text[t]), dim=-1)
                    gradients = torch.autograd.grad(cosine, weights, retain_graph=True)
                    slow = slow + sum(g.clamp_min(0).mean(0) for g in gradients) / len(gradients)
            torch.testing.assert_close(maps[b, t].flatten(), slow[1:], atol=1e-7, rtol=1e-3)
    with pytest.raises(ValueError, match="1 to 4"):
        eclip.explainer("legrad", clip, layers=5)
    with pytest.raises(ValueError, match="scenes-RN is none"):
        eclip.explainer("legrad", eclip.load_clip("scenes-RN", None))
