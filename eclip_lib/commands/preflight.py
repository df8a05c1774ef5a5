"""Before a run: what of all that it needs is not there, what a run without that leaves out, and what decides
it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm

from .. import files
from ..networks import checkpoints, demo
from ..networks.hugging_face import has_scheme
from ..networks.loading import empty_clip, require_device
from ..poolings import GROUND_TRUTH
from ..profiles import INCIDENTAL, Profile
from . import outputs, resources

SOME = r"present.*|partial: \d+ of \d+ images"  # what can be run
BEYOND = ("CLIP's own", "pixel saliency", "noise")  # the masks of the first ViT, see `pooling_ablation`


@dataclass(frozen=True)
class Lack:
    """What is missing, where it was looked for, how to get it, and the `parts` (networks, masks, datasets,
    "pairs") that cannot be run without it. `file`: registered weights, which come by themselves."""

    what: str
    where: str
    how: str
    parts: list[str]
    file: str = ""

    def __str__(self):
        how = "comes by itself where there is a network" if self.file else self.how
        return f"missing: {self.what}, looked for in {self.where}; {how or 'nothing gets it by itself'}"


def require_known(run, device):
    """Raise ValueError, FileNotFoundError for a setting that names nothing, before any work; of files and
    data that are not here `lacks` tells, of a GPU `profiles.checked`."""
    if not device.startswith("cuda"):
        require_device(device)
    outputs.folder(run.out)
    for network in run.networks:
        empty_clip(network)
        for tag in (run.pretrained, *run.replicates.get(network, ()), run.scratch.get(network)):
            _require_weights(network, tag)
    if other := {*run.replicates} - {*run.networks}:
        raise ValueError(f"replicates: {files.few(sorted(other))} is none of the run's networks")
    if run.pairs and not run.masks:
        raise ValueError("masks: a training needs one at least, like DINO: vit_base_patch16_224.dino")
    if taken := {GROUND_TRUTH, *BEYOND} & {*run.masks}:
        raise ValueError(f"masks: {files.few(sorted(taken))} is another mask's name; give it one of its own")
    for name, (network, _) in run.mask_models.items():
        demo.require(network)
        if not (has_scheme(network) or timm.is_model(network)):
            known = [*demo.ATTENTIONS, *timm.list_models()]
            files.require_known(network, known, f"masks: {name}: neither timm nor the demo has a model")
    where = run.projection or "a/b"
    if not (
        files.place(where).exists() or Path(where).suffix in checkpoints.SUFFIXES or where.count("/") == 1
    ):
        raise FileNotFoundError(
            f"projection: no pair at {where}; name a file, a folder or a hub's repository"
        )


def _require_weights(network, tag):
    if tag in (None, "default") or checkpoints.is_path(tag) or has_scheme(tag):
        return
    if network in demo.NETWORKS:
        demo.checkpoint(network, tag)
    elif not checkpoints.registered(network.removesuffix("-quickgelu"), tag):
        known = open_clip.list_pretrained_tags_by_model(network)
        files.require_known(tag, known, f"{network} has no weights")


def lacks(run, training=True) -> list[Lack]:
    """All that a run needs and does not find, without reading much of what is there; masks and pairs only
    where it is `training`."""
    weights, found = checkpoints.registry()["weights"], named(run)
    for thing in resources.status(run).itertuples():
        if re.fullmatch(SOME, thing.state):
            continue
        network, _, file = thing.part.partition(": ")
        parts = [thing.part if thing.part in run.datasets else "pairs"]
        if file in weights:
            masks = [name for name, (model, _) in run.mask_models.items() if model == network]
            parts = [network] if network in run.networks else masks
        comes = file in weights and not (checkpoints.folder() / file).exists()
        state = thing.state.removeprefix("missing").lstrip(": ")
        what = f"{thing.part} ({state})" if state else thing.part
        found.append(Lack(what, thing.where, thing.how, parts, file if comes else ""))
    return [lack for lack in found if training or not {"pairs", *run.masks} >= set(lack.parts)]


def named(run):
    """Files that the settings name and that are not there."""
    named = [(run.pretrained, run.networks), (run.projection, ["projection"])]
    named += [(checkpoint, [name]) for name, (_, checkpoint) in run.mask_models.items()]
    named += [(run.scratch[network], [network]) for network in run.networks if network in run.scratch]
    known, found = checkpoints.registry()["weights"], []
    for word, parts in named:
        file = word and word not in known and Path(word).suffix in checkpoints.SUFFIXES
        if file and not files.place(word).is_file():
            found.append(Lack(f"the file of {', '.join(parts)}", word, "", parts))
    return found


def left_out(run, training=True, go_on=False, say=print) -> list[str]:
    """Look for all that a run needs; weights that come by themselves are fetched -> the parts that are to be
    left out, none unless `go_on`. Says what is missing, a line each; raises ValueError where something is,
    or where nothing is left to run."""
    found = lacks(run, training)
    tried = go_on or all(lack.file for lack in found)
    gone = [lack for lack in found if not (tried and lack.file and _obtained(lack.file, say))]
    for lack in gone:
        say(str(lack))
    if not gone:
        return []
    parts = list(dict.fromkeys(part for lack in gone if tried or not lack.file for part in lack.parts))
    named, count = ", ".join(parts), len(gone)
    what = f"profile {run.name} needs {count} thing{'s' * (count > 1)} not found here, named above"
    if not go_on:
        raise ValueError(f"{what}; get them, or add --go-on to leave out {named}"[:290])
    if not set(run.networks) - set(parts) or not set(run.datasets) - set(parts) or "projection" in parts:
        raise ValueError(f"{what}, and nothing is left to run without {named}"[:290])
    return parts if set(run.masks) - set(parts) else [*parts, "pairs"]


def _obtained(file, say):
    try:
        return bool(checkpoints.obtain(file))
    except (OSError, ValueError) as error:
        say(" ".join(str(error).split()))
        return False


# ---------------------------------------------------------------------- what it reads and writes


def weights(run):
    """The files of weights that a run names, or that are registered for its networks and masks."""
    words = [run.pretrained, run.projection, *run.scratch.values()]
    words += [checkpoint for _, checkpoint in run.mask_models.values()]
    named = checkpoints.files_of(*(word for word in words if word and checkpoints.is_path(word)))
    # a network's configuration, where it is one's own
    known = [*resources.weight_files(run), *(f"{network}.json" for network in run.networks)]
    return named + [checkpoints.folder() / name for name in known]


def inputs(run):
    """All that decides every notebook of a run, by content: the settings, the library that notebooks can
    reach with its data files, the demo's models, weights, datasets and pairs."""
    library = Path(__file__).parents[1]
    rooms = [p.name for p in sorted(library.iterdir()) if p.suffix == ".py" or (p / "__init__.py").exists()]
    code = files.code_digest(*(name for name in rooms if name not in ("commands", "cli.py")))
    data = [p for p in sorted(library.rglob("*")) if p.suffix in (".yaml", ".tsv", ".md")]
    demo = sorted((files.REPOSITORY / "data" / "demo").glob("*"))
    models = [p for p in demo if p.suffix in (".safetensors", ".gz", ".json")]
    digests = [[p.name, files.digest(p)] for p in [*data, *models, *weights(run)] if p.is_file()]
    settings = run.model_dump(mode="json", exclude={"out", "changed", "saved", *INCIDENTAL})
    states = [_state(lambda name=name: run.load_dataset(name).identity) for name in run.datasets]
    return files.digest([settings, code, digests, states, _state(lambda: _stamps(run.load_pairs()))])


