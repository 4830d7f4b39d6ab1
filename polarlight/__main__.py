"""The `polarlight` command; what it needs beyond torch comes with the extra `train`."""

import sys


def main() -> None:
    """Runs the command line, or says what to install."""
    try:
        from polarlight.commands.app import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"the polarlight command needs {error.name}; pip install 'polarlight[train]' brings it"
        )
    app()


if __name__ == "__main__":
    main()
