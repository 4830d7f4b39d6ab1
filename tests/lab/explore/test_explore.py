"""The page's mathematics against torch, in node; the page itself in a headless browser."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from typer.testing import CliRunner

import polarlight
from polarlight.lab import explore
from polarlight.lab.commands.app import app
from polarlight.lab.commands.registry import SCHEDULES
from tests.browser import browser, dom
from tests.lab.train.test_export import trained

JS = f"{next(iter(explore.__path__))}/matrices.js"
node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


def run(expression, **values):
    """Evaluate an expression on `Matrices` and the values by node."""
    names = "".join(f"const {key} = {json.dumps(value)};" for key, value in values.items())
    code = f"const Matrices = require({JS!r});{names}console.log(JSON.stringify({expression}))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def matrix(found):
    return torch.tensor(list(found["a"].values()), dtype=torch.float64).view(found["m"], found["n"])


@pytest.fixture(params=[(24, 8), (8, 24), (12, 12)], ids=lambda s: f"{s[0]}x{s[1]}")
def M(request):  # noqa: N802
    m, n = request.param
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(m, n, dtype=torch.float64, generator=generator)
    return torch.logspace(-1, 1, m, dtype=torch.float64)[:, None] * X


@node
def test_polar_factor_and_singular_values_are_torchs(M):
    found = run("[Matrices.polar(Matrices.of(M)), Matrices.singularValues(Matrices.of(M))]",
                M=M.tolist())  # fmt: skip
    torch.testing.assert_close(
        matrix(found[0]), polarlight.linalg.ExactPolar()(M), atol=1e-10, rtol=0
    )
    sigma = torch.tensor(found[1], dtype=torch.float64)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(M), atol=1e-9, rtol=1e-9)


@node
def test_aurora_round_by_round_is_ours():
    M = torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = run("Matrices.rounds(Matrices.of(M), 'aurora', [])", M=M.tolist())
    for rounds, U in enumerate(found, 1):
        ours = polarlight.rules.BalancedPolar(
            polarlight.linalg.ExactPolar(), rounds, 0.5, floor=1e-12
        )(M)
        torch.testing.assert_close(matrix(U), ours, atol=1e-8, rtol=0)


@node
@pytest.mark.parametrize("name", ["jordan", "cubic", "polar-express", "deepseek-v4"])
def test_a_schedules_map_and_its_steps_on_a_matrix_are_ours(name, M):
    schedule = SCHEDULES[name]
    steps = explore.steps(schedule)
    assert run("Matrices.outputs(0.03, steps).at(-1)", steps=steps) == pytest.approx(
        schedule(0.03), rel=1e-9
    )
    found = run("Matrices.rounds(Matrices.of(M), 'newton-schulz', steps).at(-1)",
                M=M.tolist(), steps=steps)  # fmt: skip
    U, S, Vh = torch.linalg.svd(M / M.norm(), full_matrices=False)
    expected = U @ torch.diag(torch.tensor([schedule(s) for s in S.tolist()]).double()) @ Vh
    torch.testing.assert_close(matrix(found), expected, atol=1e-7, rtol=0)


@node
def test_measures_are_those_of_the_diagnostics(M):
    found = run("Matrices.measures(Matrices.of(M), Matrices.polar(Matrices.of(M)))", M=M.tolist())
    U = polarlight.linalg.ExactPolar()(M)
    shares = U.square().sum(dim=1) * M.shape[0] / U.square().sum()
    assert found["shares"] == pytest.approx(shares.tolist(), abs=1e-9)
    assert found["alignment"] == pytest.approx(1, abs=1e-9)
    assert found["starved"] == pytest.approx((shares < 0.1).double().mean().item())


@node
def test_the_drawn_matrix_has_the_spectrum_that_is_asked_for():
    numbers = {"m": 12, "n": 5, "condition": 100, "rowSpread": 0, "seed": 3}
    sigma = run("Matrices.singularValues(Matrices.example(s))", s=numbers)
    assert sigma == pytest.approx([100 ** (-i / 4) for i in range(5)], rel=1e-8)


@browser
@pytest.mark.slow
def test_the_page_draws_and_follows_its_controls(tmp_path):
    recorded = {"<w>": torch.randn(200, 12)}
    page = explore.page(SCHEDULES, recorded)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing is loaded
    first = dom(page, tmp_path / "page.html")
    assert 'data-ready="yes"' in first
    assert "64 x 16. Muon (round 1 of 1): starved rows 18.8 %" in first
    assert "Aurora (round 6 of 6): starved rows 0 %" in first
    assert first.count("<rect") == 64 + 64
    assert first.count('<rect class="starved"') == 12  # 18.8 % of 64, all of them Muon's
    change = (
        "for (const [id, value] of Object.entries(%s)) document.getElementById(id).value = value;"
        "document.getElementById('method').dispatchEvent(new Event('input', {bubbles: true}));"
    )
    choices = {"method": "newton-schulz", "schedule": "jordan", "round": 5, "matrix": "<w>"}
    second = dom(page, tmp_path / "second.html", change % json.dumps(choices))
    said = re.search(r'<p id="said">(.*?)</p>', second).group(1)
    assert "96 x 12. Newton-Schulz, step by step (step 5 of 5)" in said
    assert "corner 96 x 12 of 200 x 12" in second
    assert second.count("<rect") == 96 + 96


def test_the_command_writes_the_page_with_a_runs_momenta(tmp_path):
    run_folder, _ = trained(tmp_path)
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["explore", "--run", str(run_folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == f"page: {out.resolve()}"
    data = re.search(r'id="data">(.*?)</script>', out.read_text()).group(1)
    assert "model.layers.0.mlp.up_proj.weight" in json.loads(data)["recorded"]
    wrong = CliRunner().invoke(app, ["explore", "--run", str(tmp_path), "--out", str(out)])
    assert wrong.exit_code == 2
    assert "is no run's folder" in wrong.stderr
