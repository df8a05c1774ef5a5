"""A GPU gives the CPU's maps, scores, attention and pairs."""

import pytest
import torch

import eclip_lib as eclip
from eclip_lib.datasets.image_text import ScenePairs
from eclip_lib.explainers import REGISTRY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(autouse=True)
def _products_in_float32(monkeypatch):
    """cuDNN's convolutions are in TF32 unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module", params=["scenes-ViT-16", "scenes-RN"])
def both(request):
    return [eclip.load_clip(request.param, device=device) for device in ("cpu", "cuda")]


@pytest.mark.parametrize("method", REGISTRY)
def test_every_method_gives_the_cpus_map(both, method):
    torch.manual_seed(0)
    images, index, found = torch.randn(2, 3, 224, 224), torch.tensor([[1, 0], [0, 1]]), []
    options = [{"projection": clip.projection} if method == "eclip" else {} for clip in both]
    try:
        eclip.explainer(method, both[0], **options[0])
    except ValueError as error:
        pytest.skip(str(error))
    for clip, given in zip(both, options, strict=True):
        explain = eclip.explainer(method, clip, **given)
        text = clip.encode_text(["a photo of the star", "a photo of the drop"])
        found.append(eclip.maps(explain, images.to(clip.device), text, index).cpu())
    scale = found[0].abs().max()
    torch.testing.assert_close(found[1] / scale, found[0] / scale, atol=2e-3, rtol=0)


def test_an_evaluation_gives_the_cpus_scores(both):
    dataset = eclip.load_dataset("scenes", limit=20)
    rows = [eclip.evaluate(eclip.explainer("clip", clip), dataset, clip, workers=2) for clip in both]
    here, there = (eclip.summarize(part, 1) for part in rows)
    assert abs(here["mIoU"] - there["mIoU"]) < 0.1 and abs(here["mSC"] - there["mSC"]) < 0.1


def test_a_mask_is_the_cpus():
    images = torch.randn(2, 3, 224, 224)
    here, there = (
        eclip.load_attention("vit_tiny_patch16_224", None, device=device) for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there(images.cuda()).cpu(), here(images), atol=1e-4, rtol=1e-3)


def test_the_loss_of_a_pairs_training_is_the_cpus(both, tmp_path):
    losses = []
    for clip in both:
        masks = {"tiny": eclip.load_attention("vit_tiny_patch16_224", None, device=str(clip.device))}
        cache = eclip.cache_features(clip, ScenePairs(count=32), tmp_path / clip.device.type, masks)
        losses.append(eclip.train_pair(clip, cache, "masked_max:tiny", epochs=2, batch_size=8)[1]["loss"])
    assert abs(losses[0] - losses[1]).max() < 1e-2
