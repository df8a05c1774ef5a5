"""Beyond one machine: the pooled-feature pass and evaluation on Ray Data (extra `eclip-lib[cluster]`).

The same functions as on one machine, part by part: a worker writes each part's result atomically, so a lost
worker costs one part, a rerun makes only what is missing, and a part that always fails is named and does not
stop the rest. The folder must be one that every machine sees. docs/cluster.md plans GCC3M and CC12M."""

import warnings
from functools import partial
from pathlib import Path
from uuid import uuid4

import pandas as pd
from tqdm.auto import tqdm

from .. import files
from ..evaluation import evaluate
from ..evaluation.evaluator import read_rows
from ..experiment import core_digest
from ..feature_cache import Cache, CacheJob
from . import outputs

RETRIES = 2  # of a part whose worker died, before it is tried once more alone


class _Worker:
    """One process of Ray Data's pool. setup: () -> function of a part's number, called once a worker: the
    models are loaded there."""

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


def scatter(setup, count, done, what, workers, gpus=0):
    """Do the parts 0 to `count` - 1 for which done(number) is false on a pool of Ray workers, `gpus` (a
    number, or a share) for each, and warn about every part that could not be made -> what was said of them.
    what: names the job in bar and warning."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "running on a cluster needs Ray: .venv/bin/pip install -c constraints.txt -e '.[cluster]'"
        ) from error
    todo = [number for number in range(count) if not done(number)]
    if not todo:
        return []
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except Exception as error:  # it has no class of its own for a start that takes too long
            first = str(error).partition("\n")[0][:150]
            said = f"Ray did not start ({first}); try again, run without --ray"
            raise ValueError(f"{said}, or name a cluster by RAY_ADDRESS") from error
    errors = {}
    with tqdm(total=len(todo), desc=what, unit="part") as bar:
        _pool(setup, todo, workers, gpus, RETRIES, errors, bar)
        # a worker that dies may take parts along that are not to blame: once more, each with a pool to itself
        for number in [number for number in todo if number not in errors]:
            if not done(number):
                _pool(setup, [number], 1, gpus, 0, errors, bar)
    failed = []
    for number in todo:
        if not done(number):
            why = errors.get(number) or "its worker died each time"
            failed.append(f"{what}: part {number} was not made: {why}")
            warnings.warn(failed[-1], stacklevel=3)
    return failed


def _pool(setup, numbers, workers, gpus, retries, errors, bar):
    """One pass of a pool over some parts; errors: {number: error, "" where there was none} is filled with
    those that came back."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.max_errored_blocks = -1  # a part that kills its workers is left out, not fatal
    context.enable_progress_bars = context.print_on_execution_start = False
    items = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    pool = ActorPoolStrategy(size=min(workers, len(numbers)), max_tasks_in_flight_per_actor=1)
    fate = {"max_task_retries": retries, "max_restarts": -1}
    parts = items.map_batches(
        _Worker, fn_constructor_args=(setup,), batch_size=1, num_gpus=gpus, compute=pool, **fate
    )
    for row in parts.iter_rows():
        errors[row["number"]] = row["error"]
        bar.update()


def cache_features(load, source, folder, pool=2, gpus=0, workers=0, keep=True, **options):
    """`feature_cache.cache_features` on a cluster -> `Cache` of all parts that could be made, with a warning
    that names the others.

    load: () -> (clip, masks), called in every worker. pool: how many workers; workers: processes that decode
    beside each. options: views, augment, seed, batch_size."""
    clip, masks = load()
    job = CacheJob(clip, source, folder, masks, **options)

    def fill(view):
        def setup():
            clip, masks = load()
            return partial(CacheJob(clip, source, folder, masks, **options).make, view=view, workers=workers)

        shards = job.views[view]
        failed = scatter(setup, len(source.parts), shards.done, f"cache {shards.folder}", pool, gpus)
        return job.finish(view, failed)

    return Cache(job, fill, keep)


def evaluate_parts(load, dataset, folder, workers=2, gpus=0, size=200, batch_size=32, **options):
    """`evaluation.evaluate` on a cluster: parts of `size` images, each one's rows a CSV in `folder` -> all
    rows, in the dataset's order.

    load: () -> (explainer of the registry, clip). options: `evaluate`'s. Raises ValueError where the folder
    holds rows of another evaluation, or a part could not be made: those that could stay there."""
    explain, clip = load()
    identity = getattr(explain, "identity", [uuid4().hex])  # of one's own: nobody knows when it changes
    about = {"explainer": identity, "options": options, "size": size, "code": core_digest()}
    about |= dataset.identity | clip.identity
    folder = Path(folder)
    outputs.require_free([(folder / "about.json", outputs.ABOUT)])
    note = files.read_json(folder / "about.json")
    if note and files.digest(note) != files.digest(about):
        raise ValueError(f"{folder} holds rows of another evaluation; name another folder, or empty it")
    if not note:  # parts without a whole note are of nobody knows what
        old = list(folder.glob("[0-9][0-9][0-9][0-9][0-9].csv"))
        outputs.require_free([(path, outputs.ROWS) for path in old])
        for path in old:
            path.unlink()
    files.write(folder / "about.json", files.as_json(about))
    paths = [folder / f"{number:05d}.csv" for number in range(-(-len(dataset) // size))]

    def setup():
        explain, clip = load()

        def work(number):
            part = dataset.part(number * size, (number + 1) * size)
            named, description = {identity[0]: explain}, f"part {number}"
            rows = evaluate(named, part, clip, 0, batch_size, description=description, **options)
            files.write(paths[number], files.as_csv(rows, index=False))

        return work

    done = lambda number: read_rows(paths[number]) is not None  # noqa: E731
    scatter(setup, len(paths), done, f"evaluation {folder}", workers, gpus)
    found = [rows for path in paths if (rows := read_rows(path)) is not None]
    if lacking := len(paths) - len(found):
        said = f"{lacking} of {len(paths)} parts of {dataset.name} could not be evaluated, as warned of"
        raise ValueError(f"{said}; the others are kept in {folder}: mend the cause and run again")
    return pd.concat(found, ignore_index=True)
