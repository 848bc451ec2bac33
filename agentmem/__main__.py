"""``python -m agentmem`` is the ``agentmem`` command."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="agentmem")
