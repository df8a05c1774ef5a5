"""Notebook 08: pools at pre-training, the map behind every block, and its words."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import eclip_lib as eclip
from eclip_lib.evaluation import t_difference
from eclip_lib.networks import demo
from eclip_lib.networks.loading import is_vit
from eclip_lib.studies import arms, causes, controls

TEXTS = ["a photo of the star", "a photo of the ring"]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def plain_tokens(visual, images, blocks):
    """A ViT's stream behind so many blocks, [B, 1 + N, C]."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for k in range(blocks):
        x = visual.transformer.resblocks[k](x)
    return x


@torch.no_grad()
def test_a_vit_may_pool_the_maximum_of_its_tokens(tmp_path):
    usual = eclip.load_clip("scenes-ViT-32", "seed1")
    weights = demo.checkpoint("scenes-ViT-32", "seed1")
    most, images = eclip.load_clip("scenes-ViT-32-max", weights), torch.randn(2, 3, 224, 224)
    found, own = most.encode_image(images), usual.encode_image(images)
    assert torch.equal(found.tokens, own.tokens) and not torch.equal(found.class_token, own.class_token)
    x = usual.model.visual.ln_post(plain_tokens(usual.model.visual, images, 4))
    largest = torch.stack([torch.stack([image[1:, c].max() for c in range(128)]) for image in x])
    torch.testing.assert_close(found.class_token, largest, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        most.model.encode_image(images), most.projection.image(largest), atol=1e-4, rtol=1e-4
    )
    assert not most.is_vit and not is_vit("scenes-ViT-32-max") and most.identity != usual.identity


@torch.no_grad()
@pytest.mark.parametrize("network", arms.NETWORK.values())
def test_the_map_behind_every_block_equals_a_plain_one(network):
    """Of an attention pool: its value path, which is what a token alone would give."""
    clip = eclip.load_clip(network, None)
    visual, images, words = clip.model.visual, torch.randn(2, 3, 224, 224), clip.encode_text(TEXTS)
    text = unit(clip.projection.text(words))
    for blocks, explain in causes.at_depths(clip).items():
        x = plain_tokens(visual, images, blocks)
        if visual.attn_pool:
            pool = visual.attn_pool
            weight, bias = pool.attn.in_proj_weight[256:], pool.attn.in_proj_bias[256:]
            x = pool.attn.out_proj(pool.ln_k(x) @ weight.T + bias)
        cosines = unit(visual.ln_post(x)[:, 1:] @ visual.proj) @ text.T
        plain = torch.stack([cosines[:, :, t].reshape(2, 7, 7) for t in range(2)], 1)
        torch.testing.assert_close(explain(images, words), plain, atol=1e-5, rtol=1e-4)
    assert blocks == 4
    torch.testing.assert_close(explain(images, words), eclip.explainer("clip", clip)(images, words))


def test_a_network_is_measured_at_every_depth(tmp_path):
    run = eclip.load_profile("demo", networks="scenes-ViT-32", limit=4, out=tmp_path, workers=0)
    clips = causes.trainings(run)
    assert list(clips) == [("scenes-ViT-32", "seed0")]
    (clip,) = clips.values()
    depths, what = causes.depth_table(run, clips), causes.what_table(run, clips)
    assert depths["blocks"].tolist() == [*range(5)] * 2
    rows = eclip.evaluate(eclip.explainer("clip", clip), run.load_dataset("scenes"), clip)
    wide = causes.lines(depths, what).set_index("dataset")
    assert wide.loc["scenes", "mSC"] == pytest.approx(eclip.summarize(rows)["mSC"], abs=1e-3)
    assert wide.loc["scenes", "mSC"] == wide.loc["scenes", "mSC_4"] != wide.loc["scenes", "mSC_0"]
    mean = controls.the_mean(eclip.explainer("clip", clip))(torch.randn(1, 3, 224, 224), torch.eye(128)[:3])
    torch.testing.assert_close(mean[:, 0], mean[:, 2])


def test_a_difference_over_trainings_is_welchs():
    ours, theirs = [1.0, 2.0, 4.0], [7.0, 8.0, 8.5, 11.0]
    variances = [np.var(x, ddof=1) / len(x) for x in (ours, theirs)]
    freedom = sum(variances) ** 2 / sum(
        v**2 / (len(x) - 1) for v, x in zip(variances, (ours, theirs), strict=True)
    )
    half = stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    mean = np.mean(ours) - np.mean(theirs)
    assert t_difference(ours, theirs) == pytest.approx((mean, mean - half, mean + half))
    assert np.isnan(t_difference([1.0], theirs)[1:]).all()


# ---------------------------------------------------------------------- words


def made_up(**pools):
    """Arms' rows of one dataset from {pool: mSC of its trainings}, mAP 90, 91, … everywhere."""
    rows = [
        {"pool": pool, "training": f"seed{k}", "dataset": "a", "mAP": 90 + k, "mSC": value}
        for pool, values in pools.items()
        for k, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "pools, said",
    [
        ({"average": [-30, -31, -32]}, ["opposite with token, average.", "does not need the class token", "more opposite"]),
        ({"average": [-5, -6, -7]}, ["opposite with token, average.", "less opposite"]),
        ({"average": [29, 30, 31]}, ["as one expects with average", "decides the sign", "So the class token as the image feature in training is what"]),
        ({"average": [-30, 0, 30]}, ["mixed or undecided with average", "is open here", "undecided whether more or less"]),
        ({"max": [20]}, ["a, max: mSC 20.0 (+40.0 against the class token); one training, which decides nothing", "with max pooling against the class token: one"]),
        ({"max": [20, 21, 22]}, ["lower on 0 of 1 datasets, higher on 0, undecided on 1", "as one expects with max"]),
    ],
)  # fmt: skip
def test_what_pools_do_is_said_of_any_sign(pools, said):
    rows = made_up(token=[-18.0, -20.0, -22.0], **pools)
    found = arms.pooling_in_words(arms.pooling_table(rows), arms.pooling_gains(rows))
    assert all(words in found for words in said), found