def _stamps(source):
    return [source.about, [source.stamp(part) for part in source.parts]]


def _state(look):
    try:
        return look()
    except (OSError, ValueError) as error:  # the notebook will say so
        return str(error)


def require_free(run, books, training):
    """A run writes over nothing that is committed, nor over what it reads. Raises ValueError, OSError."""
    for place in (files.REPOSITORY / "notebooks", files.REPOSITORY / "results"):
        if Path(os.path.realpath(run.out)).is_relative_to(os.path.realpath(place)):
            raise ValueError(
                f"--out {files.few([run.out])} lies in the repository's own {place.name}, which runs are "
                "compared with; name a folder of its own, like runs/mine"
            )
    outputs.folder(run.out)
    if other := ", ".join(other_settings(run, run.record.read())):
        raise ValueError(f"{files.few([run.out])} holds a run with other {other[:150]}; name another --out")
    made = [run.out / "notebooks" / path.name for path in books] + written(run, books, training)
    made += [run.place / name for name in ("report.md", "report.html", "timings.csv")]
    outputs.require_free([*made, (run.record.path, outputs.RUN)], [*books, *weights(run)])
    outputs.require_run(run.place, made)


def other_settings(run, facts) -> list[str]:
    """The settings that move numbers and in which the run of a `run.json` is another one; what it left out
    is no other."""
    left = {"networks", "datasets", "replicates", "scratch", "masks", "pairs", "limit", "limit_pairs"}
    names = {*Profile.model_fields} - INCIDENTAL - (left if facts.get("dropped") else set())
    theirs = facts.get("settings", {})
    return [n for n, own in run.model_dump(mode="json", include=names).items() if theirs.get(n, own) != own]


def written(run, books, training):
    """The pairs that notebooks may write, and the tables and figures in a run's folder that they name."""
    pairs = [run.path("pairs", f"{network}-ECLIP") for network in run.networks if training]
    texts = "".join(path.read_text() for path in books)
    there = [file for kind in ("tables", "figures") for file in (run.place / kind).glob("[!.]*")]
    return pairs + [file for file in there if any(name in texts for name in _written(file.stem))]


def _written(stem):
    """How a notebook may write the name of a file: as it is, or ending in a {variable}."""
    return [f'{stem}\\"', *(f"{stem[:k]}_{{" for k, letter in enumerate(stem) if letter == "_")]
