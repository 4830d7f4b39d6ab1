"""lm-eval on an exported run: a local task, its scores those of the model that was trained."""

import json
import os

import pytest
import torch

from polarlight.lab.train.export import export
from tests.integrations.running import EXAMPLES
from tests.lab.train.test_export import trained


def score(model, question, choice):
    """Log-likelihood of the choice's bytes after the question, as lm-eval asks for it."""
    context, rest = question.encode(), f" {choice}".encode()
    tokens = torch.tensor([list(context + rest)])
    with torch.no_grad():
        logs = model(tokens[:, :-1]).log_softmax(-1)[0]
    return sum(logs[len(context) - 1 + i, byte].item() for i, byte in enumerate(rest))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_local_task_scores_as_the_model_itself(tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install lm-eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    run, model = trained(tmp_path, steps=6)
    export(run, tmp_path / "model")
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'model'},dtype=float32",
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=str(EXAMPLES / "evaluation")),
        device="cpu",
        batch_size=2,
    )
    samples = {s["doc"]["question"]: s for s in found["samples"]["local_choice"]}
    lines = (EXAMPLES / "evaluation" / "arithmetic.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        theirs = [response[0] for response in samples[line["question"]]["filtered_resps"]]
        ours = [score(model, line["question"], choice) for choice in line["choices"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
