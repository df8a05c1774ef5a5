"""`eclip promote`: what a whole run made is copied to the committed `results/`."""

import warnings

from .. import files
from ..experiment import load_profile
from ..networks import checkpoints
from ..results import KINDS
from . import outputs, preflight
from .notebooks import notebooks, trains


def promote(profile="demo", out=None, into=None, partial=False):
    """`make results`: copy a run's tables, figures, trained pairs, report and `run.json` into a folder
    (`results/<profile>/`). Returns what was copied.

    Raises FileNotFoundError where nothing is there, ValueError where the run is not whole; `partial` copies
    it all the same, and marks its `run.json`, as one that is killed does. What no notebook made stays."""
    run = load_profile(profile, device="cpu", out=out)
    into = files.REPOSITORY / "results" / run.name if into is None else outputs.folder(into)
    facts, found = run.record.read(), made_in(run.out)
    parts = {path: facts.get("notebooks", {}).get(path.stem, {}) for path in notebooks(run)}
    made = {run.out / name: sha for part in parts.values() for name, sha in part.get("made", {}).items()}
    untold = [path for path, part in parts.items() if not part.get("made")]
    known = {*made, *preflight.written(run, untold, any(map(trains, untold))), *run.out.glob("report.*")}
    sources = sorted(known.intersection(found))
    if not sources:
        command = f"eclip reproduce --profile {profile}"
        raise FileNotFoundError(f"nothing to promote in {run.out}; run `{command}` first")
    wrong = shortcomings(run, facts, parts)
    other = [path for path, sha in made.items() if not path.is_file() or files.digest(path) != sha]
    wrong += [f"{files.few([path.name for path in other])} not as made"] if other else []
    if wrong and not partial:
        raise ValueError(
            f"{run.out} is no whole run of profile {run.name}: {'; '.join(wrong)[:180]}; finish it, or add "
            "--partial, which marks it"
        )
    targets = [into / source.relative_to(run.out) for source in sources]
    outputs.require_free([*targets, (into / "run.json", outputs.RUN)], [*sources, run.record.path])
    outputs.require_run(into, targets)

    def note(*partial):
        text = files.as_json(facts | ({"partial": partial} if partial else {}))
        files.write(into / "run.json", text.replace(f"{files.REPOSITORY}/", ""))

    note(*wrong, "its promotion did not end")
    for source, target in zip(sources, targets, strict=True):
        files.write(target, source.read_bytes())
    note(*wrong)
    strangers = {run.out: {*found} - known, into: {*made_in(into)} - {*targets}}
    for place, said in (
        (run.out, "no notebook of this run, and not copied"),
        (into, "an earlier run; remove those that nothing needs"),
    ):
        if names := sorted(path.name for path in strangers[place]):
            warnings.warn(f"{len(names)} files in {place} are of {said} ({files.few(names)})", stacklevel=2)
    return [*targets, into / "run.json"]


def made_in(folder):
    """The tables, figures, pairs and reports in a run's folder."""
    found = [path for kind, suffix in KINDS.items() for path in (folder / kind).glob(f"[!.]*.{suffix}")]
    return [*found, *folder.glob("report.*")]


def shortcomings(run, facts, parts) -> list[str]:
    """What keeps a run from being the whole of its profile, in words, by its `run.json` and by what that
    says of each notebook."""
    if not facts:
        return ["it has no run.json, or one that is half-written or not of a run"]
    states = {path.stem: part.get("state", "not run") for path, part in parts.items()}
    found = [f"{name} {state}" for name, state in states.items() if state != "complete"]
    for words, kind in (("with", "changed"), ("without", "dropped")):
        named = dict.fromkeys(name for part in [facts, *parts.values()] for name in part.get(kind, ()))
        found += [f"{words} {', '.join(named)}"] if named else []
    if facts.get("profile", run.name) != run.name:
        found.insert(0, f"it is of profile {facts['profile']}")
    elif not facts.get("changed") and (other := preflight.other_settings(run, facts)):
        found.append(f"with other {', '.join(other)} than the profile's now")
    whole = {name: about["images"] for name, about in checkpoints.registry()["datasets"].items()}
    seen = {name: count for name, count in facts.get("datasets", {}).items() if name in whole}
    short = [name for name, count in seen.items() if count < whole[name]]
    return found + [f"{seen[name]} of {whole[name]} images of {name}" for name in short]
