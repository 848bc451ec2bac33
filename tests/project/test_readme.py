"""The pages tell the truth: their programs run and print what they say, commands exist, links lead somewhere.

The pages are README.md and those to which it sends readers: of the benchmarks, the examples and the tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import PAGES, Block, Page, anchors
from repository import REPO
from responses_server import ResponsesServer, message, reasoning
from tools import NO_AGENTS_SDK, NO_SCRIPTED_MODEL
from waiting import WAIT_S

sys.path.append(str(REPO))  # the benchmarks are not installed; at the end, so that agentmem stays the one under test

from agentmem import Agent, SessionStore, errors
from agentmem.cli import main
from agentmem.runner.responses_api import DEFAULT_MODEL
from benchmarks.scaling import arguments

pages = {name: Page(name) for name in PAGES}
README = pages["README.md"]
PROGRAMS = [block for page in pages.values() for block in page.blocks if block.language == "python"]
SERVED = [block for block in PROGRAMS if "FastAPI(" in block.code]
LONGEST_LINE = 132


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Page:
    return pages[request.param]


# What runs


def run(program: str, folder: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("block", [block for block in PROGRAMS if block not in SERVED], ids=str)
def test_each_program_runs_as_it_stands_and_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    if "from agents.testing import" in block.code:
        pytest.importorskip("agents", reason=NO_AGENTS_SDK)
        pytest.importorskip("agents.testing", reason=NO_SCRIPTED_MODEL)
    assert run(block.code, tmp_path) == (block.output or "")


def test_the_quickstart_runs_with_a_model_of_the_api_whose_answers_are_reasoning_and_lists_of_parts(
    server: ResponsesServer, tmp_path: Path
) -> None:
    [quickstart] = [block for block in README.blocks if block.section == "Quickstart" and block.language == "python"]
    with_default_model = quickstart.code.replace(", model=OfflineModel()", "")
    server.answer(reasoning(content=[{"type": "reasoning_text", "text": "hidden"}]), message("Hello Alice."))
    server.answer(message("Alice, and Python."))
    shown = run(with_default_model, tmp_path, OPENAI_BASE_URL=server.url)
    assert len(server.requests) == 2
    assert shown.splitlines() == [
        "Alice, and Python.",
        "user: My name is Alice and I love Python.",
        "assistant: Hello Alice.",
        "user: What is my name, and what do I love?",
        "assistant: Alice, and Python.",
    ]


def test_there_are_programs_to_run_and_one_app_to_serve() -> None:
    assert len(PROGRAMS) >= 10
    assert [(block.page, block.section) for block in SERVED] == [("README.md", "FastAPI")]


def test_every_output_belongs_to_a_program_and_every_block_is_of_a_known_kind(page: Page) -> None:
    assert page.stray_outputs == []
    assert {block.language for block in page.blocks} <= {"python", "sh", "diff"}
    assert [block for block in page.blocks if block.output is not None and block.language != "python"] == []


def test_the_fastapi_app_remembers_over_http(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SERVED[0].code)
    # Port 0: the system chooses one, and uvicorn says which.
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        address = next(found[1] for line in server.stderr if (found := re.search(r"running on (http://\S+)", line)))

        def say(user: str, message: str) -> str:
            request = urllib.request.Request(
                f"{address}/chat/{user}",
                json.dumps({"message": message}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=WAIT_S) as response:
                answer: str = json.load(response)
            return answer

        say("alice", "I like cats.")
        say("bob", "I like dogs.")
        assert [say("alice", "What do I like?"), say("bob", "What do I like?")] == ["You like cats.", "You like dogs."]
    finally:
        server.terminate()
        server.communicate(timeout=WAIT_S)


# Commands


def test_the_two_commands_stand_near_the_top() -> None:
    commands = [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/agentmem demo",
        "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s tests",
    ]
    assert all(command in README.text.splitlines()[:40] for command in commands)


def commands(page: Page) -> Iterator[list[str]]:
    """The words of each command: of each line of shell, and of the code in running text that is one."""
    for block in page.blocks:
        if block.language == "sh":
            for line in block.code.replace("\\\n", "").splitlines():
                yield from _split(line)
    for code in page.inline_code():
        if code.startswith(("agentmem ", "rm ", ".venv/bin/", "python -m benchmarks")):
            yield from _split(code)


def _split(line: str) -> Iterator[list[str]]:
    for command in line.split("&&"):
        yield shlex.split(command, comments=True)


def test_each_agentmem_command_is_one_that_there_is(page: Page) -> None:
    for words in commands(page):
        if Path(words[0]).name != "agentmem":
            continue
        command = main.commands[words[1]]
        if len(words) > 2:  # else the text only names it
            command.make_context(words[1], words[2:])


def test_each_command_of_a_benchmark_is_one_that_there_is() -> None:
    found = [
        words[3:] for name in PAGES for words in commands(pages[name]) if words[1:3] == ["-m", "benchmarks.scaling"]
    ]
    assert len(found) >= 3
    for words in found:
        arguments(words)


# Operating it


def cells(heading: str) -> dict[str, list[str]]:
    """The rows of the table in a section of the README, by their first cells."""
    rows = [
        re.split(r"(?<!\\)\|", line.strip("|")) for line in README.sections[heading].splitlines() if line[:2] == "| "
    ]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def code_of(row: str, column: int = 0) -> str:
    (code,) = re.findall(r"`([^`]+)`", cells("Operating it")[row][column])[:1]
    return str(code)


def test_a_database_is_backed_up_checked_read_and_restored_by_the_commands_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cats = {"role": "user", "content": "I like cats."}
    with SessionStore("app.db") as store:
        store.session("alice").add_items([cats])
        backup = shlex.split(code_of("back up, while others work"))
        assert CliRunner().invoke(main, backup[1:], catch_exceptions=False).exit_code == 0
        store.session("alice").add_items([{"role": "user", "content": "Not in the backup."}])
        (_, check) = re.findall(r"`([^`]+)`", cells("Operating it")["health"][0])
        assert CliRunner().invoke(main, shlex.split(check)[1:], catch_exceptions=False).exit_code == 0
    Path("app.db-wal").write_bytes(b"what a crash may leave")
    restore = shlex.split(code_of("restore, while nobody has it open"))
    assert CliRunner().invoke(main, restore[1:], catch_exceptions=False).exit_code == 0
    with SessionStore("app.db") as store:
        assert store.session("alice").get_items() == [cats]
        assert store.check().problem_count == 0
    with closing(sqlite3.connect("app.db")) as connection:
        ((session_id, position, _, item),) = connection.execute(code_of("read the data"))
    assert (session_id, position, json.loads(item)) == ("alice", 0, cats)


def test_a_file_becomes_smaller_by_vacuum_once_sessions_are_cleared_while_a_store_has_it_open(tmp_path: Path) -> None:
    assert "until `VACUUM`" in cells("Operating it")["delete"][0]
    path = tmp_path / "app.db"
    items = [{"role": "user", "content": "I like cats. " * 100}] * 100
    with SessionStore(path) as store:
        for number in range(10):
            store.session(f"user_{number}").add_items(items)
    with SessionStore(path) as store:
        for number in range(1, 10):
            store.session(f"user_{number}").clear_session()
    full = path.stat().st_size
    with SessionStore(path) as store:
        assert store.session("user_0").get_items() == items
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM")
        store.session("user_0").add_items(items)
        assert store.session("user_0").get_items() == items * 2
        assert store.check().problem_count == 0
    assert path.stat().st_size < full / 2


# Tables and lists


def test_every_error_that_a_caller_meets_is_explained() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    explained = set(re.findall(r"^\| `(\w+)`", README.sections["Errors"], re.MULTILINE))
    assert explained - tree == set()
    # These two are in the text, and a warning is among the guarantees.
    assert tree - explained == {"AgentMemError", "ConflictError", "CorruptItemWarning"}
    assert all(name in README.text for name in tree)


def test_no_error_is_said_to_be_raised_that_nothing_raises() -> None:
    raised = any(
        "ConflictError(" in file.read_text(encoding="utf-8")
        for file in (REPO / "agentmem").rglob("*.py")
        if file.name != "errors.py"
    )
    assert ("Nothing raises `ConflictError`" in README.text) is not raised
    assert ("Nothing raises it yet" in str(errors.ConflictError.__doc__)) is not raised
    assert ("nothing raises it yet" in str(errors.__doc__)) is not raised


def test_the_default_model_is_named_wherever_it_can_be_left_out() -> None:
    chat = CliRunner().invoke(main, ["chat", "--help"]).output
    for text in (README.sections["Running agents"], str(Agent.__doc__), chat):
        assert DEFAULT_MODEL in text
        assert "OPENAI_DEFAULT_MODEL" in text


def test_each_guarantee_is_in_the_table_of_tests_with_tests_that_there_are() -> None:
    promised = re.findall(r"^(\d+)\. ", README.sections["Guarantees"], re.MULTILINE)
    rows = re.findall(r"^\| ([\d, ]+) \|(.*)$", pages["tests/README.md"].text, re.MULTILINE)
    assert {number for numbers, _ in rows for number in numbers.split(", ")} == set(promised)
    for _, row in rows:
        named = re.findall(r"`tests/([\w/]+\.py)::(\w+)`", row)
        assert named
        for file, test in named:
            assert f"def {test}(" in (REPO / "tests" / file).read_text(encoding="utf-8")


def test_each_guarantee_is_one_line() -> None:
    lines = [line for line in README.sections["Guarantees"].splitlines()[1:] if line]
    numbered = [line for line in lines if re.match(r"\d+\. ", line)]
    assert [int(line.partition(".")[0]) for line in numbered] == list(range(1, len(numbered) + 1))
    assert lines[: len(numbered)] == numbered  # none goes on in a second line


def test_the_supported_pythons_and_the_default_model_are_those_of_the_code() -> None:
    classifiers = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert f"Python ({versions[0]} to {versions[-1]})" in README.text
    assert f"`{DEFAULT_MODEL}`" in README.text


# Form


def test_the_readme_is_one_page() -> None:
    assert len(README.text.splitlines()) <= 300
    assert README.headings == [
        "Two commands",
        "Quickstart",
        "Sessions and stores",
        "Replay windows",
        "Running agents",
        "FastAPI",
        "Under the Agents SDK",
        "PostgreSQL",
        "Operating it",
        "Guarantees",
        "Errors",
        "Comparison",
        "Development",
    ]


def test_lines_are_of_a_length_that_makes_their_number_mean_something(page: Page) -> None:
    by_hand = re.sub(r"<!-- (.+) -->\n.*?<!-- end of \1 -->", "", page.text, flags=re.DOTALL)
    assert [line for line in by_hand.splitlines() if len(line) > LONGEST_LINE and line[0] != "|"] == []


def test_the_table_of_contents_names_every_section_that_follows(page: Page) -> None:
    (contents,) = re.findall(r"^\**Contents\**:(.*?)\n\n", page.prose, re.MULTILINE | re.DOTALL)
    linked = re.findall(r"\[[^\]]+\]\(#([^)]+)\)", contents)
    headings = page.headings[1:] if page is README else page.headings
    assert linked == [anchor for heading in headings for anchor in anchors(f"## {heading}")]


def test_links_and_paths_lead_somewhere(page: Page) -> None:
    links = list(page.links())
    assert [file for file, _ in links if not file.exists()] == []
    assert [(file, anchor) for file, anchor in links if anchor and anchor not in anchors(file.read_text())] == []
    paths = [
        code.partition("::")[0]
        for code in page.inline_code()
        if re.match(r"(tests|examples|agentmem|benchmarks)/", code)
    ]
    assert [path for path in paths if not (REPO / path).exists()] == []


def test_every_program_of_the_examples_is_named_on_their_page() -> None:
    named = set(re.findall(r"^\| `(examples/\w+\.py)`", pages["examples/README.md"].text, re.MULTILINE))
    assert named == {path.relative_to(REPO).as_posix() for path in (REPO / "examples").glob("*.py")}
