"""The repository's pages, as tests read them: sections, code blocks, links, and the code in running text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from repository import REPO

PAGES = ("README.md", "benchmarks/README.md", "examples/README.md", "tests/README.md")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: its path in the repository.
        section: the heading above it.
        number: its place among the blocks of this section, from 0.
        language: what stands behind the fence.
        code: what stands between the fences.
        output: the block of ``text`` that follows it at once; None where there is none.
    """

    page: str
    section: str
    number: int
    language: str
    code: str
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.page}: {self.section} {self.number}"


class Page:
    """A page of Markdown.

    Attributes:
        name: its path in the repository.
        text: all of it.
        headings: of its sections, in their order; ``##`` alone.
        sections: the text of each, by heading.
        blocks: its blocks of code, but for those of ``text`` that belong to another.
        stray_outputs: blocks of ``text`` that follow no other block.
        prose: the page without its blocks of code.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (REPO / name).read_text(encoding="utf-8")
        self.blocks: list[Block] = []
        self.stray_outputs: list[Block] = []
        self.sections: dict[str, str] = {}
        prose: list[str] = []
        section, lines = "", iter(self.text.splitlines())
        follows_block = False
        for line in lines:
            if line.startswith("```"):
                code = "".join(f"{inner}\n" for inner in _until_fence(lines))
                self._take(section, line.removeprefix("```"), code, follows_block)
                follows_block = True
                continue
            follows_block = follows_block and not line
            if line.startswith("## "):
                section = line.removeprefix("## ")
            self.sections[section] = self.sections.get(section, "") + f"{line}\n"
            prose.append(line)
        self.prose = "\n".join(prose)
        self.headings = [heading for heading in self.sections if heading]

    def _take(self, section: str, language: str, code: str, follows_block: bool) -> None:
        block = Block(self.name, section, sum(it.section == section for it in self.blocks), language, code)
        if language != "text":
            self.blocks.append(block)
        elif follows_block and self.blocks[-1].output is None:
            self.blocks[-1] = replace(self.blocks[-1], output=code)
        else:
            self.stray_outputs.append(block)

    def links(self) -> Iterator[tuple[Path, str]]:
        """Where its links lead, but for those to other sites: a path, and an anchor or ""."""
        for target in re.findall(r"\]\(([^)\s]+)\)", self.prose):
            if "://" not in target:
                file, _, anchor = target.partition("#")
                yield ((REPO / self.name).parent / file if file else REPO / self.name), anchor

    def inline_code(self) -> list[str]:
        """What stands between single backticks."""
        return re.findall(r"`([^`\n]+)`", self.prose)


def anchors(markdown: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _until_fence(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "```":
            return
        yield line
    raise AssertionError("a block of code that is not closed")
