"""Rendered scenes with captions, written as webdataset shards (img2dataset's: `.jpg`, `.txt`, `.json`)."""

import io
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import webdataset
from tqdm.auto import tqdm

from eclip_lib import files
from eclip_lib.datasets import scenes


def _write_shard(path, seed, indices, levels, colours, background, quality):
    with files.replacing(path) as partial, webdataset.TarWriter(str(partial), mtime=0) as tar:
        for index in indices:
            level = levels[index % len(levels)]
            scene = scenes.sample(seed, index, level, colours)
            picture = io.BytesIO()
            scene.image.save(picture, "JPEG", quality=quality, subsampling=0)
            words = scenes.caption(scene, seed, index, background=background)
            about = {"seed": seed, "index": index, "level": level, "colours": colours, "caption": words}
            sample = {"jpg": picture.getvalue(), "txt": words, "json": json.dumps(about)}
            tar.write({"__key__": f"{index:09d}", **sample})


def write_scenes(
    folder,
    count,
    seed=scenes.SEEDS["train"],
    start=0,
    levels=("plain", "cluttered"),
    colours="typical",
    background=0.1,
    shard=2000,
    workers=2,
    quality=95,
):
    """Render scenes start … start + count of `seed`, levels in turn, into `folder/00000.tar` and so on.

    Finished shards are kept, so an interrupted call resumes. Returns the list of shard paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, jobs = [], []
    with ProcessPoolExecutor(workers) as pool:
        for number, first in enumerate(range(start, start + count, shard)):
            paths.append(folder / f"{number:05d}.tar")
            if not paths[-1].exists():
                drawn = range(first, min(first + shard, start + count))
                options = (seed, drawn, levels, colours, background, quality)
                jobs.append(pool.submit(_write_shard, paths[-1], *options))
        for job in tqdm(jobs, desc="rendering scenes", unit="shard", disable=not jobs):
            job.result()
    return paths
