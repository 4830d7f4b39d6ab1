"""Entry point of the `polarlight` script, outside the package: the version needs no torch.

Importing the package `polarlight` imports torch, which takes seconds on a cold machine.
"""

import sys


def main() -> None:
    """Print the version, or run the command line of the package."""
    if sys.argv[1:] in (["--version"], ["version"]):
        from importlib.metadata import version

        print(version("polarlight"))
        return
    from polarlight.__main__ import main as run

    run()
