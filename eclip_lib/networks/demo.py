"""The demo networks: mini CLIPs in open_clip's own classes, registered in its model-config registry.

    scenes-ViT-32   7x7 tokens, like ViT-B/32     scenes-ViT-16   14x14 tokens, like ViT-B/16
    scenes-RN       ModifiedResNet, 7x7, like ResNet50
    scenes-DINO, scenes-MoCo    self-supervised, attention only (`attention.load_attention`), 14x14

Their text tower reads a vocabulary of the words that captions of scenes use (open_clip's stock vocabulary
would cost 49,408 rows a checkpoint). Checkpoints and their cards lie in `data/demo/`."""

import gzip
import json
import tempfile
from functools import cache
from pathlib import Path

from .. import files
from ..datasets import scenes
from ..files import REPOSITORY
from .checkpoints import folder as weights_folder

FOLDER = REPOSITORY / "data" / "demo"
MERGES = FOLDER / "scenes_bpe.txt.gz"

_text = {"context_length": 24, "width": 128, "heads": 2, "layers": 2}
_vit = {"image_size": scenes.SIZE, "width": 128, "layers": 4, "head_width": 32}
_resnet = {"image_size": scenes.SIZE, "width": 12, "layers": [1, 1, 1, 1], "head_width": 32}
_vision: list[tuple[str, dict]] = [
    ("ViT-32", _vit | {"patch_size": 32}),
    ("ViT-16", _vit | {"patch_size": 16}),
    ("RN", _resnet),
]
NETWORKS: dict[str, dict] = {
    f"scenes-{name}": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": _text} for name, vision in _vision
}

# notebook 08's arms: what is the image feature from the first training step on
POOLS: dict[str, dict] = {
    "token": {},
    "average": {"pool_type": "avg"},
    "max": {"pool_type": "max"},  # open_clip has none: `encoders.built`
    "attention": {"attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 4},
}
ARMS = {
    f"scenes-ViT-32-{pool}": NETWORKS["scenes-ViT-32"] | {"vision_cfg": _vision[0][1] | options}
    for pool, options in POOLS.items()
}

# the self-supervised models: a timm ViT as wide and deep as scenes-ViT-16
ATTENTION = {"img_size": scenes.SIZE, "patch_size": 16, "num_classes": 0}
ATTENTION |= {"embed_dim": 128, "depth": 4, "num_heads": 8}
ATTENTIONS = ["scenes-DINO", "scenes-MoCo"]


def attention_model(**options):
    """The self-supervised models' architecture with random weights; it reads crops of other sizes too."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**ATTENTION, dynamic_img_size=True, **options)


@cache
def words():
    """Every word a caption of a scene can contain, in alphabetical order."""
    phrases = "a photo of the one and with next to small big on a in front of a with a background"
    every = [phrases, *scenes.OPENINGS, *scenes.CLASSES, *scenes.COLOURS, *scenes.PATTERNS]
    return sorted({*" ".join(every).split()})


def checkpoint(network, tag="default"):
    """Path of a bundled checkpoint: `tag` is "default" ("seed0"), "seed0", "seed1", …, or "scratch" (trained
    on nothing but the small caption set, Table 4). Raises ValueError."""
    there = sorted(FOLDER.glob(f"{network}-s*.safetensors"))
    tags = [path.stem.removeprefix(f"{network}-") for path in there]
    tag = "seed0" if tag == "default" else tag
    more = ". A file, a folder written with a slash, or random works too."
    files.require_known(tag, tags, f"{network} has no bundled checkpoint", more)
    return FOLDER / f"{network}-{tag}.safetensors"


def require(network):
    """Raise FileNotFoundError where a demo network is asked for and there is no clone with its models."""
    if network in [*NETWORKS, *ATTENTIONS] and not MERGES.exists():
        raise FileNotFoundError(
            f"{network} comes with a clone of the repository (data/demo), not with the package: "
            "pip install -e . in the clone"
        )


@cache
def register():
    """Add the demo networks to open_clip's registry (once), and those whose configuration (NAME.json, in
    open_clip's form) lies in the folder of weights. Whoever uses open_clip calls this first."""
    import open_clip

    for path in sorted(weights_folder().glob("*.json")):
        if {"embed_dim", "vision_cfg", "text_cfg"} <= set(files.read_json(path)):
            open_clip.add_model_config(path)
    if not MERGES.exists():  # a wheel without a clone around it
        return
    vocabulary = 512 + gzip.open(MERGES).read().decode().count("\n") + 2
    with tempfile.TemporaryDirectory() as folder:
        for name, config in (NETWORKS | ARMS).items():
            text = {"vocab_size": vocabulary, "tokenizer_kwargs": {"bpe_path": str(MERGES)}}
            about = config | {"text_cfg": config["text_cfg"] | text}
            Path(folder, f"{name}.json").write_text(json.dumps(about))
        open_clip.add_model_config(folder)
