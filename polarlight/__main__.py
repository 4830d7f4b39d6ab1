"""The `polarlight` command; what it needs beyond torch comes with the extra `train`.

`polarlight doctor` alone needs nothing more, as it is asked where something is missing.
"""

import os
import sys


def main() -> None:
    """Run the command line, or says what to install.

    Under torchrun the interpreter is left at once when all is done: gloo's threads may abort its
    usual exit (pytorch/pytorch#179291), and a run that has finished would count as failed.
    """
    if sys.argv[1:2] == ["doctor"]:
        from polarlight.lab.commands import doctor

        sys.exit(doctor.main(sys.argv[2:]))
    try:
        from polarlight.lab.commands.app import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"the polarlight command needs {error.name}; pip install 'polarlight[train]' brings it"
        )
    try:
        app()
    except SystemExit as done:
        if "TORCHELASTIC_RUN_ID" not in os.environ or not isinstance(done.code, int | None):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(done.code or 0)


if __name__ == "__main__":
    main()
