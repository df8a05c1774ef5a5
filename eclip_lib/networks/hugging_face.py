"""What comes from the Hugging Face hub: the names `hf-hub:org/model` and `local-dir:path`, what lies beside
weights there, and the names that transformers gives to the weights of CLIP and SigLIP."""

import re
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from .. import files
from ..downloads import hub
from .checkpoints import BESIDE, SUFFIXES

HUB, LOCAL = "hf-hub:", "local-dir:"
# what a folder of Hugging Face's holds, the best first; beside an index lie the shards that it names
FILES = "open_clip_model.safetensors model.safetensors open_clip_pytorch_model.bin pytorch_model.bin".split()
WEIGHTS = [name + suffix for name in FILES for suffix in ("", ".index.json")]


def has_scheme(name):
    """Whether a network or its weights are named by a folder: `hf-hub:org/model` or `local-dir:path`."""
    return isinstance(name, str) and name.startswith((HUB, LOCAL))


def hint(word):
    """The way out for a name that is none here but may be one of a folder or of a repository on the hub."""
    if Path(word).is_dir():
        return f"; the folder of a CLIP's files is {LOCAL}{word}"
    like = re.fullmatch(r"\w[\w.-]{0,60}/[\w.-]{1,60}", word) and not word.endswith(SUFFIXES)
    return f"; of the hub, write {HUB}{word}" if like else ""


def folder_of(name, weights=False):
    """The folder of `hf-hub:org/model` (downloaded once) or `local-dir:path`; of the hub the configuration
    alone, unless `weights` are asked for. Raises ValueError, FileNotFoundError."""
    scheme, _, place = name.partition(":")
    if f"{scheme}:" == LOCAL:
        path = files.place(place)
        if not path.is_dir():
            raise FileNotFoundError(f"no folder {path}; {LOCAL} takes the folder of a CLIP's files")
        return path
    return _downloaded(place, weights)


@cache
def _downloaded(repository, weights):
    def get(file):
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError:  # none of that name, or no network and not in the cache
            return None

    try:
        with hub():
            found = [get(file) for file in BESIDE]
            if weights:
                found.append(next(filter(None, map(get, WEIGHTS)), None))
                if found[-1] and found[-1].suffix == ".json":
                    found += map(get, sorted(set(files.read_json(found[-1])["weight_map"].values())))
    except Exception as error:
        raise ValueError(f"{HUB}{repository[:50]} could not be read ({reason(error)})") from error
    if not any(found[len(BESIDE) :] if weights else found):
        raise ValueError(
            f"{HUB}{repository[:50]}: its files are neither in the cache nor could they be downloaded; give "
            "a local folder (local-dir:path)"
        )
    return next(filter(None, found)).parent


def source(network):
    """A network's name as open_clip builds it from what is here: `hf-hub:` becomes the `local-dir:` of its
    files. Raises ValueError, FileNotFoundError."""
    if not has_scheme(network):
        return network
    folder = folder_of(network)
    if not isinstance(inside(files.read_json(folder / BESIDE[0]), "model_cfg"), dict):
        name = files.few([network])
        said = f"{name} has no {BESIDE[0]} with a model_cfg; name the network and give these as its weights"
        raise ValueError(f"{said}: --network ViT-B-16 --pretrained {name}")
    statistics_beside(folder)
    return f"{LOCAL}{folder}"


def statistics_beside(path):
    """Mean and std of the preprocessing that the files beside weights in Hugging Face's layout name, as
    open_clip's configuration has them, or {}. Raises ValueError where they are none."""
    if not path.is_dir() and path.name not in WEIGHTS:
        return {}
    folder = path if path.is_dir() else path.parent
    for name, prefix, keys in ((BESIDE[0], "", ["preprocess_cfg"]), (BESIDE[2], "image_", [])):
        about = inside(files.read_json(folder / name), *keys)
        found = {key: inside(about, prefix + key) for key in ("mean", "std")}
        if None in found.values():
            continue
        three = all(isinstance(value, list) and len(value) == 3 for value in found.values())
        if not three or not all(map(_is_share, sum(found.values(), []))) or not all(found["std"]):
            said = f"{folder / name}: mean and std of its preprocessing are not three numbers of 0 to 1 each"
            raise ValueError(f"{said}, std above 0; get the file again")
        return found
    return {}


def _is_share(number):
    return type(number) in (int, float) and 0 <= number <= 1


def reason(error):
    """What another library says went wrong, on one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__


def inside(about, *keys):
    """What lies under these keys in a document of JSON, or None."""
    for key in keys:
        about = about.get(key) if isinstance(about, dict) else None
    return about


# ---------------------------------------------------------------------- transformers' names

# of CLIP -> open_clip's, in the order in which they are replaced
CLIP = [
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_projection\.weight$", "text_projection"),
]
# of SigLIP, whose image encoder is one of timm's
SIGLIP = [
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^(vision_model\.encoder.*)\.self_attn\.in_proj_", r"\1.attn.qkv."),
    (r"^(vision_model\.encoder.*)\.self_attn\.out_proj\.", r"\1.attn.proj."),
    (r"^(vision_model\.encoder.*)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.attention\.(q|kv)_proj\.", r"visual.trunk.attn_pool.\1."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
    (r"^text_model\.head\.", "text_projection."),
]
TEXT = [
    (r"^text_model\.embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^((?:visual\.)?transformer.*)\.self_attn\.", r"\1.attn."),
    (r"^((?:visual\.)?transformer.*)\.layer_norm([12])\.", r"\1.ln_\2."),
    (r"^((?:visual\.)?transformer.*)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"^((?:visual\.)?transformer.*)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
]


def from_transformers(state):
    """A CLIP or SigLIP with the names of Hugging Face's transformers in open_clip's: queries, keys and values
    of a block in one, those of SigLIP's head apart, projections turned."""
    siglip, found = "vision_model.head.probe" in state, {}
    for name, tensor in _joined(state).items():
        if name.endswith("position_ids"):
            continue
        if name in ("visual_projection.weight", "text_projection.weight"):
            tensor = tensor.T.contiguous()
        for pattern, replacement in (*(SIGLIP if siglip else CLIP), *TEXT):
            name = re.sub(pattern, replacement, name)
        found[name] = tensor[None] if name == "visual.trunk.pos_embed" else tensor
    if siglip:  # single numbers, there in a list each
        found |= {name: t.reshape(()) for name, t in found.items() if name.startswith("logit_")}
    return found


def _joined(state):
    """Queries, keys and values of each block as open_clip has them: in one."""
    found = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*\.self_attn)\.([qkv])_proj\.(weight|bias)", name):
            parts = [state.get(f"{match[1]}.{letter}_proj.{match[3]}") for letter in "qkv"]
            if all(part is not None for part in parts):
                found[f"{match[1]}.in_proj_{match[3]}"] = torch.cat(parts)
        elif match := re.fullmatch(r"(.*\.head\.attention)\.in_proj_(weight|bias)", name):
            query, *rest = tensor.chunk(3)
            found[f"{match[1]}.q_proj.{match[2]}"] = query
            found[f"{match[1]}.kv_proj.{match[2]}"] = torch.cat(rest)
        else:
            found[name] = tensor
    return found
