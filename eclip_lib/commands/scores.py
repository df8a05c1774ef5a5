"""`eclip evaluate`: one method over a profile's networks and datasets."""

from .. import files
from ..evaluation import MORE, evaluate, summarize
from ..experiment import load_profile
from ..explainers import explainer
from ..networks.checkpoints import files_of
from . import cluster, outputs

SAID = {  # the measures by name, in the order of a line
    "miou": "mIoU {0.mIoU:.2f} (floor {0.floor:.2f})",
    "msc": "mSC {0.mSC:.2f}",
    "image_threshold": "mIoU by one threshold an image {0.mIoU_image:.2f}",
    "argmax": "argmax mIoU {0.mIoU_argmax:.2f}",
    "argmax_background": "argmax mIoU with background {0.mIoU_argmax_background:.2f}",
    "faithfulness": "deletion {0.deletion:.2f} insertion {0.insertion:.2f}",
    "road": "ROAD {0.road:.2f}",
}


def measure(
    method, profile="demo", out=None, ray=0, measures="miou,msc", slide=False, ensemble=False, **parameters
):
    """Yields one line of words for every network and dataset; with `out` the rows are written there, one CSV
    each.

    ray: so many Ray workers, 0 for none. measures: comma-separated, of `SAID`; slide, ensemble: see
    `Segmentation`. ECLIP's pair is `Run.load_pair`'s."""
    asked = files.names(measures, "--measures")
    if unknown := set(asked) - set(SAID):
        raise ValueError(f"--measures: no {files.few(sorted(unknown))}; there are {', '.join(SAID)}")
    if (slide or ensemble) and not {"argmax", "argmax_background"} & set(asked):
        raise ValueError("--slide and --ensemble are for argmax; add it to --measures")
    options = {"measures": [name for name in MORE if name in asked], "slide": slide, "ensemble": ensemble}
    run = load_profile(profile, **parameters)
    if ray and not out:
        raise ValueError("--ray needs --out, the folder where the parts are kept")
    if run.projection and method != "eclip":
        raise ValueError("--projection is for the method eclip; no other takes a pair")
    # settings of one's own are in the names of the files, so that no rows take the place of others
    own = {name: value for name, value in options.items() if value}
    own |= run.model_dump(mode="json", include={*run.compared_by} - {"networks", "datasets"})

    def stem(network, name):
        word = f"{method}-{network}-{name}" + (f"-{files.digest(own)[:6]}" if own else "")
        return word.replace("/", "-")

    if out:
        out = outputs.folder(out)
        places = [out / f"{stem(network, name)}.csv" for network in run.networks for name in run.datasets]
        rows = [(place, outputs.ROWS) for place in places]
        outputs.require_free(rows, files_of(run.pretrained, run.projection))
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
                parts, gpus = out / stem(network, name), int(run.device.startswith("cuda"))
                rows = cluster.evaluate_parts(
                    load, dataset, parts, ray, gpus, batch_size=run.batch_size, **options
                )
            else:
                rows = evaluate({method: explain}, dataset, clip, run.workers, run.batch_size, **options)
            if out:
                outputs.replace(out / f"{stem(network, name)}.csv", files.as_csv(rows, index=False))
            s = summarize(rows, seed=run.seed)
            numbers = " ".join(said.format(s) for word, said in SAID.items() if word in asked)
            yield f"{clip.title} {name} {method}: {numbers}, {s.images:.0f} images"
