"""Beyond one machine: the pooled-feature pass and evaluation on Ray Data (extra `eclip-lib[cluster]`).

The same functions as on one machine, part by part: a worker writes each part's result atomically, so a lost worker costs one part, a
rerun makes only what is missing, and a part that always fails is named and does not stop the rest. The folder must be one that every
machine sees. docs/cluster.md plans GCC3M and CC12M."""

import json
import warnings
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .cache import digest, finish, intact, make_shard, plan, write
from .evaluation import evaluate

RETRIES = 2  # of a part whose worker died


class _Worker:
    """One process of Ray Data's pool. setup: () -> function of a part's number, called once a worker: the models are loaded there."""

    def __init__(self, setup):
        self.work = setup()

    def __call__(self, batch):
        errors = []
        for number in batch["number"].tolist():
            try:
                self.work(number)
                errors.append("")
            except Exception as error:  # reported with its part; the others go on
                errors.append(f"{type(error).__name__}: {error}")
        return {"number": batch["number"], "error": errors}


def scatter(setup, todo, workers, gpus=0, description="parts"):
    """Do the parts `todo` on a pool of Ray workers, `gpus` (a number, or a share) for each -> {number: error} of those that raised; one
    that killed its worker is simply not done."""
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise ValueError("running on a cluster needs Ray: pip install 'eclip-lib[cluster]'") from error
    if not todo:
        return {}
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    context = DataContext.get_current()
    context.max_errored_blocks = -1  # a part that kills its workers is left out, not fatal
    context.enable_progress_bars = context.print_on_execution_start = False
    parts = ray.data.from_items([{"number": number} for number in todo], override_num_blocks=len(todo)).map_batches(
        _Worker, fn_constructor_args=(setup,), batch_size=1, compute=ActorPoolStrategy(size=min(workers, len(todo))), num_gpus=gpus,
        max_task_retries=RETRIES, max_restarts=-1,
    )  # fmt: skip
    rows = tqdm(parts.iter_rows(), total=len(todo), desc=description, unit="part")
    return {row["number"]: row["error"] for row in rows if row["error"]}


def _report(what, failed, missing):
    """Warn about parts without a result; `failed`: {number: error}."""
    for number in missing:
        warnings.warn(f"{what}: part {number} was not made: {failed.get(number, 'its worker died each time')}", stacklevel=3)


def cache_features(load, source, folder, workers=2, gpus=0, **options):
    """`cache.cache_features` on a cluster -> `Cache` of all parts that could be made, with a warning that names the others.

    load: () -> (clip, masks), called in every worker. options: views, augment, seed, batch_size."""
    clip, masks = load()
    folder, about = plan(clip, source, folder, masks, **options)
    shards = [folder / f"{number:05d}.safetensors" for number in range(len(source.parts))]

    def setup():
        clip, masks = load()
        return lambda number: make_shard(clip, source, masks, folder, about, number)

    failed = scatter(setup, [n for n, shard in enumerate(shards) if not intact(shard)], workers, gpus, "caching features")
    _report(f"cache {folder}", failed, [n for n, shard in enumerate(shards) if not intact(shard)])
    return finish(folder, about, [shard for shard in shards if intact(shard)])


def evaluate_parts(load, dataset, folder, label, workers=2, gpus=0, size=200, batch_size=32):
    """`evaluation.evaluate` on a cluster: parts of `size` images, each one's rows a CSV in `folder` -> all rows, in the dataset's order,
    with a warning that names the parts that could not be made.

    load: () -> (explainer, clip). label: a word for the explainer, part of what the folder is for. Raises ValueError where the folder holds
    rows of another evaluation."""
    clip = load()[1]
    about = {"explainer": label, "network": clip.network, "weights": clip.pretrained, "model": digest(clip.model), "dataset": dataset.name,
             "images": len(dataset), "size": size, "batch_size": batch_size}  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "about.json").exists() and json.loads((folder / "about.json").read_text()) != about:
        raise ValueError(f"{folder} holds rows of another evaluation; name another folder, or empty it")
    write(folder / "about.json", json.dumps(about, indent=1).encode())
    paths = [folder / f"{number:05d}.csv" for number in range(-(-len(dataset) // size))]

    def setup():
        explainer, clip = load()

        def work(number):
            part = dataset.part(number * size, (number + 1) * size)
            rows = evaluate(explainer, part, clip, batch_size=batch_size, description=f"part {number}")
            write(paths[number], rows.to_csv(index=False).encode())

        return work

    failed = scatter(setup, [n for n, path in enumerate(paths) if not path.exists()], workers, gpus, "evaluating")
    _report(f"evaluation {folder}", failed, [n for n, path in enumerate(paths) if not path.exists()])
    done = [pd.read_csv(path, dtype={"image_id": str}, float_precision="round_trip") for path in paths if path.exists()]
    if not done:
        raise ValueError(f"no part of {dataset.name} could be evaluated: {next(iter(failed.values()), 'the workers died')}")
    return pd.concat(done, ignore_index=True)
