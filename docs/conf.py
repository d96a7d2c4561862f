"""The site: `sphinx-build -W --keep-going docs build/site`, as docs/contributing.md says."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import nbnorm

project = "nbnorm"
author = "The nbnorm developers"
project_copyright = f"2026, {author}"
version = release = nbnorm.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["build", "gallery"]
templates_path = ["_templates"]

# ---- pages

myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ---- gallery: programs that the build runs

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10_000,
    "matplotlib_animations": False,
    "copyfile_regex": "",
}


def gallery_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Links to programs, which lead somewhere in a clone too, become links to the pages that are made of them."""
    programs = re.sub(r"\]\(((?:\.\./)*)gallery/(\w+)\.py\)", r"](\1auto_gallery/\2.rst)", source[0])
    source[0] = re.sub(r"\]\(((?:\.\./)*)gallery\)", r"](\1auto_gallery/index.rst)", programs)


# ---- reference: docstrings

default_role = "py:obj"  # `batch_norm_training` in a docstring is a link
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # numpydoc's type slot says more: shapes, and what is updated in place
autodoc_mock_imports = ["cupy", "dask", "distributed"]  # their leaves import them at once
numpydoc_show_class_members = False  # the template of a class lists its methods


def setup(app: Sphinx) -> None:
    app.connect("source-read", gallery_pages)
    app.connect("build-finished", asv_pages)
    # Without a network the links into other projects are missing, and nothing else.
    logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(
        lambda record: not str(record.msg).startswith("failed to reach any of the inventories")
    )


intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "numba": ("https://numba.readthedocs.io/en/stable", None),
    "cupy": ("https://docs.cupy.dev/en/stable", None),
    "dask": ("https://docs.dask.org/en/stable", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
}
intersphinx_timeout = 5

# ---- benchmarks: asv's own pages, of the results that are kept


def asv_pages(app: Sphinx, exception: Exception | None) -> None:
    """Into the folder `asv` of the site, to which docs/benchmarks.md has a link."""
    if exception is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir) / "asv"
    command = [sys.executable, "-m", "asv", "publish", "--html-dir", str(folder)]
    where = Path(app.srcdir).parent / "asv_benchmarks"
    asked = ["git", "rev-parse", "--is-shallow-repository"]
    if subprocess.run(asked, cwd=where, capture_output=True, text=True).stdout.strip() != "false":
        without = "No results in this build: asv needs the history of the repository, and this was a part of it."
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text(f"<!doctype html><title>Benchmarks</title><p>{without}</p>")
        print(f"NO PAGES OF asv. {without}", file=sys.stderr)
        return
    subprocess.run(command, cwd=where, check=True)
    if not json.loads((folder / "index.json").read_text())["graph_param_list"]:  # asv takes that for a warning
        raise ExtensionError("asv publish: no measured commit is in the history here")


# ---- looks

html_theme = "pydata_sphinx_theme"
html_title = f"nbnorm {version}"
html_static_path = ["_static"]
html_css_files = ["nbnorm.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
