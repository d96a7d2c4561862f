"""README and docs: links lead somewhere, every page and public name is found, every example runs or says why not."""

import doctest
import re
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import nbnorm

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "build" not in page.parts)]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TASKS = {  # of a stranger, and what the page that answers it must have in it
    "install it for a GPU": "cuda13",
    "channels last": "axis=-1",
    "freeze and fine-tune": "bn.frozen = True",
    "the training loop with the layer": "bn.state.gamma -= rate * bn.dgamma",
    "one batch norm of a PyTorch network's file": '.load("resnet.safetensors", "layer1.0.bn1."',
    "what momentum means": "weight of the **new** batch",
    "statistics of a file larger than memory": "np.memmap",
    "two processes with MPI": "mpiexec -n 2",
    "why the first call takes seconds": "nbnorm warmup",
    "accuracy at a large mean": "10_000",
}


def name_of(page):
    return str(page.relative_to(ROOT))


def links(page):
    """What a page refers to on this disk, as (path, anchor); toctrees of Sphinx too."""
    text = page.read_text()
    for target in LINK.findall(FENCED.sub("", text)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor
    for names in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
        for name in names.split("\n"):
            if name and not name.startswith((":", "auto_gallery/")):  # what the build makes of docs/gallery
                yield (page.parent / f"{name}.md").resolve(), ""


def anchors(page):
    """As GitHub and MyST make them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert path.exists(), path
        # What only the build makes is nowhere in a clone: docs/conf.py makes links to gallery/*.py lead there.
        assert "auto_gallery" not in path.parts, path
        assert not anchor or anchor in anchors(path), (path, anchor)


def clicks_from(start):
    """How many clicks every page is away."""
    away, waiting = {start: 0}, deque([start])
    while waiting:
        page = waiting.popleft()
        for path, _ in links(page):
            if path.suffix == ".md" and path not in away:
                away[path] = away[page] + 1
                waiting.append(path)
    return away


def test_every_page_is_found_from_the_start_page():
    away = clicks_from(DOCS / "index.md")
    assert set(PAGES) - {ROOT / "README.md"} <= set(away)
    assert max(away.values()) <= 3


@pytest.mark.parametrize("task", TASKS)
def test_a_stranger_finds_it_in_two_clicks(task):
    near = [page for page, clicks in clicks_from(DOCS / "index.md").items() if clicks <= 2]
    assert any(TASKS[task] in page.read_text() for page in near)


def test_every_public_name_has_a_page():
    listed = set(re.findall(r"^   ([\w.]+)$", (DOCS / "reference.md").read_text(), re.MULTILINE))
    names = set(nbnorm.__all__) - {"__version__", "exchange", "parallel"}
    assert names | {f"exchange.{name}" for name in nbnorm.exchange.__all__} <= listed


# ---- examples


def skip_without_what_it_needs(page):
    for name in re.findall(r"<!-- needs: (\w+) -->", page.read_text()):
        pytest.importorskip(name, reason=f"NO {name.upper()}: a page is not run")


def without_fences(text):
    return re.sub(r"^ *```.*$", "", text, flags=re.MULTILINE)


# These compile kernels for float64 with a mask, a residual or an activation, which take half a minute.
OF_FLOAT64 = {DOCS / name for name in ("howto/residual.md", "padding.md", "elsewhere.md")}
by_exhaustive = pytest.mark.exhaustive("the same calls of float32 in test_activation.py and test_counted.py")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=by_exhaustive if page in OF_FLOAT64 else ())
        for page in PAGES
        if ">>>" in page.read_text()
    ],
    ids=name_of,
)
def test_the_examples_of_a_page_print_what_it_says(page):
    skip_without_what_it_needs(page)
    examples = doctest.DocTestParser().get_doctest(without_fences(page.read_text()), {}, page.name, str(page), 0)
    assert examples.examples
    assert doctest.DocTestRunner().run(examples).failed == 0


def programs(page):
    """Blocks of Python without prompts, and the reason not to run it that stands before a block."""
    for match in FENCED.finditer(page.read_text()):
        language, _, code = match[2].partition("\n")
        if language.strip() == "python" and ">>>" not in code:
            reason = re.search(r"<!-- not run: (.*) -->\s*$", page.read_text()[: match.start()])
            yield re.sub(rf"^{match[1]}", "", code, flags=re.MULTILINE), reason and reason[1]


@pytest.mark.parametrize("page", [page for page in PAGES if any(programs(page))], ids=name_of)
def test_the_programs_of_a_page_run(page, tmp_path, monkeypatch):
    """One after the other, as a reader would. What the pages take for granted is made before."""
    skip_without_what_it_needs(page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    names = {"np": np, "nbnorm": nbnorm, "rows": 1000}
    np.ones((names["rows"], 64), np.float32).tofile("x.dat")
    network = {f"layer1.0.bn1.{name}": array for name, array in nbnorm.BatchNormState(64).state_dict().items()}
    pytest.importorskip("safetensors.numpy", reason="NO SAFETENSORS").save_file(network, "resnet.safetensors")
    np.savez("snapshot.npz", **{f"bn1/{name}": np.ones(64) for name in ("gamma", "beta", "avg_mean", "avg_var", "N")})
    for code, reason in programs(page):
        if reason is None:
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if any(programs(page))], ids=name_of)
def test_what_does_not_run_says_where_it_does(page):
    for code, reason in programs(page):
        place = re.search(r"(tests|docs)/[\w./]+[\w/]", reason or "")
        assert not place or (ROOT / place[0]).exists(), reason
        assert reason in (None, "needs a GPU") or place, (reason, code)
