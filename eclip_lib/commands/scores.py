"""`eclip evaluate`: one method over a profile's networks and datasets."""

from .. import files
from ..evaluation import evaluate, summarize
from ..experiment import load_profile
from ..explainers import explainer
from ..networks.checkpoints import files_of
from . import cluster


def measure(method, profile="demo", out=None, ray=0, **parameters):
    """Yields one line of words for every network and dataset; with `out` the rows are written there, one CSV
    each.

    ray: so many Ray workers, 0 for none. ECLIP's pair is `Run.load_pair`'s."""
    run = load_profile(profile, **parameters)
    if ray and not out:
        raise ValueError("--ray needs --out, the folder where the parts are kept")
    if run.projection and method != "eclip":
        raise ValueError("--projection is for the method eclip; no other takes a pair")
    if out:
        out = files.place(out)
        names = [f"{method}-{network}-{name}.csv" for network in run.networks for name in run.datasets]
        files.require_free([out / name for name in names], files_of(run.pretrained, run.projection))
    for network in run.networks:

        def load(network=network):
            clip = run.load_clip(network)
            if method != "eclip":
                return explainer(method, clip), clip
            return explainer(method, clip, projection=run.load_pair(clip)), clip

        explain, clip = load()
        for name in run.datasets:
            dataset = run.load_dataset(name)
            if ray:
                parts, gpus = out / f"{method}-{network}-{name}", int(run.device.startswith("cuda"))
                rows = cluster.evaluate_parts(load, dataset, parts, ray, gpus, batch_size=run.batch_size)
            else:
                rows = evaluate({method: explain}, dataset, clip, run.workers, run.batch_size)
            if out:
                files.write(out / f"{method}-{network}-{name}.csv", files.as_csv(rows, index=False))
            s = summarize(rows, seed=run.seed)
            numbers = f"mIoU {s.mIoU:.2f} (floor {s.floor:.2f}) mSC {s.mSC:.2f}, {s.images:.0f} images"
            yield f"{clip.title} {name} {method}: {numbers}"
