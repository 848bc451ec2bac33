"""The README tells the truth: its programs run and print what it says, its table of errors is complete."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from repository import REPO
from tools import NO_AGENTS_SDK, NO_SCRIPTED_MODEL

from agentmem import errors

README = (REPO / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))
PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)
OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)
PRINTING = [title for title, text in SECTIONS.items() if OUTPUT.search(text)]
SERVING = ["FastAPI"]


def run(program: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("title", PRINTING)
def test_the_program_of_a_section_prints_what_the_section_says(title: str, tmp_path: Path) -> None:
    section = SECTIONS[title]
    if "from agents.testing import" in section:
        pytest.importorskip("agents", reason=NO_AGENTS_SDK)
        pytest.importorskip("agents.testing", reason=NO_SCRIPTED_MODEL)
    assert run("\n".join(PROGRAM.findall(section)), tmp_path) == "".join(OUTPUT.findall(section))


def test_every_program_in_the_readme_is_run() -> None:
    assert [title for title, text in SECTIONS.items() if PROGRAM.search(text)] == sorted(
        PRINTING + SERVING, key=list(SECTIONS).index
    )


def test_the_fastapi_app_remembers_over_http(tmp_path: Path) -> None:
    (program,) = PROGRAM.findall(SECTIONS["FastAPI"])
    (tmp_path / "app.py").write_text(program)
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
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: str = json.load(response)
            return answer

        say("alice", "I like cats.")
        say("bob", "I like dogs.")
        assert [say("alice", "What do I like?"), say("bob", "What do I like?")] == ["You like cats.", "You like dogs."]
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_the_two_commands_stand_near_the_top() -> None:
    commands = [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/agentmem demo",
        "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s tests",
    ]
    assert all(command in README.splitlines()[:40] for command in commands)


def test_every_error_that_a_caller_meets_is_explained() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    explained = set(re.findall(r"^\| `(\w+)`", SECTIONS["Errors"], re.MULTILINE))
    assert explained - tree == set()
    # The root is named in the text; ConflictError is kept for writes that state what they expect.
    assert tree - explained == {"AgentMemError", "ConflictError", "CorruptItemWarning"}


def test_links_to_files_of_the_repository_lead_somewhere() -> None:
    targets = re.findall(r"`((?:tests|examples|agentmem|benchmarks)/[\w./]+)`", README)
    assert targets
    assert [target for target in targets if not (REPO / target).exists()] == []


def test_each_guarantee_is_in_the_table_with_tests_that_there_are() -> None:
    section = SECTIONS["Guarantees"]
    promised = re.findall(r"^(\d+)\. ", section, re.MULTILINE)
    rows = re.findall(r"^\| ([\d, ]+) \|(.*)$", section, re.MULTILINE)
    assert {number for numbers, _ in rows for number in numbers.split(", ")} == set(promised)
    for _, row in rows:
        named = re.findall(r"`tests/([\w/]+\.py)::(\w+)`", row)
        assert named
        for file, test in named:
            assert f"def {test}(" in (REPO / "tests" / file).read_text(encoding="utf-8")
