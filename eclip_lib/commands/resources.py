"""`eclip data`: what a profile needs, what of it is here, and how to get the rest."""

import errno
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from .. import downloads, files
from ..datasets import load_dataset
from ..datasets.tars import WebPairs
from ..networks import checkpoints
from . import outputs


@dataclass(frozen=True)
class Resource:
    """One thing that a profile needs. `state`: present, partial or missing, with a word why; `checked`: by
    what that is known (`fetch` checks contents); `how`: the command that gets it."""

    part: str
    state: str = "present"
    checked: str = ""
    size: str = ""
    where: str = ""
    licence: str = ""
    how: str = ""


def status(run):
    """What a profile needs -> DataFrame, one `Resource` a line."""
    found = [_dataset(run, name) for name in run.datasets] + ([_pairs(run)] if run.pairs else [])
    found += [_weights(name, network) for name, network in weight_files(run).items()]
    return pd.DataFrame([asdict(resource) for resource in found])


def as_text(found) -> str:
    """`status` for a terminal: a few lines a resource."""
    lines = []
    for thing in found.to_dict("records"):
        lines.append(f"{thing['part']}: {thing['state']} ({thing['size']})")
        more = [(name, thing[name]) for name in ("where", "checked", "licence", "how") if thing[name]]
        lines += [f"    {name:8} {said}" for name, said in more]
    return "\n".join(lines)


def _dataset(run, name):
    about = checkpoints.registry()["datasets"].get(name)
    if about is None:
        return Resource(name, size="rendered", where="eclip_lib/datasets/scenes.py", licence="MIT")
    if run.root_of(name) is None:
        lacking = {"where": "no root given", "how": f"-p root {name}=FOLDER"}
        return Resource(name, "missing", licence=about["licence"], **lacking)
    root = Path(run.root_of(name))
    size = downloads.size(_bytes(about)) if "files" in about else "see the steps"
    checked, wrong = _sizes(about, root)
    try:
        count = len(load_dataset(name, root))
        state = "present" if count >= about["images"] else f"partial: {count} of {about['images']} images"
    except (OSError, ValueError) as error:
        found = any((root / mark).exists() for mark in about["marks"]) or any(root.glob(".*.eclip-partial"))
        state = f"partial: {str(error).splitlines()[0]}" if found else "missing"
    if state == "present" and wrong:
        state = f"partial: {len(wrong)} files are not as they came, e.g. {wrong[0]}"
    how = "" if state == "present" else f"eclip data fetch {name} --root {root}"
    checked = "" if state == "missing" else checked
    return Resource(name, state, checked, size, str(root), about["licence"], how)


def _bytes(about):
    return sum(file["bytes"] for file in about["files"])


def _mark(root, file):
    """Where `fetch` notes what came out of an archive."""
    return root / f".{Path(file['url']).name}.unpacked"


def _sizes(about, root):
    """(what of a dataset is checked here, in words; the files of another size than they came with)."""
    listed = [files.read_json(_mark(root, file)) for file in about.get("files", ())]
    if not listed or not all(listed):
        return "names, not sizes or contents", []
    return "sizes, not contents", [name for names in listed for name in downloads.differing(names, root)]


def _pairs(run):
    kind, _, place = run.pairs.partition(":")
    if kind.startswith("scenes"):
        return Resource(run.pairs, size="rendered", licence="MIT")
    name = registered_pairs(run.pairs)
    about = checkpoints.registry()["pairs"].get(name)
    if about and "files" in about:
        checked, wrong = _sizes(about, Path(place))
        there = all((Path(place) / mark).exists() for mark in about["marks"])
        state = "missing" if not there else f"partial: {wrong[0]} is not as it came" if wrong else "present"
        size = downloads.size(_bytes(about))
    else:
        found = _found(kind, place)
        stored = sum(path.stat().st_size for path in found if path.is_file())
        size = downloads.size(stored) if found or not about else f"{about['images']:,} pictures"
        state, checked = (f"present: {len(found)} files", "names") if found else ("missing", "")
    how = "" if state.startswith("present") or not name else f"eclip data fetch {name}"
    return Resource(run.pairs, state, checked, size, place, about["licence"] if about else "its own", how)


