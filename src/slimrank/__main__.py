"""python -m slimrank: the command line, as torchrun starts it."""

from slimrank.cli.main import main

if __name__ == "__main__":
    main()
