"""pooling.py against loops written from §3.2 and Eq. 7."""

import pytest
import torch

import eclip_lib as eclip


def slow_masked_max(tokens, attention):
    out = torch.empty(tokens.shape[0], tokens.shape[2])
    for b in range(tokens.shape[0]):
        for c in range(tokens.shape[2]):
            out[b, c] = max(float(tokens[b, n, c] * attention[b, n]) for n in range(tokens.shape[1]))
    return out


@pytest.fixture
def features():
    torch.manual_seed(0)
    return eclip.ImageFeatures(torch.randn(2, 5), torch.randn(2, 6, 5), (2, 3))


def test_every_pooling_by_hand(features):
    attention = torch.rand(2, 6)
    pooled = eclip.pool(features, ["attention", "average", "max", "masked_max"], attention)
    assert torch.equal(pooled["attention"], features.class_token)
    torch.testing.assert_close(pooled["average"], torch.stack([sum(t) / 6 for t in features.tokens]))
    assert torch.equal(pooled["max"], slow_masked_max(features.tokens, torch.ones(2, 6)))
    assert torch.equal(pooled["masked_max"], slow_masked_max(features.tokens, attention))


def test_resnets_pool_the_last_stage(features):
    last = torch.randn(2, 6, 9)
    resnet = eclip.ImageFeatures(features.class_token, features.tokens, (2, 3), last)
    assert torch.equal(eclip.pool(resnet, "max"), last.amax(1)) and eclip.pool(resnet, "attention").shape == (2, 5)


def test_the_scale_of_the_attention_cancels_in_the_cosine(features):
    a = torch.rand(2, 6)
    one, ten = (eclip.pool(features, "masked_max", s * a) for s in (1, 10))
    torch.testing.assert_close(torch.cosine_similarity(one, ten), torch.ones(2))


def test_mistakes_are_named(features):
    with pytest.raises(ValueError, match="no pooling 'mean'"):
        eclip.pool(features, "mean")
    for attention in (None, torch.rand(2, 7)):
        with pytest.raises(ValueError, match=r"shape \[2, 6\]"):
            eclip.pool(features, "masked_max", attention)