def _found(kind, place):
    """The tars that a source of pairs reads, or the one table or folder; [] where there is none."""
    try:
        paths = WebPairs(place).parts if kind == "web" else [files.place(place)]
    except (OSError, ValueError):
        return []
    return [path for path in map(Path, paths) if path.exists()]


def registered_pairs(pairs):
    """The name under which the registry knows a source of pairs, or None."""
    kind, _, place = pairs.partition(":")
    if kind == "coco-train":
        return "coco2017-train"
    return next((name for name in checkpoints.registry()["pairs"] if name in place), None)


def weight_files(run):
    """{registered file: the network it is for} that a profile's CLIPs and masks need."""
    if run.pretrained is None:
        return {}
    tag = "openai" if run.pretrained == "default" else run.pretrained
    found = {checkpoints.registered(network, tag): network for network in run.networks}
    for network, checkpoint in run.mask_models.values() if run.pairs else ():
        known = checkpoint in checkpoints.registry()["weights"]
        found[checkpoint if known else checkpoints.registered(network, "dino")] = network
    return {name: network for name, network in found.items() if name}


def _weights(name, network):
    about, path = checkpoints.registry()["weights"][name], checkpoints.folder() / name
    if path.is_file():
        size = path.stat().st_size
        state = "present" if size == about.get("bytes", size) else "partial: another size than it should have"
    else:
        broken = downloads.partial_of(path).exists()
        state = "partial: a broken transfer" if broken else "missing"
    how = "" if state == "present" else f"eclip data fetch {name}"
    checked = "size, not content" if "bytes" in about else "nothing is published to check it by"
    checked, size = "" if state == "missing" else checked, downloads.size(about.get("bytes"))
    return Resource(f"{network}: {name}", state, checked, size, str(path.parent), about["licence"], how)


def require_known(names):
    """Raise ValueError that names the first one that nothing is known of."""
    known = [name for kind in ("datasets", "pairs", "weights") for name in checkpoints.registry()[kind]]
    for name in names:
        files.require_known(name, known, "nothing known of")


def fetch(name, root):
    """Get a dataset (downloaded, checked, unpacked under `root`) or a registered checkpoint; what is there
    already is checked by sizes and checksums, and fetched again where it differs, which keeps what differed
    beside it. For what needs an account or a crawl, the exact steps. Returns what to print. Raises
    ValueError, OSError."""
    require_known([name])
    known = checkpoints.registry()
    if name in known["weights"]:
        path, unknown = checkpoints.obtain(name, check=True), "sha256" not in known["weights"][name]
        return f"{name}: {path}{' (no checksum is published: not checked)' if unknown else ''}"
    about = (known["datasets"] | known["pairs"])[name]
    if "files" not in about:
        steps = about["steps"].format(root=root)
        return f"{name} cannot be downloaded by a program alone ({about['licence']}):\n{steps}"
    root = outputs.folder(root)
    for place in (root / mark for mark in about.get("marks", ())):
        if place.suffix and place.is_dir():
            said = "a folder is in the way of a file; name another place"
            raise IsADirectoryError(errno.EISDIR, said, str(place))
        for folder in filter(Path.is_file, (place, *place.parents)[bool(place.suffix) :]):
            raise FileExistsError(errno.EEXIST, "", str(folder))
    todo = [file for file in about["files"] if not _as_it_came(file, root)]
    # an archive and what comes out of it lie side by side for a while
    downloads.require_space(root, 2 * sum(file["bytes"] for file in todo), name)
    for file in todo:
        archive, kind = root / Path(file["url"]).name, "sha256" if "sha256" in file else "md5"
        own, brought = root / f".{archive.name}.fetched", files.stamp(archive)
        downloads.fetch(file["url"], archive, file["bytes"], f"{kind}:{file[kind]}")
        ours = brought != files.stamp(archive) or files.read_json(own).get("stamp") == brought
        if ours:  # also for the next run, where this one is killed
            files.write(own, files.as_json({"stamp": files.stamp(archive)}))
        files.write(_mark(root, file), files.as_json(downloads.unpack(archive, root)))
        if ours:
            archive.unlink()
        own.unlink(missing_ok=True)
    found = len(load_dataset(name, root)) if name in known["datasets"] else about["images"]
    return f"{name}: {found} images under {root}"


def _as_it_came(file, root):
    listed = files.read_json(_mark(root, file))
    return bool(listed) and not downloads.differing(listed, root, contents=True)
