"""Image-caption pairs: scenes written as webdataset shards (the layout of img2dataset: `.jpg`, `.txt`, `.json`)."""

import io
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import webdataset
from tqdm.auto import tqdm

from . import scenes


def _write_shard(path, seed, indices, levels, colours, background, quality):
    partial = f"{path}.{os.getpid()}.partial"
    with webdataset.TarWriter(partial, mtime=0) as tar:
        for index in indices:
            level = levels[index % len(levels)]
            scene = scenes.sample(seed, index, level, colours)
            picture = io.BytesIO()
            scene.image.save(picture, "JPEG", quality=quality, subsampling=0)
            caption = scenes.caption(scene, seed, index, background=background)
            about = {"seed": seed, "index": index, "level": level, "colours": colours, "caption": caption}
            tar.write({"__key__": f"{index:09d}", "jpg": picture.getvalue(), "txt": caption, "json": json.dumps(about)})
    os.replace(partial, path)


def write_scenes(
    folder, count, seed=scenes.SEEDS["train"], start=0, levels=("plain", "cluttered"), colours="typical", background=0.1,
    shard=2000, workers=2, quality=95,
):  # fmt: skip
    """Render scenes start … start + count of `seed`, levels in turn, into `folder/00000.tar` and so on.

    Finished shards are kept, so an interrupted call resumes. Returns the list of shard paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, jobs = [], []
    with ProcessPoolExecutor(workers) as pool:
        for number, first in enumerate(range(start, start + count, shard)):
            paths.append(folder / f"{number:05d}.tar")
            if not paths[-1].exists():
                indices = range(first, min(first + shard, start + count))
                jobs.append(pool.submit(_write_shard, paths[-1], seed, indices, levels, colours, background, quality))
        for job in tqdm(jobs, desc="rendering scenes", unit="shard", disable=not jobs):
            job.result()
    return paths
