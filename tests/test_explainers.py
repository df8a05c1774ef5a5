"""The contract of explainers, and every method against a slow version of its description."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch

import eclip_lib as eclip
from eclip_lib import files
from eclip_lib.explainers import REGISTRY, FeatureMap, Method, PairMap, Shared, base, dense

TEXTS = ["a photo of the star", "a photo of the drop", "a photo of the house"]
CLOSE = {"atol": 1e-5, "rtol": 1e-3}


@pytest.fixture(scope="module")
def vit():
    return eclip.load_clip("scenes-ViT-32", None)


@pytest.fixture(scope="module")
def resnet():
    return eclip.load_clip("scenes-RN", None)


def images(count=2):
    torch.manual_seed(0)
    return torch.randn(count, 3, 224, 224)


# ---------------------------------------------------------------------- contract


def test_every_kind_of_explainer_gives_the_maps_of_selected_pairs(vit, monkeypatch):
    monkeypatch.setattr(base, "CHUNK", 2)
    other, text, batch, sizes = copy.copy(vit), vit.encode_text(TEXTS), images(), []
    scale = torch.tensor(2.0, requires_grad=True)

    def of_features(features, text):
        return scale * eclip.similarity(features, text, vit.projection)

    def of_pairs(images, text, index):
        assert torch.is_grad_enabled()
        sizes.append(len(index))
        return of_features(vit.encode_image(images[index[:, 0]]), text)[torch.arange(len(index)), index[:, 1]]

    plain = lambda images, text: of_features(vit.encode_image(images), text)  # noqa: E731
    index, shared = torch.tensor([[1, 0], [0, 2], [1, 1]]), Shared(vit, batch)
    expected = torch.stack([plain(batch, text)[b, t] for b, t in index]).detach()
    for explain in (FeatureMap(vit, of_features), PairMap(of_pairs), plain, FeatureMap(other, of_features)):
        for given in (None, shared):
            found = eclip.maps(explain, batch, text, index, given)
            torch.testing.assert_close(found, expected, **CLOSE)
            assert not found.requires_grad
        torch.testing.assert_close(explain(batch, text), plain(batch, text), **CLOSE)
    assert sizes == [2, 1, 2, 1, 2, 2, 2]
    monkeypatch.setattr(
        vit, "encode_image", None
    )  # what is shared is not computed again, and by no other CLIP
    torch.testing.assert_close(eclip.maps(FeatureMap(vit, of_features), batch, text, index, shared), expected)
    turned = replace(shared.features, tokens=-shared.features.tokens)
    monkeypatch.setattr(other, "encode_image", lambda images: turned)
    torch.testing.assert_close(
        eclip.maps(FeatureMap(other, of_features), batch, text, index, shared), -expected
    )


@pytest.mark.parametrize("method", REGISTRY)
def test_the_registry_says_what_a_method_needs(method, vit, resnet):
    for clip in (vit, resnet):
        if clip is resnet and method not in "clip rclip eclip grad_cam mask_clip clip_surgery".split():
            with pytest.raises(ValueError, match="scenes-RN is none"):
                eclip.explainer(method, clip)
            continue
        options = {"projection": clip.projection} if method == "eclip" else {}
        explain = eclip.explainer(method, clip, **options)
        text, batch, index = clip.encode_text(TEXTS), images(), torch.tensor([[1, 0], [0, 2], [1, 1]])
        assert isinstance(explain, PairMap) == REGISTRY[method].backward
        every = explain(batch, text)
        assert every.shape == (2, 3, 7, 7) and every.isfinite().all()
        selected = eclip.maps(explain, batch, text, index)
        torch.testing.assert_close(selected, every[index[:, 0], index[:, 1]].detach(), **CLOSE)


def test_methods_of_one_batch_share_the_blocks_they_have_in_common(vit):
    text, batch, index = vit.encode_text(TEXTS), images(), torch.tensor([[1, 0], [0, 2], [1, 1]])
    shared, seen = Shared(vit, batch), []
    options = {"eclip": {"projection": vit.projection}}
    made = {method: eclip.explainer(method, vit, **options.get(method, {})) for method in REGISTRY}
    alone = {method: eclip.maps(explain, batch, text, index) for method, explain in made.items()}
    first = vit.model.visual.transformer.resblocks[0].mlp
    hook = first.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    for method, explain in made.items():
        torch.testing.assert_close(eclip.maps(explain, batch, text, index, shared), alone[method], **CLOSE)
    hook.remove()
    # for the last block, for the second half, and for rollout, which reads the attention of every block
    assert seen == [len(batch)] * 3


def test_an_identity_is_the_method_and_what_its_options_contain(vit):
    pair = eclip.Projection(128, 128, 128)
    one, other = (eclip.explainer("eclip", vit, projection=p).identity for p in (pair, vit.projection))
    assert one != other and one == eclip.explainer("eclip", vit, projection=pair).identity
    assert files.digest(pair) in str(one)
    kinds = [eclip.explainer("bi_model", vit, layers=layers).identity for layers in ("last", "all")]
    kinds += [eclip.explainer("legrad", vit, layers=layers).identity for layers in (1, 2)]
    assert len(set(map(str, kinds))) == 4


def test_a_method_of_ones_own_and_mistakes_in_others(vit, monkeypatch):
    picture, make = eclip.load_dataset("scenes")[0].image, lambda clip: plain
    plain = lambda images, text: torch.arange(4.0).view(1, 1, 2, 2)  # noqa: E731
    for own in (Method(make, "Own", "mine"), make):
        monkeypatch.setitem(REGISTRY, "own", own)
        heat = eclip.map_of(vit, eclip.explainer("own", vit), picture, TEXTS[0])
        torch.testing.assert_close(heat, eclip.itsm(plain(None, None), (224, 224))[0, 0])
    methods, text = {"clip": eclip.explainer("clip", vit)}, vit.encode_text(TEXTS)
    cosines, maps = base.scored(vit, methods, [picture], text)
    features = vit.encode_image(vit.preprocess(picture)[None])
    torch.testing.assert_close(cosines, eclip.score(features.class_token, text, vit.projection))
    torch.testing.assert_close(maps["clip"], eclip.similarity(features, text, vit.projection))
    for method, wrong, message in (
        ("bi_model", {"layers": "first"}, "'last' or 'all'"),
        ("legrad", {"layers": 5}, "1 to 4"),
        ("clip_surgery", {"redundant": "all"}, "'texts' or 'empty'"),
    ):
        with pytest.raises(ValueError, match=message):
            eclip.explainer(method, vit, **wrong)


# ---------------------------------------------------------------------- formulas


def soft(a, b):
    return (a @ b.T / a.shape[-1] ** 0.5).softmax(-1)


def after(block, x, taken):
    """What a block gives for one image's tokens [N, C], when its heads took `taken`."""
    x = x + block.attn.out_proj(torch.cat(taken, -1))
    return x + block.mlp(block.ln_2(x))


