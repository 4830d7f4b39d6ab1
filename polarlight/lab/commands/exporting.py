"""Command `polarlight export`: a run's model in the format of Hugging Face."""

from pathlib import Path
from typing import Annotated

import typer

from polarlight.lab.commands import options
from polarlight.lab.commands.console import say
from polarlight.lab.train.export import export as write_folder


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/quick/aurora/seed0.")],
    out: Annotated[
        Path, typer.Option(help="The folder to write.", callback=options.new_folder)
    ] = Path("exported"),
) -> None:
    r"""Write a trained model as a Hugging Face folder with equal logits.

    ```
    polarlight compare --optimizers aurora
    polarlight export runs/quick/aurora/seed0 --out my-model
    python -c "from transformers import pipeline; \
      print(pipeline('text-generation', 'my-model')('def main')[0]['generated_text'])"
    ```
    """
    for file in write_folder(run, out):
        say(f"{file}")
    say(f"load it with AutoModelForCausalLM.from_pretrained({str(out)!r})")
