"""The `polarlight` command; what it needs beyond torch comes with the extra `train`.

`polarlight doctor` alone needs nothing more, as it is asked where something is missing.
"""

import sys


def main() -> None:
    """Runs the command line, or says what to install."""
    if sys.argv[1:2] == ["doctor"]:
        from polarlight.commands import doctor

        sys.exit(doctor.main(sys.argv[2:]))
    try:
        from polarlight.commands.app import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"the polarlight command needs {error.name}; pip install 'polarlight[train]' brings it"
        )
    app()


if __name__ == "__main__":
    main()
