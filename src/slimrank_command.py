"""The command `slimrank`: its help and completion answer at once, since they need neither torch nor transformers.

`import slimrank` brings both, for its public names and to teach transformers the compressed layers; where this module
was imported before, it leaves them to the commands, each of which imports what it uses.
"""


def main() -> None:
    """The console entry point."""
    from slimrank.cli.main import main

    main()
