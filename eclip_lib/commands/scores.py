"""`eclip evaluate`: one method over a profile's networks and datasets."""

import warnings
from functools import partial

from .. import files
from ..evaluation import MORE, evaluate, summarize
from ..experiment import load_profile
from ..explainers import explainer, named
from ..networks.checkpoints import files_of
from . import cluster, outputs

FEW = 10  # images of which a bootstrap covers far less than 95 %
SAID = {  # the measures by name, in the order of a line: {what it is called: its column in `summarize`}
    "miou": {"mIoU": "mIoU"},
    "msc": {"mSC": "mSC"},
    "image_threshold": {"mIoU by one threshold an image": "mIoU_image"},
    "argmax": {"argmax mIoU": "mIoU_argmax"},
    "argmax_background": {"argmax mIoU with background": "mIoU_argmax_background"},
    "faithfulness": {"deletion": "deletion", "insertion": "insertion"},
    "road": {"ROAD": "road"},
}
# reversed cosines, maps scaled each by itself, no text: nothing that an argmax over texts could compare
APART = ("rclip", "grad_cam", "bi_model", "legrad", "grad_eclip", "rollout")


def measure(
    method, profile="demo", out=None, ray=0, measures="miou,msc", slide=False, ensemble=False, **parameters
):
    """Yields one line of words for every network and dataset; with `out` the rows are written there, one CSV
    each.

    ray: so many Ray workers, 0 for none. measures: comma-separated, of `SAID`; slide, ensemble: see
    `Segmentation`. ECLIP's pair is `Run.load_pair`'s."""
    asked = files.names(measures, "--measures")
    for name in asked:
        files.require_known(name, SAID, "--measures: no")
    if {"argmax", "argmax_background"} & set(asked) and method in APART:
        said = f"{named(method)} does not compare texts at a pixel, so its argmax means little"
        warnings.warn(f"{said}, see docs/measures.md", stacklevel=2)
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
    datasets = {name: run.load_dataset(name) for name in run.datasets}

    def load(network):
        clip = run.load_clip(network)
        pair = {"projection": run.load_pair(clip)} if method == "eclip" else {}
        return explainer(method, clip, **pair), clip

    for network in run.networks[1:]:
        load(network)  # one that does not fit is named before the first is scored
    for network in run.networks:
        explain, clip = load(network)
        for name, dataset in datasets.items():
            if ray:
                parts, more = out / stem(network, name), {"batch_size": run.batch_size, **options}
                gpus = int(run.device.startswith("cuda"))
                rows = cluster.evaluate_parts(partial(load, network), dataset, parts, ray, gpus, **more)
            else:
                rows = evaluate({method: explain}, dataset, clip, run.workers, run.batch_size, **options)
            if out:
                outputs.replace(out / f"{stem(network, name)}.csv", files.as_csv(rows, index=False))
            yield f"{clip.title} {name} {method}: {in_words(summarize(rows, seed=run.seed), asked)}"


def in_words(summary, asked) -> str:
    """What was asked for of `summarize`, in % with its 95 % interval over images, which few have not."""
    said, few = [], summary["images"] < FEW
    for name, column in (both for measure in SAID if measure in asked for both in SAID[measure].items()):
        value, low, high = summary[[column, f"{column}_low", f"{column}_high"]]
        interval = "" if few else f" [{low:.2f}, {high:.2f}]"
        floor = f" (floor {summary['floor']:.2f} %)" if column == "mIoU" else ""
        said.append(f"{name} {value:.2f} %{interval}{floor}")
    few = ", too few for an interval" if few else ""
    return f"{', '.join(said)}; {summary['images']:.0f} images{few}"
