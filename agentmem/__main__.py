"""Runs the ``agentmem`` command for ``python -m agentmem``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="agentmem")
