"""Every block of README.md and docs/ is run, or says why not and is parsed; links lead to what is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import curlfx
from curlfx.errors import CurlfxError
from tests.docs.blocks import CODE, LANGUAGES, REASONS, ROOT, Block, blocks, pages
from tests.docs.commands import USAGE, agree, check_extras, inline, parse, verbs
from tests.docs.execute import check, execute
from tests.docs.given import AFTERWARDS, GIVEN
from tests.docs.notebook import notebook

SLOW = (
    "README.md", "docs/ci.md", "docs/detection.md", "docs/faq.md", "docs/from-torch-pruning.md", "docs/inplace.md",
    "docs/latency.md", "docs/own-model.md", "docs/plans.md",
)  # fmt: skip
"""Pages that take seconds."""
TUTORIAL = "tutorial.md"
"""It is run as a notebook."""
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def marked(page: Path) -> object:
    return pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in SLOW else [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no cache of this machine."""
    place = tmp_path / "page"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("CURLFX_CACHE", str(tmp_path / "cache"))
    return place


@pytest.mark.parametrize("page", [marked(page) for page in pages() if page.name != TUTORIAL])
def test_page(page: Path, folder: Path) -> None:
    given = GIVEN.get(page.name, dict)()
    printed = [out for _, out in execute(blocks(page), folder, given)]
    if page.name in AFTERWARDS:
        AFTERWARDS[page.name](folder, "".join(printed))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_blocks_are_of_a_known_kind(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r}"
        reason = block.reason
        if reason is not None and reason.startswith("tested in "):
            assert (ROOT / reason.removeprefix("tested in ")).is_file(), block.where
        elif reason is not None:
            assert reason in REASONS, f"{block.where}: {reason!r}: want one of {REASONS}"


def test_most_blocks_are_run() -> None:
    code = [block for page in pages() for block in blocks(page) if block.language in CODE]
    left_out = Counter(block.reason for block in code if block.reason is not None)
    print(f"{len(code)} blocks of code, not run: {dict(left_out)}")
    assert left_out.total() < len(code) / 2


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_in_the_text_exist(page: Path) -> None:
    for command in inline(page):
        _known(page, command)
    check_extras(page.read_text(encoding="utf-8"))


def _known(page: Path, command: str) -> None:
    known, verb = verbs().commands, command.split()[1]
    assert verb in known, f"{page.name}: {command}: there is no such command"
    options = {option for parameter in known[verb].params for option in parameter.opts}
    assert set(re.findall(r"--[a-z][\w-]*", command)) <= options, f"{page.name}: {command}"


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in HEADING.findall(text)]
    return {heading.replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [*pages(), ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_the_overview_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)", text, re.MULTILINE)
    assert sorted(rows) == sorted(curlfx.EXPORTS)
    for module, names in re.findall(r"^`(curlfx\.[\w.]+)`: (.+?)\n\n", text, re.MULTILINE | re.DOTALL):
        there = __import__(module, fromlist=["_"])
        for each in re.findall(r"`(\w+)`", names):
            assert hasattr(there, each), f"{module}.{each}"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").iterdir()), ids=name)
def test_picture_is_sound_and_shown(picture: Path) -> None:
    root = ET.parse(picture).getroot()  # noqa: S314 — our own file
    assert root.findtext("{http://www.w3.org/2000/svg}title")
    assert any(f"(pictures/{picture.name})" in page.read_text(encoding="utf-8") for page in pages())


def test_figures_of_the_methods_stand_in_the_results() -> None:
    """A figure in a table of a page on a method is one of the table that it links to."""
    checked = 0
    for page in sorted((ROOT / "docs").glob("method-*.md")):
        measured = page.read_text(encoding="utf-8").partition("## Measured")[2]
        sources = re.findall(r"\]\((\.\./benchmarks/results/[\w.]+)\)", measured)
        there = "\n".join((page.parent / source).read_text(encoding="utf-8") for source in sources)
        for figure in re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)", "", measured)):
            assert figure in there, f"{page.name}: {figure} is in none of {sources}"
            checked += 1
    assert checked


@pytest.mark.slow
def test_the_tutorial_as_a_notebook(folder: Path) -> None:
    page = ROOT / "docs" / TUTORIAL
    made = notebook(page, folder)
    cells = made["cells"]
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len(code) == sum(block.language in CODE and block.reason is None for block in blocks(page))
    assert any("speed-up" in out["text"] for cell in code for out in cell["outputs"])
    words = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert words.startswith("# ")
    assert "```" not in words.replace("```sh\npip", "")
    assert "<!--" not in words


PAGE = """# A page
<!-- file: job.yaml -->
```yaml
seed: 3
```

```python
x = 3
print("loss", x / 7)
```

<!-- output -->
```text
loss   0.4…
```

<!-- exit: 2 -->
```console
$ curlfx run \\
    sed=4
error: unknown key 'sed'; did you mean 'seed'?
```

<!-- not run: needs a GPU -->
```sh
curlfx run device=cuda  # comment
```
"""


def page_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    monkeypatch.setattr("tests.docs.blocks.ROOT", folder)
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return blocks(page)


def test_blocks_and_marks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = page_of(folder, PAGE, monkeypatch)
    assert [(block.language, block.line) for block in found] == [
        ("yaml", 4), ("python", 8), ("text", 14), ("console", 19), ("sh", 26),
    ]  # fmt: skip
    assert [block.reason for block in found] == [None, None, None, None, "needs a GPU"]
    names: dict[str, object] = {}
    ran = list(execute(found, folder, names))
    assert [out for _, out in ran][1] == "loss 0.42857142857142855\n"
    assert names["x"] == 3
    assert (folder / "job.yaml").read_text() == "seed: 3\n"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("seed: 3", "sed: 3", CurlfxError),
        ("x = 3", "x = y", NameError),
        ("0.4…", "0.5…", AssertionError),
        ("did you mean 'seed'", "did you mean 'name'", AssertionError),
        ("exit: 2", "exit: 0", AssertionError),
        ("device=cuda", "device=gpu", CurlfxError),
        ("curlfx run device", "curlfx walk device", USAGE),
        ("run device=cuda", "bench a.onnx --fast", USAGE),
    ],
)
def test_a_page_that_is_wrong_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch, old, new, error) -> None:
    assert old in PAGE
    found = page_of(folder, PAGE.replace(old, new), monkeypatch)
    with pytest.raises(error):
        list(execute(found, folder, {}))


def test_a_block_that_is_not_run_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = page_of(folder, "<!-- not run: needs a GPU -->\n```python\nx = (\n```\n", monkeypatch)
    with pytest.raises(SyntaxError):
        check(block)


def test_commands_of_other_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse("pip install 'curlfx[search,timm]'")
    parse("torchrun --nproc-per-node 2 -m curlfx run device=cpu")
    with pytest.raises(CurlfxError, match="unknown key 'devise'"):
        parse("torchrun --nproc-per-node 2 -m curlfx run devise=cpu")
    with pytest.raises(AssertionError, match="extras are"):
        parse("pip install 'curlfx[gpu]'")


def test_what_the_ellipsis_stands_for() -> None:
    assert agree("a  b\n…\nend 1.…x", "a b\nmore\nmore\nend 1.25x\n")
    assert agree("a\n…", "a\n")
    assert not agree("a …", "a\nb")
    assert not agree("a.c", "abc")
    assert agree("loss -0.5 at 1e-07", "loss 12 at 3.25", numbers=False)
    assert not agree("loss 0.5", "less 0.5", numbers=False)


def test_a_fence_that_is_not_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not closed"):
        page_of(folder, "```python\nx = 1\n", monkeypatch)
