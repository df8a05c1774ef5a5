"""`make book`: README, notebooks as committed, report, data and docs as one site."""

import re
import shutil
import tomllib
from pathlib import Path

import jupyter_server_mathjax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project, author, copyright = "ECLIP", "the contributors", "the contributors, MIT"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc, html_theme = "README", "furo"
html_title = "ECLIP: visual explanations for CLIP"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "notebooks/*.ipynb",
    "docs/*.md",
    "data/README.md",
    "data/demo/README.md",
    "results/*/*.md",
]
nb_execution_mode = "off"  # the committed outputs
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # needs a kernel
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 4
html_static_path = [
    str(Path(jupyter_server_mathjax.__file__).with_name("static"))
]  # equations without a network
mathjax_path = "MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"
mathjax2_config, myst_update_mathjax = {"tex2jax": {"processClass": "math"}}, False
autodoc_member_order = "bysource"
CONTENTS = """
```{toctree}
:hidden:
:caption: Notebooks
:glob:

notebooks/*
```
```{toctree}
:hidden:
:caption: Results
:glob:

results/*/*
```
```{toctree}
:hidden:
:caption: Guide

docs/using
docs/measures
docs/paper
docs/extending
docs/cluster
docs/bad_input
data/README
data/demo/README
```
```{toctree}
:hidden:
:caption: The library

docs/architecture
docs/api
CONTRIBUTING
CHANGELOG
```
"""


def complete(app, docname, source):
    """The front page gets the contents; links to what is no page (tables, folders) lead to the repository."""

    def link(match):
        path = (ROOT / docname).parent.joinpath(match[2]).resolve().relative_to(ROOT)
        page = path.suffix and path.with_suffix("").as_posix() in app.env.found_docs
        if page or not (ROOT / path).exists():  # what is nowhere stays, and is an error
            return match[0]
        return f"{match[1]}({PROJECT['urls']['Repository']}/tree/main/{path})"

    if app.env.doc2path(docname).suffix == ".md":
        source[0] = re.sub(r"((?<!!)\[[^\]]*\])\((?!https?:|#)([^)#\s]+)[^)]*\)", link, source[0])
    source[0] += CONTENTS if docname == root_doc else ""


def plainly(app, what, name, thing, options, lines):
    """Docstrings are prose with `code`: stars and bars in it mean nothing."""
    parts = re.split(r"`+([^`]+)`+", "\n".join(lines))
    prose = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
    code = [f"\\ ``{part}``\\ " for part in parts[1::2]] + [""]
    lines[:] = "".join(text for pair in zip(prose, code, strict=True) for text in pair).split("\n")


def begin_at_the_front_page(app, failed):
    if not failed and app.builder.name == "html":
        shutil.copy(Path(app.outdir, "README.html"), Path(app.outdir, "index.html"))


def setup(app):
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", plainly)
    app.connect("build-finished", begin_at_the_front_page)
