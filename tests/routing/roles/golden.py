"""Roles and views of tiny Hugging Face models as text, for comparison with the files in `golden/`.

python -m tests.routing.roles.golden     rewrites them; compare the diff with the models' source
"""

import json
import tempfile
from pathlib import Path

from polarlight.integrations.transformers import meta_model
from polarlight.routing import infer_roles
from polarlight.routing.explain.folding import fold
from polarlight.routing.view_text import view_call

HERE = Path(__file__).parent
CONFIGS = sorted((HERE / "configs").glob("*.json"))


def golden_file(config):
    return HERE / "golden" / f"{config.stem}.txt"


def golden_text(config, folder):
    """The table of the model, and what changes when its embeddings are tied or untied instead."""
    entries = table(meta_model(config))
    data = json.loads(config.read_text())
    if "tie_word_embeddings" in data:
        tied = not data["tie_word_embeddings"]
        other = folder / config.name
        other.write_text(json.dumps(data | {"tie_word_embeddings": tied}))
        changed = [entry for entry in table(meta_model(other)) if entry not in entries]
        entries += [f"\nwith tie_word_embeddings={tied}:\n", *(changed or ["the same\n"])]
    return "".join(entries)


def table(model):
    """One entry per parameter, repeated layers folded: name; shape, role, views; reason."""
    alike = {}
    for place, a in enumerate(infer_roles(model)):
        views = [view_call(a.view)] if a.parameter.ndim > 1 else []
        views += [f"by head {view_call(a.heads)}"] if a.heads is not None else []
        shape = " x ".join(map(str, a.parameter.shape))
        words = " | ".join([shape, f"{a.role} {a.part}".strip(), *views])
        alike.setdefault((words, a.reason), {})[a.name] = place
    entries = [
        (places[names[0]], f"{pattern}\n    {words}\n    {reason}\n")
        for (words, reason), places in alike.items()
        for pattern, names in fold(places)
    ]
    return [entry for _, entry in sorted(entries)]


def main():
    (HERE / "golden").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for config in CONFIGS:
            golden_file(config).write_text(golden_text(config, Path(folder)))
            print(golden_file(config))


if __name__ == "__main__":
    main()