def step(block, x):
    """One image's tokens [N, C] -> (q, k, v of every head, weights of every head, the next tokens)."""
    q, k, v = (block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)
    heads = list(zip(*(z.split(z.shape[-1] // block.attn.num_heads, -1) for z in (q, k, v)), strict=True))
    weights = [soft(q, k) for q, k, _ in heads]
    return heads, weights, after(block, x, [w @ v for w, (_, _, v) in zip(weights, heads, strict=True)])


def begin(clip, image):
    return clip.model.visual._embeds(image[None].clone().requires_grad_())[0]


def cosine(clip, token, text):
    return torch.cosine_similarity(clip.projection.image(token), clip.projection.text(text), dim=-1)


def minmax(a):
    return (a - a.min()) / (a.max() - a.min()).clamp_min(1e-30)  # the package divides by a hair more


def slow_grad_cam(clip, image, text):
    """Weights: mean gradients of the cosine; the map: the rectified weighted sum of the activations."""
    visual, kept = clip.model.visual, []
    layer = visual.transformer.resblocks[-1].ln_1 if clip.is_vit else visual.layer4
    hook = layer.register_forward_hook(lambda m, i, out: kept.append(out))
    features = clip.encode_image(image[None].clone().requires_grad_())
    hook.remove()
    gradient = torch.autograd.grad(cosine(clip, features.class_token[0], text), kept[0])[0]
    shape = lambda z: z[0, 1:].T.reshape(-1, *features.grid) if clip.is_vit else z[0]  # noqa: E731
    activation, gradient = shape(kept[0].detach()), shape(gradient)
    return minmax((gradient.mean((1, 2))[:, None, None] * activation).sum(0).clamp_min(0))


@pytest.mark.parametrize("network", ["scenes-ViT-32", "scenes-RN"])
def test_grad_cam_equals_the_slow_version(network):
    clip = eclip.load_clip(network, None)
    text, batch = clip.encode_text(TEXTS), images()
    maps = eclip.explainer("grad_cam", clip)(batch, text)
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(3)):
        slow = slow_grad_cam(clip, batch[b], text[t])
        torch.testing.assert_close(minmax(maps[b, t]), slow, atol=1e-3, rtol=1e-3)


def slow_bi_model(clip, image, text, layers):
    """R ← R + cam R, head by head."""
    visual, x, kept = clip.model.visual, begin(clip, image), []
    for block in visual.transformer.resblocks:
        _, weights, x = step(block, x)
        kept.append(weights)
    logit, relevance = clip.logit_scale * cosine(clip, visual.ln_post(x[0]), text), torch.eye(len(x))
    for weights in kept[-1:] if layers == "last" else kept:
        gradients = torch.autograd.grad(logit, weights, retain_graph=True)
        heads = [(w.detach() * g).clamp_min(0) for w, g in zip(weights, gradients, strict=True)]
        relevance = relevance + sum(heads) / len(heads) @ relevance
    return relevance[0, 1:]


def slow_legrad(clip, image, text, layers):
    """The positive part of each block's own gradient by its attention, mean over heads and queries."""
    visual, x, relevance = clip.model.visual, begin(clip, image), 0
    for number, block in enumerate(visual.transformer.resblocks):
        _, weights, x = step(block, x)
        if number >= 4 - layers:
            similar = cosine(clip, visual.ln_post(x.mean(0)), text)
            gradients = torch.autograd.grad(similar, weights, retain_graph=True)
            relevance = relevance + sum(g.clamp_min(0).mean(0) for g in gradients) / len(gradients)
    return relevance[1:]


def slow_grad_eclip(clip, image, text, layers):
    """ReLU(Σ_c w_c λ_i v_ic): o_c moves the cosine by w_c; λ is the loosened attention of the class token."""
    *blocks, last = clip.model.visual.transformer.resblocks
    x = begin(clip, image)
    for block in blocks:
        x = step(block, x)[2]
    heads, weights, _ = step(last, x)
    taken = [w @ v for w, (_, _, v) in zip(weights, heads, strict=True)]
    similar = cosine(clip, clip.model.visual.ln_post(after(last, x, taken)[0]), text)
    w = torch.cat([gradient[0] for gradient in torch.autograd.grad(similar, taken)])
    q, k, v = (torch.cat(parts, -1) for parts in zip(*heads, strict=True))
    loosened = minmax(torch.stack([torch.cosine_similarity(q[0], key, dim=0) for key in k[1:]]))
    return torch.stack(
        [(w * near * value).sum() for near, value in zip(loosened, v[1:], strict=True)]
    ).clamp_min(0)


CASES = [*product([slow_bi_model], ["last", "all"]), *product([slow_legrad], [1, 2]), (slow_grad_eclip, None)]


@pytest.mark.parametrize("slow, layers", CASES)
def test_methods_with_a_backward_pass_equal_the_slow_version(vit, slow, layers):
    text, batch, options = vit.encode_text(TEXTS), images(), {"layers": layers} if layers else {}
    maps = eclip.explainer(slow.__name__.removeprefix("slow_"), vit, **options)(batch, text)
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(3)):
        expected = slow(vit, batch[b], text[t], layers)
        torch.testing.assert_close(maps[b, t].flatten(), expected, atol=1e-7, rtol=1e-3)


def slow_last_block(clip, image, text, method):
    """The last block as the method's paper says, or the flow of attention through all blocks."""
    visual, x, flow = clip.model.visual, begin(clip, image), torch.eye(50)
    for block in visual.transformer.resblocks:
        before = x
        heads, weights, x = step(block, x)
        flow = (0.5 * sum(weights) / len(weights) + 0.5 * torch.eye(50)) @ flow
    if method == "rollout":
        return flow[0, 1:].expand(len(text), -1)
    place = torch.tensor([divmod(cell, 7) for cell in range(49)])
    near = torch.zeros(
        50, 50
    )  # a Gaussian with a standard deviation of five tokens; none for the class token
    for i, j in product(range(49), range(49)):
        near[1 + i, 1 + j] = torch.exp(-((place[i] - place[j]) ** 2).sum() / 50)
    mixes = {
        "mask_clip": lambda q, k, v: v,
        "sclip": lambda q, k, v: (soft(q, q) + soft(k, k)) @ v,
        "clear_clip": lambda q, k, v: soft(q, q) @ v,
        "naclip": lambda q, k, v: (k @ k.T / k.shape[-1] ** 0.5 + near).softmax(-1) @ v,
    }
    mixed = [mixes[method](*head) for head in heads]
    alone = block.attn.out_proj(torch.cat(mixed, -1))  # no residual stream, no MLP
    whole = alone if method in ("clear_clip", "naclip") else after(block, before, mixed)
    tokens = visual.ln_post(whole)[1:]
    return torch.stack([cosine(clip, tokens, word) for word in text])


def slow_second_path(clip, image, text, method):
    tokens, pooled = slow_paths(clip, image, method)
    if method == "gem":
        return unit(clip.projection.text(text)) @ unit(clip.projection.image(tokens)).T
    return slow_feature_surgery(clip, tokens, pooled, text)


def slow_paths(clip, image, method):
    """Beside the own path a second one through the last two of its four blocks, without their MLPs."""
    visual, x = clip.model.visual, begin(clip, image)
    for number, block in enumerate(visual.transformer.resblocks):
        if number == 2:
            second = x
        sharp = block.ln_1(x).norm(dim=-1).mean()
        heads, _, x = step(block, x)
        if number < 2:
            continue
        other = []
        for q, k, v in heads:
            mean = 0 if method == "gem" else soft(v, v) @ v
            for z in (q, k, v) if method == "gem" else ():
                for _ in range(2):  # the first time to gather, the second time to say who takes whose value
                    z = z / z.norm(dim=-1, keepdim=True)
                    weights = (z @ z.T * sharp / z.shape[-1] ** 0.5).softmax(-1)
                    z = weights @ z
                mean = mean + weights @ v / 3
            other.append(mean)
        second = second + block.attn.out_proj(torch.cat(other, -1))
    return visual.ln_post(second)[1:], visual.ln_post(x)[0]


def unit(z):
    return z / z.norm(dim=-1, keepdim=True)


def slow_feature_surgery(clip, tokens, pooled, text):
    """Element-wise products of token and text, less their mean over the texts."""
    words, patches = unit(clip.projection.text(text)), unit(clip.projection.image(tokens))
    probability = (2 * unit(clip.projection.image(pooled)) @ words.T).softmax(-1)
    products = patches[:, None] * words[None] * (probability / probability.mean())[None, :, None]
    return (products - products.mean(1, keepdim=True)).sum(-1).T


def slow_resnet_pool(clip, image):
    """The attention pool with value-value attention -> (tokens, the mean token's answer)."""
    pool, cells = clip.model.visual.attnpool, clip.encode_image(image[None]).feature_map[0]
    x = torch.cat([cells.mean(0, keepdim=True), cells]) + pool.positional_embedding
    heads = pool.v_proj(x).split(len(x[0]) // pool.num_heads, -1)
    taken = torch.cat([soft(v, v) @ v for v in heads], -1)
    return taken[1:], taken[0]


@torch.no_grad()
def test_methods_on_a_resnet_equal_the_slow_version(resnet):
    text, pool = resnet.encode_text(TEXTS), resnet.model.visual.attnpool
    masked, surgery = (eclip.explainer(m, resnet)(images(), text) for m in ("mask_clip", "clip_surgery"))
    for b, image in enumerate(images()):
        values = pool.v_proj(resnet.encode_image(image[None]).feature_map[0])
        slow = torch.stack([cosine(resnet, values, word) for word in text])
        torch.testing.assert_close(masked[b].flatten(1), slow, **CLOSE)
        slow = slow_feature_surgery(resnet, *slow_resnet_pool(resnet, image), text)
        torch.testing.assert_close(surgery[b].flatten(1), slow, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("network", ["vit", "resnet"])
def test_what_clip_surgery_takes_away(network, request, recwarn):
    clip, batch = request.getfixturevalue(network), images()
    text, surgery = (
        clip.encode_text(TEXTS),
        lambda **options: eclip.explainer("clip_surgery", clip, **options),
    )
    two = surgery()(batch, text[:2])
    torch.testing.assert_close(two[:, 0], -two[:, 1])
    torch.testing.assert_close(surgery(redundant="texts")(batch, text), surgery()(batch, text))
    empty = surgery(redundant="empty")(batch, text)
    torch.testing.assert_close(surgery()(batch, text[1:2]), empty[:, 1:2])
    assert not recwarn.list  # though no demo network knows the words of these prompts
    prompts = [template("") for template in dense.TEMPLATES]
    assert len(set(prompts)) == 85 and {"a photo of the .", "this is one  in the scene."} <= set(prompts)
    mean = unit(unit(clip.projection.text(clip.encode_text(prompts))).mean(0))
    for image, found in zip(batch, empty, strict=True):
        tokens = slow_resnet_pool(clip, image)[0] if network == "resnet" else slow_paths(clip, image, "")[0]
        slow = unit(clip.projection.image(tokens)) @ (unit(clip.projection.text(text)) - mean).T
        torch.testing.assert_close(found.flatten(1), slow.T, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    "method", ["mask_clip", "sclip", "clear_clip", "naclip", "rollout", "clip_surgery", "gem"]
)
def test_dense_methods_equal_the_slow_version(vit, method):
    text, batch = vit.encode_text(TEXTS), images()
    slow = slow_second_path if method in ("clip_surgery", "gem") else slow_last_block
    maps = eclip.explainer(method, vit)(batch, text)
    for b in range(2):
        torch.testing.assert_close(maps[b].flatten(1), slow(vit, batch[b], text, method), **CLOSE)
    assert eclip.explainer(method, vit)(batch, text[:1]).std() > 0
