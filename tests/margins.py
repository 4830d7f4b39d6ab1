"""Pytest plugin that records how close numeric assertions come to their bounds.

`python -m tests.isa` loads it. It sees `torch.testing.assert_close`, and every passing `assert`
that compares two numbers by `<`, `<=`, `>`, `>=` or with `pytest.approx`. pytest hands over the
text of such a comparison with its values; tests need no change. Exact comparisons are not recorded.
"""

import json
import os
import re
import sys
from pathlib import Path

import torch

NUMBER = r"(?:np\.float64\()?(?:tensor\()?\[?(-?[\d.]+(?:e[-+]?\d+)?)\]?(?:, \w+=[\w.<>]+)*\)*"
COMPARED = re.compile(rf"^\(?{NUMBER} (<=|<|>=|>) {NUMBER}(?:\n|$)")
CHAINED = re.compile(rf"^\(?{NUMBER} <=? {NUMBER} <=? {NUMBER}(?:\n|$)")
NEARLY = re.compile(rf"^\(?{NUMBER} == {NUMBER} ± {NUMBER}(?:\n|$)")
DEFAULTS = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}
"""Relative and absolute tolerance of `assert_close`, as torch documents them."""

records: dict[str, tuple[float, float]] = {}
"""Worst value of every assertion, by test and line, and the bound that it was held to."""
failures: list[str] = []
current = ""


def record(line: int, value: float, bound: float) -> None:
    """Keep the value nearest to its bound; a lower bound is given as inverses."""
    key = f"{current}:{line}"
    if bound > 0 and (key not in records or value / bound > records[key][0] / records[key][1]):
        records[key] = (value, bound)


def pytest_assertion_pass(item, lineno, orig, expl):
    if "±" in expl and (found := NEARLY.match(expl)):
        value, expected, tolerance = map(float, found.groups())
        record(lineno, abs(value - expected), tolerance)
    elif found := CHAINED.match(expl):
        low, value, high = map(float, found.groups())
        record_compared(lineno, low, "<", value)
        record_compared(lineno, value, "<", high)
    elif found := COMPARED.match(expl):
        left, sign, right = found.groups()
        if "." in left + right or "e" in left + right:
            record_compared(lineno, float(left), sign[0], float(right))


def record_compared(line: int, left: float, sign: str, right: float) -> None:
    small, large = (left, right) if sign == "<" else (right, left)
    if small > 0 and large > 0:
        record(line, small, large)


def tolerances(actual, expected, rtol, atol):
    if rtol is not None:
        return rtol, atol
    pairs = [DEFAULTS.get(x.dtype, (0.0, 0.0)) for x in (actual, expected)]
    return max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)


def share(actual, expected, rtol, atol) -> float:
    """Return the largest error over tolerance of two tensors, numbers or lists of them."""
    if isinstance(expected, (list, tuple)):
        pairs = zip(actual, expected, strict=True)
        return max((share(a, e, rtol, atol) for a, e in pairs), default=0.0)
    if isinstance(expected, dict):
        return max((share(actual[k], expected[k], rtol, atol) for k in expected), default=0.0)
    a, e = (x if isinstance(x, torch.Tensor) else torch.tensor(x) for x in (actual, expected))
    rtol, atol = tolerances(a, e, rtol, atol)
    if not a.numel() or a.device.type == "meta" or not rtol + atol:
        return 0.0
    a, e = (x.detach().full_tensor() if hasattr(x, "full_tensor") else x.detach() for x in (a, e))
    error, limit = (a.double() - e.double()).abs(), atol + rtol * e.double().abs()
    ratio = torch.where(error > 0, error / limit, 0.0)
    return float(ratio[ratio.isfinite()].max()) if ratio.isfinite().any() else 0.0


def pytest_configure(config):
    torch.set_printoptions(precision=6, sci_mode=True)
    original = torch.testing.assert_close

    def assert_close(actual, expected, *arguments, rtol=None, atol=None, **options):
        original(actual, expected, *arguments, rtol=rtol, atol=atol, **options)
        record(sys._getframe(1).f_lineno, share(actual, expected, rtol, atol), 1.0)

    torch.testing.assert_close = assert_close


def pytest_runtest_logstart(nodeid, location):
    global current
    current = nodeid


def pytest_runtest_logreport(report):
    if report.failed:
        failures.append(report.nodeid)


def pytest_sessionfinish(session, exitstatus):
    found = {"failures": failures, "tests": session.testscollected, "records": records}
    Path(os.environ["MARGINS"]).write_text(json.dumps(found))
