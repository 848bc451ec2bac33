"""The processes that tests start: what these say is read whole."""

from __future__ import annotations

from processes import Child


def test_lines_that_come_together_are_read_one_by_one_and_the_rest_at_the_end() -> None:
    with Child("import os; os.write(1, 'one\\ntwö\\nthree\\n'.encode())") as child:
        assert child.read_line() == "one"
        assert child.read_line() == "twö"
        assert child.finish() == (0, "three\n", "")
