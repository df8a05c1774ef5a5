"""method.py against slow versions written from §3.1 to §3.3 and Eqs. 3 to 10."""

import numpy as np
import pytest
import torch

import eclip_lib as eclip
from eclip_lib.method import METHODS


@pytest.fixture
def features():
    torch.manual_seed(1)
    return eclip.ImageFeatures(torch.randn(2, 6), torch.randn(2, 6, 6), (2, 3))


def pair(reads="tokens"):
    torch.manual_seed(0)
    return eclip.Projection(6, 4, 5, reads=reads).requires_grad_(False)


def slow_cosine(image, text, projection):
    """Cosine of one projected image feature and one projected text, in float64."""
    p, q = (
        linear.weight.numpy().astype(float) @ vector.numpy().astype(float)
        for linear, vector in ((projection.image, image), (projection.text, text))
    )
    return p @ q / np.sqrt(p @ p) / np.sqrt(q @ q)


def slow_similarity(tokens, text, projection, grid):
    cosines = [[[slow_cosine(n, t, projection) for n in image] for t in text] for image in tokens]
    return np.reshape(cosines, (len(tokens), len(text), *grid))


def test_score_is_equation_3(features):
    text = torch.randn(3, 4)
    slow = [[slow_cosine(image, t, pair()) for t in text] for image in features.class_token]
    np.testing.assert_allclose(eclip.score(features.class_token, text, pair()), slow, atol=1e-6)


def test_similarity_is_equation_4_of_the_features_a_pair_reads(features):
    text, last = torch.randn(3, 4), torch.randn(2, 6, 6)
    both = eclip.ImageFeatures(features.class_token, features.tokens, features.grid, last)
    for f, reads, tokens in (
        (features, "tokens", features.tokens),
        (features, "feature_map", features.tokens),
        (both, "tokens", features.tokens),
        (both, "feature_map", last),
    ):
        slow = slow_similarity(tokens, text, pair(), f.grid)
        np.testing.assert_allclose(eclip.similarity(f, text, pair(reads)), slow, atol=1e-6)
    with pytest.raises(ValueError, match="another network"):
        eclip.similarity(features, torch.randn(3, 7), pair())


def slow_resize(cells, size):
    """Bilinear with align_corners=False, pixel by pixel."""
    h, w = cells.shape
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = max((y + 0.5) * h / size[0] - 0.5, 0), max((x + 0.5) * w / size[1] - 0.5, 0)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            a, b = v - y0, u - x0
            top = (1 - b) * cells[y0, x0] + b * cells[y0, x1]
            out[y, x] = (1 - a) * top + a * ((1 - b) * cells[y1, x0] + b * cells[y1, x1])
    return out


def slow_minmax(a):
    return (a - a.min()) / (a.max() - a.min())


def test_itsm_is_equation_5_in_both_orders():
    cells = torch.randn(2, 3, 4, 5)
    after, before = eclip.itsm(cells, (11, 8)), eclip.itsm(cells, (11, 8), normalize="before")
    for place in np.ndindex(2, 3):
        raw = cells[place].numpy().astype(float)
        np.testing.assert_allclose(after[place], slow_minmax(slow_resize(raw, (11, 8))), atol=1e-5)
        np.testing.assert_allclose(before[place], slow_resize(slow_minmax(raw), (11, 8)), atol=1e-5)
    assert after.amin((2, 3)).eq(0).all() and after.amax((2, 3)).eq(1).all() and after.dtype == torch.float32
    assert eclip.itsm(torch.full((1, 1, 3, 3), 0.7), (6, 6)).eq(0).all()  # a constant map
    with pytest.raises(ValueError, match="normalize"):
        eclip.itsm(cells, (11, 8), normalize="never")


def test_reverse_is_equation_10():
    heat, cells = torch.rand(2, 2, 4, 4), torch.randn(1, 2, 7, 7)
    assert torch.equal(eclip.reverse(heat), (1 - heat).abs())
    turned, mirrored = eclip.itsm(-cells, (20, 20)), eclip.reverse(eclip.itsm(cells, (20, 20)))
    torch.testing.assert_close(turned, mirrored, atol=2e-6, rtol=0)


def slow_masked_max(tokens, attention):
    out = torch.empty(tokens.shape[0], tokens.shape[2])
    for b, c in np.ndindex(*out.shape):
        out[b, c] = max(float(tokens[b, n, c] * attention[b, n]) for n in range(tokens.shape[1]))
    return out


def test_every_pooling_by_hand(features):
    attention, last = torch.rand(2, 6), torch.randn(2, 6, 9)
    pooled = {method: eclip.pool(features, method, attention) for method in METHODS}
    assert torch.equal(pooled["attention"], features.class_token)
    torch.testing.assert_close(pooled["average"], torch.stack([sum(t) / 6 for t in features.tokens]))
    assert torch.equal(pooled["max"], slow_masked_max(features.tokens, torch.ones(2, 6)))
    assert torch.equal(pooled["masked_max"], slow_masked_max(features.tokens, attention))
    resnet = eclip.ImageFeatures(features.class_token, features.tokens, (2, 3), last)
    assert torch.equal(eclip.pool(resnet, "max"), last.amax(1))
    assert torch.equal(eclip.pool(resnet, "max", reads="tokens"), pooled["max"])
    assert torch.equal(eclip.pool(resnet, "attention"), features.class_token)
    ten = eclip.pool(features, "masked_max", 10 * attention)  # the scale of the mask cancels in the cosine
    torch.testing.assert_close(torch.cosine_similarity(pooled["masked_max"], ten), torch.ones(2))


def test_mistakes_in_pooling_are_named(features):
    with pytest.raises(ValueError, match="no pooling 'mean'"):
        eclip.pool(features, "mean")
    for attention in (None, torch.rand(2, 7)):
        with pytest.raises(ValueError, match=r"shape \[2, 6\]"):
            eclip.pool(features, "masked_max", attention)


def test_contrastive_loss_is_equation_9():
    image, text, scale = torch.randn(5, 6), torch.randn(5, 4), 7.0
    logits = scale * np.array([[slow_cosine(i, t, pair()) for t in text] for i in image])
    softmax = [
        np.exp(logits[k, k]) / np.exp(line).sum() for k in range(5) for line in (logits[k], logits[:, k])
    ]
    loss = eclip.contrastive_loss(pair(), image, text, scale)
    assert loss.item() == pytest.approx(-np.log(softmax).mean(), abs=1e-5)
