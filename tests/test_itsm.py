"""itsm.py against slow versions written from Eqs. 4, 5 and 10."""

import numpy as np
import pytest
import torch

import eclip_lib as eclip


def pair(reads="tokens"):
    torch.manual_seed(0)
    return eclip.Projection(6, 4, 5, reads=reads).requires_grad_(False)


def features(feature_map=None):
    torch.manual_seed(1)
    return eclip.ImageFeatures(torch.randn(2, 6), torch.randn(2, 6, 6), (2, 3), feature_map)


def slow_similarity(tokens, text, projection, grid):
    out = np.zeros((len(tokens), len(text), *grid))
    wi, wt = projection.image.weight.numpy().astype(float), projection.text.weight.numpy().astype(float)
    for b, image in enumerate(tokens.numpy().astype(float)):
        for n, token in enumerate(image):
            for t, word in enumerate(text.numpy().astype(float)):
                p, q = wi @ token, wt @ word
                out[b, t, n // grid[1], n % grid[1]] = p @ q / np.sqrt(p @ p) / np.sqrt(q @ q)
    return out


def test_similarity_is_equation_4():
    text, f = torch.randn(3, 4), features()
    np.testing.assert_allclose(eclip.similarity(f, text, pair()), slow_similarity(f.tokens, text, pair(), f.grid), atol=1e-6)


def test_a_pair_reads_the_features_it_was_made_for():
    text, other = torch.randn(3, 4), torch.randn(2, 6, 6)
    f = features(feature_map=other)
    np.testing.assert_allclose(
        eclip.similarity(f, text, pair("feature_map")), slow_similarity(other, text, pair(), f.grid), atol=1e-6
    )
    np.testing.assert_allclose(eclip.similarity(f, text, pair()), slow_similarity(f.tokens, text, pair(), f.grid), atol=1e-6)


def test_a_pair_for_another_network_is_refused():
    with pytest.raises(ValueError, match="another network"):
        eclip.similarity(features(), torch.randn(3, 7), pair())


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
    for b in range(2):
        for t in range(3):
            raw = cells[b, t].numpy().astype(float)
            np.testing.assert_allclose(after[b, t], slow_minmax(slow_resize(raw, (11, 8))), atol=1e-5)
            np.testing.assert_allclose(before[b, t], slow_resize(slow_minmax(raw), (11, 8)), atol=1e-5)
    assert after.amin((2, 3)).eq(0).all() and after.amax((2, 3)).eq(1).all() and after.dtype == torch.float32
    with pytest.raises(ValueError, match="normalize"):
        eclip.itsm(cells, (11, 8), normalize="never")


def test_constant_map_gives_zeros():
    assert eclip.itsm(torch.full((1, 1, 3, 3), 0.7), (6, 6)).eq(0).all()


def test_reverse_is_equation_10():
    heat = torch.rand(2, 2, 4, 4)
    assert torch.equal(eclip.reverse(heat), (1 - heat).abs())
    cells = torch.randn(1, 2, 7, 7)
    torch.testing.assert_close(eclip.itsm(-cells, (20, 20)), eclip.reverse(eclip.itsm(cells, (20, 20))), atol=2e-6, rtol=0)
