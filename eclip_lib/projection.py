"""A pair of linear projections (φ_i, φ_t), CLIP's own or a learned one: all that CLIP and ECLIP differ in
(paper §3.1, §3.3)."""

import importlib.metadata
import json
import tomllib
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from . import files
from .downloads import hub

HUB_FILE = "projection.safetensors"


class Projection(nn.Module, ModelHubMixin):
    """A pair of linear projections (φ_i, φ_t): `.image` maps [..., C] to [..., D], `.text` maps [..., Ct] to
    [..., D].

    `reads` says which image features the pair was made for, "tokens" or "feature_map"; `metadata` is a flat
    dict of strings that travels with the saved file (network, weights, how it was trained).
    `push_to_hub(repo)`, `save_pretrained(folder)` and `from_pretrained(repo or folder)` share it on the
    Hugging Face hub, with a card made from the metadata."""

    def __init__(
        self, image_width, text_width, width, image_bias=False, reads="tokens", metadata=None, text_bias=False
    ):
        super().__init__()
        if reads not in ("tokens", "feature_map"):
            raise ValueError(f"a projection reads 'tokens' or 'feature_map', not {reads!r}")
        self.image = nn.Linear(image_width, width, bias=image_bias)
        self.text = nn.Linear(text_width, width, bias=text_bias)
        self.reads, self.metadata = reads, dict(metadata or {})

    @classmethod
    def of_state(cls, state, reads="tokens", metadata=None):
        """The pair that has these tensors, named as in its `state_dict`."""
        (width, text_width), image_width = state["text.weight"].shape, state["image.weight"].shape[1]
        biases = ("image.bias" in state, "text.bias" in state)
        pair = cls(image_width, text_width, width, biases[0], reads, metadata, biases[1])
        pair.load_state_dict(state)
        return pair

    def as_bytes(self) -> bytes:
        """The pair and its metadata as safetensors."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        return save(tensors, metadata={"projection": json.dumps({"reads": self.reads, **self.metadata})})

    def save(self, path: str | Path) -> None:
        """Write `as_bytes`, atomically; the folder is made. Raises OSError."""
        files.write(path, self.as_bytes())

    @classmethod
    def load(cls, path: str | Path, clip=None) -> "Projection":
        """Read a pair that `save` wrote; with `clip`, only one made for that network and its weights (by
        their digest).

        Raises FileNotFoundError, or ValueError where the file is no projection pair or belongs to another
        network."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no projection pair at {path}")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = json.loads((file.metadata() or {})["projection"])
            tensors = load_file(str(path))
            pair = cls.of_state(tensors, metadata.pop("reads"), metadata)
        except Exception as error:
            said = f"{path} is not a projection pair written by Projection.save"
            raise ValueError(f"{said} ({str(error).splitlines()[0][:100]})") from error
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError(f"{path}: weights that are no floats; train the pair again")
        pair.require_sound(path)
        if clip is not None:
            pair.require_made_for(clip, path)
        return pair.requires_grad_(False)

    @classmethod
    def find(cls, where: str | Path, clip) -> "Projection":
        """A pair for `clip` by a word: a file, a folder of pairs (the network's, as notebook 05 names it), or
        a repository on the hub. Raises FileNotFoundError, ValueError, OSError."""
        path = files.place(where)
        if path.is_dir():
            own = path / f"{clip.network}-ECLIP.safetensors"
            return cls.load(own if own.is_file() else path / HUB_FILE, clip)
        if path.is_file() or path.suffix == ".safetensors" or str(where).count("/") != 1:
            return cls.load(path, clip)
        pair = cls.from_pretrained(str(where))
        pair.require_made_for(clip, where)
        return pair.requires_grad_(False)

    def require_sound(self, path):
        """Raise ValueError where cosines in float32 would vanish or overflow."""
        for name, tensor in self.state_dict().items():
            size = float(tensor.double().norm())
            if not (1e-6 if name.endswith("weight") else -1) < size < 1e6:  # a bias may be 0
                said = f"{path}: a projection with weights of size {size:.3g}, which no training gives"
                raise ValueError(f"{said}; train it, or get it, again")

    def require_made_for(self, clip, path="this pair"):
        """Raise ValueError where the pair was trained for another network, for other weights of it, or with
        another activation or image encoder."""
        made_for = {"network": None, "weights": None, **self.metadata}
        own = {**clip.identity, "backbone": clip.identity.get("backbone")}
        contents = ("model", "quick_gelu", "backbone") if "model" in made_for else ("weights",)
        if any(made_for[key] != str(own[key]) for key in ("network", *contents) if key in made_for):
            same = all(made_for[key] == own[key] for key in ("network", "weights"))
            other = ": other weights or another activation under the same name" if same else ""
            raise ValueError(
                f"{path} was made for {made_for['network']} with weights {made_for['weights']}, not for "
                f"{clip.network} with {clip.pretrained}{other}"
            )

    @classmethod
    def from_pretrained(cls, where, **options):
        """A pair that `save` or `save_pretrained` wrote, from a file, a folder or a repository on the hub.
        options: of `hf_hub_download`. Raises FileNotFoundError, ValueError."""
        path = files.place(where)
        if path.is_dir() and not (path / HUB_FILE).exists():
            there = files.few(sorted(file.name for file in path.glob("*.safetensors"))) or "no pair"
            raise FileNotFoundError(f"no {HUB_FILE} in {where}, which holds {there}; name the file of a pair")
        if path.exists():
            return cls.load(path / HUB_FILE if path.is_dir() else path)
        try:
            with hub():
                path = hf_hub_download(str(where), HUB_FILE, **options)
        except (OSError, ValueError) as error:
            said = f"no projection pair at {str(where)[:100]}, here or on the hub"
            raise FileNotFoundError(f"{said} ({str(error).splitlines()[0][:100]})") from error
        return cls.load(path)

    def _save_pretrained(self, save_directory):
        path, card = Path(save_directory, HUB_FILE), Path(save_directory, "README.md")
        if path.is_file() and card.is_file():  # of the pair that was there, unless somebody wrote in it
            made = str(self.load(path).generate_model_card())
            card.unlink() if card.read_bytes() == made.encode() else None
        self.save(path)

    def generate_model_card(self, *args, **kwargs):
        about = ModelCardData(
            pipeline_tag="image-segmentation",  # of the hub's tasks the nearest: where in the picture
            tags=["clip", "eclip", "explainability"],
            license="mit",
            library_name="eclip_lib",
        )
        made = {"reads": self.reads, **self.metadata}
        lines = "\n".join(f"| {name} | `{value}` |" for name, value in made.items())
        words = {"yaml": about.to_yaml(), "network": made.get("network"), "lines": lines}
        template = Path(__file__).with_name("card.md").read_text()
        return ModelCard(template.format(**words, **_links()))


def _links():
    """pyproject.toml's addresses, as the installed package tells them, or the clone that is on the path."""
    try:
        urls = importlib.metadata.metadata("eclip-lib").get_all("Project-URL")
        return dict(url.split(", ", 1) for url in urls)
    except importlib.metadata.PackageNotFoundError:
        return tomllib.loads((files.REPOSITORY / "pyproject.toml").read_text())["project"]["urls"]
