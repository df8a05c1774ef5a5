"""`eclip app`: a page in the browser with the maps of `eclip explain`.

The same file is a Space: copied there as app.py, beside a requirements.txt with `eclip-lib[app] @ git+` and
the repository's address."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np

from eclip_lib import viewer
from eclip_lib.commands.boundary import sentence
from eclip_lib.commands.explain import require_texts, write_npz
from eclip_lib.commands.options import device_of
from eclip_lib.datasets import load_dataset
from eclip_lib.datasets.base import read_image
from eclip_lib.explainers import REGISTRY, named
from eclip_lib.networks import demo
from eclip_lib.networks.loading import load_clip

TITLE = """# Where is it, says CLIP?
CLIP's own map of a text often lights up on everything *but* what the text names; **RCLIP** reverses it,
**ECLIP** puts a trained pair of projections in the place of CLIP's own. The number is CLIP's cosine of
picture and text."""


def networks():
    """The networks that are offered where none are named: the demo's beside a clone, and OpenAI's."""
    return [*(demo.NETWORKS if demo.MERGES.exists() else ()), "ViT-B-32", "ViT-B-16", "RN50"]


class Desk:
    """What the page asks for, without a front end. pretrained, projection and device: as in `eclip
    explain`."""

    def __init__(self, pretrained="default", projection=None, device="auto"):
        self.options, self.projection = (pretrained, device_of(device)), projection
        self.open = lru_cache(maxsize=2)(self._open)
        self.folder = tempfile.TemporaryDirectory(prefix="eclip-")

    def _open(self, network):
        """-> (`Clip`, {method: explainer}, {method: why it does not fit}, what was warned of)."""
        with viewer.noted() as notes:
            clip = load_clip(network, *self.options)
            try:
                pair, why = viewer.pair_of(clip, self.projection), {}
            except (ValueError, OSError) as error:
                pair, why = None, {"eclip": str(error)}
            made, refused = viewer.fitting(clip, REGISTRY, pair)
        return clip, made, refused | why, notes

    def methods(self, network):
        """-> ([(name, method)] of those that fit a network, a sentence for each that does not)."""
        _, made, refused, _ = self.open(network)
        return [(named(method), method) for method in made], "\n".join(refused.values())

    def show(self, picture, texts, network, methods):
        """A picture's path, texts (one a line), a network and methods -> (sheet .png, maps .npz, notes).
        Raises ValueError, OSError."""
        lines = [line.strip() for line in (texts or "").splitlines() if line.strip()]
        require_texts(lines)
        if not picture or not methods:
            raise ValueError("choose a picture" if not picture else "choose a method")
        clip, made, refused, notes = self.open(network)
        fitting = {method: made[method] for method in methods if method in made}
        if not fitting:
            raise ValueError("; ".join(refused[method] for method in methods))
        with viewer.noted() as more:
            (view,) = viewer.views(clip, fitting, [read_image(picture)], lines)
        unfit = [refused[method] for method in methods if method in refused]
        notes = [viewer.limits(network), *unfit, *notes, *more]
        stem = Path(tempfile.mkdtemp(dir=self.folder.name)) / f"{Path(picture).stem[:60]}-maps"
        view.save(f"{stem}.png", "png")
        write_npz(f"{stem}.npz", view.arrays(Path(picture).name) | {"texts": np.array(lines)})
        return f"{stem}.png", f"{stem}.npz", "\n".join(filter(None, notes))

    def examples(self, offered):
        """Pictures to begin with, for the networks that are offered -> [[path, texts]]."""
        found = viewer.several(load_dataset("scenes")) if set(offered) & set(demo.NETWORKS) else {}
        found |= viewer.photographs() if set(offered) - set(demo.NETWORKS) else {}
        rows = []
        for number, (image, texts) in enumerate(found.values(), 1):
            rows.append([str(Path(self.folder.name, f"picture{number}.png")), "\n".join(texts)])
            image.save(rows[-1][0])
        return rows


def page(offered, desk):
    """The page -> gradio's `Blocks`. offered: names of networks."""
    gr = _gradio()
    blank = (None, gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False))

    def show(*asked):
        yield *blank, "…"  # the map of what was asked before goes first
        try:
            sheet, maps, notes = desk.show(*asked)
            yield sheet, *(gr.DownloadButton(value=path, interactive=True) for path in (sheet, maps)), notes
            shutil.rmtree(Path(sheet).parent)  # gradio has copies, which it removes by itself
        except Exception as error:
            yield *blank, sentence(error)

    def fit(network):
        try:
            fitting, others = desk.methods(network)
        except Exception as error:
            return gr.CheckboxGroup(choices=[], value=[]), sentence(error)
        usual = [method for _, method in fitting if method in ("clip", "rclip", "eclip")]
        return gr.CheckboxGroup(choices=fitting, value=usual), others

    examples = desk.examples(offered)
    with gr.Blocks(title="ECLIP", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=1):
                # image_mode: the file's own, since `read_image` scales what has more than 8 bits
                file = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
                picture = gr.Image(examples[0][0], label="picture", height=280, **file)
                texts = gr.Textbox(examples[0][1], label="texts, one a line", lines=2)
                network = gr.Dropdown(offered, value=offered[0], label="network")
                methods = gr.CheckboxGroup(label="methods")
                others = gr.Textbox(label="methods that do not fit this network", interactive=False)
                go = gr.Button("Show the maps", variant="primary")
            with gr.Column(scale=2):
                sheet = gr.Image(label="maps", type="filepath", interactive=False, buttons=["fullscreen"])
                notes = gr.Textbox(label="notes", interactive=False)
                with gr.Row():
                    png = gr.DownloadButton("PNG", interactive=False)
                    npz = gr.DownloadButton("NPZ, with the raw scores", interactive=False)
        gr.Examples(examples, [picture, texts], label="or one of these")
        shown = [sheet, png, npz, notes]
        one = {"concurrency_id": "network", "concurrency_limit": 1}
        run = gr.on([go.click, texts.submit], show, [picture, texts, network, methods], shown, **one)
        changes = [control.change for control in (picture, texts, network, methods)]
        gr.on(changes, lambda: (*blank, ""), None, shown, cancels=run, queue=False)
        gr.on([blocks.load, network.change], fit, network, [methods, others], **one)
    return blocks


def _gradio():
    try:
        import gradio
    except ImportError as error:
        said = f"the page needs gradio ({error})"
        raise ValueError(
            f"{said}: in an environment of its own pip install -e '.[app]' in a clone, or 'eclip-lib[app]'"
        ) from error
    return gradio


def serve(offered=(), port=None, **options):
    """What the command does: the page on this machine until it is stopped. options: of `Desk`."""
    gr = _gradio()
    matplotlib.use("Agg")  # figures are drawn in threads
    # nobody else's fonts
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    shown = page(list(offered) or networks(), Desk(**options))
    shown.launch(server_port=port, theme=theme, show_error=True, max_file_size="50mb")


if __name__ == "__main__":
    serve()
