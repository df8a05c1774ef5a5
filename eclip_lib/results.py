"""What a run writes, tables, figures, pairs and `run.json`, and how it is checked."""

import io
import re
import time
from datetime import datetime
from pathlib import Path

from matplotlib.collections import PathCollection
from PIL import Image
from pydantic import PrivateAttr

from . import files, provenance
from .evaluation.regression import compare
from .profiles import INCIDENTAL, Profile
from .projection import Projection

KINDS = {"tables": "csv", "figures": "png", "pairs": "safetensors"}  # what a run makes
TOLERANCE = 0.05  # of a regression cell, in the table's own unit: percent, mostly; see docs/architecture.md


class Results(Profile):
    """A profile with a folder. `changed` names the settings that differ from the profile's file; `dropped`
    the networks, masks and datasets that were not there and are left out.

    `out` is the folder that is written. A notebook opened for one of the profile's networks in another run's
    folder is a `part` of that run: what is kept by its contents is shared (features, trainings, rows), its
    tables, figures and pairs lie below `out`/parts, and a run of all networks measures only what is
    missing."""

    name: str
    out: Path
    part: str = ""
    whole: list[str] = []  # the networks of the run, also where this is a part of it
    changed: list[str] = []
    dropped: list[str] = []
    saved: list[str] = []  # tables of this notebook, in order
    _made: dict = PrivateAttr(default_factory=dict)  # file of this notebook: its digest, for `run.json`
    _seen: dict = PrivateAttr(default_factory=dict)  # what was loaded, for `run.json`
    _notebook: str = ""
    _begin: float = 0

    @property
    def place(self) -> Path:
        """The folder of this run's own tables, figures, pairs, report and `run.json`."""
        return self.out / "parts" / self.part if self.part else self.out

    def path(self, kind, name):
        """`place`/tables/name.csv, `place`/figures/name.png or `place`/pairs/name.safetensors."""
        return self.place / kind / f"{name}.{KINDS[kind]}"

    def committed(self, kind, name):
        """The same file as committed."""
        return files.REPOSITORY / "results" / self.name / kind / self.path(kind, name).name

    def folders(self, kind):
        """Where a table or figure may lie: this run's folder, then the committed results of the profile."""
        own, committed = (where(kind, "any").parent for where in (self.path, self.committed))
        return [own] if self.compared_by else [own, committed]

    # ------------------------------------------------------------------ what it writes

    def write(self, path, data):
        """Write a file of this run, which counts as done while it is as it was written."""
        files.write(path, data)
        self._made[str(Path(path).relative_to(self.place))] = files.digest(Path(path))

    def save_table(self, table, name):
        """Write a table of this run (index included where it is named) as CSV and return it; an empty one
        leaves no file."""
        self.saved.append(name)
        if table.empty:
            self.path("tables", name).unlink(missing_ok=True)
        else:
            index = table.index.names != [None]
            self.write(self.path("tables", name), files.as_csv(table, index=index, float_format="%.4f"))
        return table

    def save_figure(self, figure, name):
        """Write a matplotlib figure of this run as an RGB PNG: plots, also those over pictures, at 200 dpi,
        sheets of pictures, which are small themselves, at 100."""
        drawn, small = io.BytesIO(), io.BytesIO()
        pictures = any(ax.images for ax in figure.axes)
        points = any(isinstance(mark, PathCollection) for ax in figure.axes for mark in ax.collections)
        dpi, quick = 100 if pictures and not points else 200, {"compress_level": 0}
        figure.savefig(drawn, dpi=dpi, bbox_inches="tight", pil_kwargs=quick)
        figure.set_layout_engine("none")  # laid out: the notebook shows it as it was saved
        Image.open(drawn).convert("RGB").save(small, "PNG")
        self.write(self.path("figures", name), small.getvalue())

    def save_timings(self, table):
        """Timings are no results: they lie beside the tables, and nothing compares them."""
        files.write(self.place / "timings.csv", files.as_csv(table, index=False))

    def save_pair(self, pair, network):
        """Keep the pair trained for a network for the notebooks that follow."""
        self.write(self.path("pairs", f"{network}-ECLIP"), pair.as_bytes())

    def load_pair(self, clip):
        """ECLIP's pair for a network: the run's own `projection`, else the one that notebook 05 trained in
        this run, else the committed one. Raises FileNotFoundError that names every network of the run without
        one, ValueError."""
        if self.projection:
            return Projection.find(self.projection, clip)
        found = {network: self.pair_of(network) for network in [clip.network, *self.networks]}
        if found[clip.network] is None:
            lacking = ", ".join(network for network, path in found.items() if path is None)
            said = f"no trained pair for {lacking}: run notebook 05 first"
            raise FileNotFoundError(f"{said} (it writes {self.place / 'pairs'})")
        return Projection.load(found[clip.network], clip)

    def pair_of(self, network):
        """Where a network's trained pair lies: this run's, else that of a part or of the whole in the same
        folder whose training is the same, else the committed one; or None."""
        own, committed = (where("pairs", f"{network}-ECLIP") for where in (self.path, self.committed))
        others = [self.out, self.out / "parts" / network]
        places = [own, *(place / "pairs" / own.name for place in others if self._trains_as(place))]
        places += [committed] if set(self.compared_by) <= {"networks", "datasets", "limit"} else []
        return next((place for place in places if place.exists()), None)

    def _trains_as(self, place):
        """Whether the run in a folder trains its pairs as this one does."""
        theirs = provenance.Record(place / "run.json").read().get("settings")
        decides = {"pretrained", "precision", "masks", "pairs", "limit_pairs", "training", "seed"}
        ours = self.model_dump(mode="json", include=decides)
        return bool(theirs) and all(theirs.get(name) == value for name, value in ours.items())

    # ------------------------------------------------------------------ where its numbers come from

    @property
    def record(self) -> provenance.Record:
        """`run.json`, which all processes of this run add to."""
        return provenance.Record(self.place / "run.json")

    def saw(self, kind, name, fact):
        """Keep fact() for `run.json`, once."""
        found = self._seen.setdefault(kind, {})
        if name not in found:
            found[name] = fact()

    def begin(self, notebook):
        """From here on the run is a notebook's, which ends with `check`."""
        self._notebook, self._begin = notebook, time.time()
        self.note(notebook, self._begin, "begun")

    def note(self, notebook, begin, state, **facts):
        """Add to `run.json` what this run is and has loaded so far, and how far one of its notebooks is,
        which began at `begin` (time.time)."""
        own = [f"{name} {getattr(self, name)}" for name in self.changed if name not in INCIDENTAL]
        own = [re.sub("[][{}']", "", words) for words in own]
        about = {"changed": own, "dropped": self.dropped, **provenance.commit()}
        about["device"] = provenance.device_name(self.device)
        facts |= {"state": state, "when": datetime.fromtimestamp(begin).isoformat(timespec="seconds")}
        facts["seconds"] = round(time.time() - begin, 1)
        place = {"name", "out", "part", "whole", "root", "saved", "changed", "dropped"}
        settings = self.model_dump(mode="json", exclude=place)
        whole = {"profile": self.name, **about, "versions": provenance.versions(), "settings": settings}
        self.record.add(whole | self._seen | {"notebooks": {notebook: about | facts}})

    # ------------------------------------------------------------------ what it checks

    @property
    def compared_by(self):
        """The settings that make this run another experiment than the committed one."""
        return [name for name in self.changed if name not in INCIDENTAL] + ["dropped"] * bool(self.dropped)

    def check(self, tolerance=TOLERANCE):
        """The regression cell: compare every table that this notebook saved with the committed one, every
        number and word of it; the notebook is complete then.

        Returns a line a table. Raises AssertionError that names all tables and numbers that are off by more
        than `tolerance`, or by a hundredth of the largest number of their column where that is less."""
        if self.compared_by:
            own = ", ".join(self.compared_by)
            said = f"not compared with results/{self.name}: this run has its own {own}"
        else:
            ours, theirs = (where("tables", "any").parent for where in (self.path, self.committed))
            said = compare(self.saved, ours, theirs, f"results/{self.name}", tolerance)
        if self._notebook:
            self.note(self._notebook, self._begin, "complete", made=self._made)
        return said
