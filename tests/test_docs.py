"""README and docs are true: their commands parse, their links lead somewhere, no page is lost."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pidm_core import options as settings
from pidm_core import write_bytes

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:python |accelerate launch )?(?:tools/)?(\w+)\.py (.*)")
TOOLS = {path.stem for path in (ROOT / "tools").glob("*.py")}
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Parsed(Exception):
    """The tool's own parser has accepted the arguments."""


def commands() -> Iterator[tuple[str, str, str]]:
    """(page, tool, arguments) of each command, in code blocks and between backquotes."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
        rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines = [x for kind, block in blocks if kind == "bash" for x in block.splitlines()]
        for line in [*lines, *re.findall(r"`([^`\n]+)`", rest)]:
            match = COMMAND.match(line.strip())
            if match and match[1] in TOOLS:
                yield page.name, match[1], match[2].partition("  #")[0].strip()


def recipes() -> Iterator[tuple[str, str, str]]:
    """The same of what make would run for the tables."""
    targets = ["demo", "results", "results-quick", "speed", "real", "bundled", "paper"]
    made = ["make", "--dry-run", "SETUP=0", "SCRATCH=0", "PY=python", "WEIGHTS=README.md", *targets]
    own = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    shown = subprocess.run(
        made, cwd=ROOT, env=own, check=True, capture_output=True, text=True
    ).stdout
    for line in dict.fromkeys(shown.replace("\\\n", " ").splitlines()):
        match = COMMAND.search(line)
        if match and match[1] in TOOLS:
            yield "Makefile", match[1], match[2].partition(" || ")[0]


COMMANDS = [*commands(), *recipes()]


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 30
    assert ("README.md", "synthesize", "--ratio 0.4 --run runs/market1501") in COMMANDS
    assert len([page for page, *_ in COMMANDS if page == "Makefile"]) > 40


@pytest.mark.parametrize(("page", "tool", "arguments"), COMMANDS)
def test_a_command_of_the_docs_parses(
    page: str, tool: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [word for word in shlex.split(arguments, comments=True) if word not in ("…", "...")]
    monkeypatch.chdir(ROOT)  # where its configuration files are
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(f"tools.{tool}")

    def parse(*args: Any, **options: Any) -> NoReturn:
        settings.parse(*args, **options)
        raise Parsed

    monkeypatch.setattr(module, "parse", parse)
    with pytest.raises(Parsed):
        module.main(given)


def heading_links(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Files and anchors that a page leads to, other sites left out."""
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), path
        assert not anchor or anchor in heading_links(path.read_text()), (path, anchor)


def test_every_page_is_reached_from_the_readme() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            todo += [path for path, _ in links(page)]
    lost = [page.name for page in PAGES if page not in seen and page.name != "CONTRIBUTING.md"]
    assert not lost


def test_the_architecture_names_what_is_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| .* \| (`.*\.py`) \| (`.*`) \|$", text, re.MULTILINE)
    assert len(rows) > 30
    for files, names in rows:
        sources = [(ROOT / path).read_text() for path in re.findall(r"`([^`]+)`", files)]
        for name in re.findall(r"`(\w+)`", names):
            found = re.compile(rf"^ *(def|class) {name}\b", re.MULTILINE)
            assert any(found.search(source) for source in sources), (files, name)


def test_make_goes_on_behind_a_table_that_lacks_figures(tmp_path: Path) -> None:
    python, done = tmp_path / "python", tmp_path / "done"
    lacking = "*real-instead*|*'.py ablation'*|*'.py images'*"
    python.write_text(f'#!/bin/sh\necho "$@" >> {done}\ncase "$*" in {lacking}) exit 1;; esac\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("probe", "front", "students", "recipes", "generators"):
        write_bytes(tmp_path / f"results/{name}.json", b"{}")
    for name in ("toy_ablation", "toy_pairs", "market1501_half_images", "market1501_128_images"):
        write_bytes(tmp_path / f"results/{name}/table.json", b"{}")
    own = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    for target in ("results", "real"):
        made = ["make", "SETUP=0", "SCRATCH=0", f"PY={python}", target]
        shown = subprocess.run(
            made, cwd=tmp_path, env=own, check=False, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        assert "tools/report.py" in done.read_text().splitlines()[-1]
    assert (tmp_path / "docs/results/market1501_128_images/figures.json").read_bytes() == b"{}"