def test_max_pooling_that_loses_recognition_is_said_to():
    rows = made_up(token=[-18.0, -20.0, -22.0], max=[1.0, 2.0, 3.0])
    rows.loc[rows["pool"] == "max", "mAP"] -= 40
    found = arms.pooling_in_words(arms.pooling_table(rows), arms.pooling_gains(rows))
    assert "mAP -40.0 [-42.3, -37.7] against the class token: worse recognition" in found
    assert "max pooling against the class token: lower on 1 of 1 datasets, higher on 0" in found


def test_traits_and_pairs_are_counted_by_training():
    rows = made_up(token=[-18.0, -20.0, 22.0], average=[3.0])
    rows["mSC_0"], rows["absent"], rows["text"] = -1, 1, rows["mSC"]
    rows = pd.concat([rows, rows.assign(dataset="b", text=1)])
    rows["pair_max_mSC"] = [5, 5, -5, np.nan] * 2
    said = "token, of 3 trainings mSC below 0: at the patch embedding 3; at the end 2; for absent classes 0; by the text"
    found = arms.traits_in_words(rows)
    assert found.startswith(said) and "map) 0.\naverage, of 1" in found
    said = "token, of 3 trainings the map of a new pair is as one expects with: max 2."
    assert arms.pairs_in_words(rows) == said
    curves = arms.by_depth(rows)
    assert len(curves) == 8 and set(curves["blocks"]) == {0} and set(curves["mSC"]) == {-1}


@pytest.mark.parametrize(
    "highs, said",
    [
        (
            [(-1, -1, -1), (-1, 1, -1)],
            "is not needed for it: of the maps that are opposite at the end, 2, 2 are so before any token",
        ),
        (
            [(-1, -1, -1), (1, -1, -1), (-1, -1, 1)],
            "is not needed for it: of the maps that are opposite at the end, 2, 1 are so before",
        ),
        (
            [(1, 1, -1)],
            "comes with self-attention: of the maps that are opposite at the end, 1, 0 are so before",
        ),
        ([(-1, -1, 1)], "no map is opposite at its end"),
    ],
)
def test_where_the_map_is_opposite_and_what_follows_for_self_attention(highs, said):
    def depths(k, high):
        mean = [end - 1 for end in high]
        return pd.DataFrame({"training": k, "blocks": range(len(high)), "mSC": mean, "mSC_high": high})

    table = pd.concat([depths(k, high) for k, high in enumerate(highs)]).assign(dataset="a", network="n")
    first, last, every = (
        sum(max(high[part]) < 0 for high in highs) for part in (slice(1), slice(2, 3), slice(3))
    )
    count = f"a, n: of {len(highs)} trainings opposite at the patch embedding {first}, behind the last block "
    found = causes.depth_in_words(table)
    assert found.startswith(f"{count}{last}, at every depth {every}; mean mSC ")
    assert said in found
    assert causes.depth_in_words(pd.DataFrame()) == "no ViT among the networks"


@pytest.mark.parametrize(
    "absent, text, said",
    [
        (-9, -9, "It prefers the background whatever is named, and avoids the named object besides."),
        (-9, 4, "It prefers the background, whatever is named."),
        (4, -9, "It avoids the named object."),
        (-9, 40, "Its map is not opposite."),  # a good map: absent classes are low on objects
        (9, 9, "Its map is not opposite."),
    ],
)
def test_preference_and_avoidance_are_told_apart(absent, text, said):
    values = {"own": absent + text, "absent": absent, "text": text, "against_others": text, "mean": absent}
    ends = {f"{name}_{end}": value for name, value in values.items() for end in ("low", "high")}
    what = pd.DataFrame([{"dataset": "a", "network": "n", "training": "seed0"} | values | ends])
    assert causes.what_in_words(what).endswith(f" {said}")


# ---------------------------------------------------------------------- the committed rows


def test_the_committed_rows_agree_with_their_cards():
    rows, folder = arms.arms(), arms.ROWS.parent
    assert {*rows["dataset"]} == {"scenes", "scenes-cluttered"}
    pairs = rows.columns.str.startswith("pair_")  # not of the shipped seeds
    assert not rows.loc[:, ~pairs].isna().any(axis=None)
    assert not rows.loc[rows["pool"] != arms.LONGER, pairs].isna().any(axis=None)
    assert (rows.groupby(["pool", "training"]).size() == 2).all()
    found = {(pool, training) for pool, training in zip(rows["pool"], rows["training"], strict=True)}
    shipped = {(arms.LONGER, f"seed{k}") for k in range(5)}
    cards = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    pools = {network: pool for pool, network in arms.NETWORK.items()}
    assert shipped <= found and {pool for pool, _ in found} == {*arms.NETWORK}
    assert found - shipped == {(pools[card["network"]], f"seed{card['seed']}") for card in cards.values()}
    usual = json.loads((demo.FOLDER / "scenes-ViT-32-seed0.json").read_text())
    for name, card in cards.items():
        assert name == f"{card['network']}-seed{card['seed']}" and len(card["sha256"]) == 64
        assert card["recipe"] == usual["recipe"] | {"train-num-samples": 32_000}
        assert card["besides"] == {"iteration of Muon": "fp32", "attention": "plain products"}
        assert card["command"].endswith(f"clips.py {card['network']} --seed {card['seed']}")
        weights = folder / f"{name}.safetensors"  # never shipped
        assert not weights.exists() or hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]
