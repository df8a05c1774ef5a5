"""`eclip promote`: what a whole run made is copied to the committed `results/`."""

import warnings

from .. import files
from ..experiment import load_profile
from ..networks import checkpoints
from ..results import KINDS
from . import outputs
from .notebooks import notebooks


def promote(profile="demo", out=None, into=None, partial=False):
    """`make results`: copy a run's tables, figures, trained pairs, report and `run.json` into a folder
    (`results/<profile>/`). Returns what was copied.

    Raises FileNotFoundError where nothing is there, ValueError where the run is not whole; `partial` copies
    it all the same, and marks its `run.json`."""
    run = load_profile(profile, device="cpu", out=out)
    into = files.REPOSITORY / "results" / run.name if into is None else outputs.folder(into)
    found = [path for kind, suffix in KINDS.items() for path in (run.out / kind).glob(f"[!.]*.{suffix}")]
    if not found:
        command = f"eclip reproduce --profile {profile}"
        raise FileNotFoundError(f"nothing to promote in {run.out}; run `{command}` first")
    facts = run.record.read()
    wrong = shortcomings(run, facts)
    if wrong and not partial:
        raise ValueError(
            f"{run.out} is no whole run of profile {run.name}: {'; '.join(wrong)[:180]}; finish it, or add "
            "--partial, which marks it"
        )
    sources = sorted([*found, *run.out.glob("report.*")])
    targets = [into / source.relative_to(run.out) for source in sources]
    note = (into / "run.json", outputs.RUN)
    outputs.require_free([*targets, note], [*sources, run.out / "run.json"])
    outputs.require_run(into, targets)
    for source, target in zip(sources, targets, strict=True):
        files.write(target, source.read_bytes())
    older = {path for kind, suffix in KINDS.items() for path in (into / kind).glob(f"[!.]*.{suffix}")}
    if older := sorted(older - set(targets)):
        said = f"{len(older)} files in {into} are of an earlier run; remove those that nothing needs"
        warnings.warn(f"{said} ({files.few([path.name for path in older])})", stacklevel=2)
    note = files.as_json(facts | ({"partial": wrong} if wrong else {}))
    files.write(into / "run.json", note.replace(f"{files.REPOSITORY}/", ""))
    return [*targets, into / "run.json"]


def shortcomings(run, facts) -> list[str]:
    """What keeps a run from being the whole of its profile, in words, by its `run.json`."""
    if not facts:
        return ["it has no run.json, or one that is half-written or not of a run"]
    parts = facts.get("notebooks", {})
    states = {path.stem: parts.get(path.stem, {}).get("state", "not run") for path in notebooks(run)}
    found = [f"{name} {state}" for name, state in states.items() if state != "complete"]
    for words, kind in (("with", "changed"), ("without", "dropped")):
        named = dict.fromkeys(name for part in [facts, *parts.values()] for name in part.get(kind, ()))
        found += [f"{words} {', '.join(named)}"] if named else []
    whole = {name: about["images"] for name, about in checkpoints.registry()["datasets"].items()}
    seen = {name: count for name, count in facts.get("datasets", {}).items() if name in whole}
    short = [name for name, count in seen.items() if count < whole[name]]
    return found + [f"{seen[name]} of {whole[name]} images of {name}" for name in short]
