"""`polarlight doctor`: what the extras lack."""

import pytest

from polarlight.lab.commands import doctor

REQUIREMENTS = [
    "torch>=2.7",
    "mkdocstrings[python]; extra == 'docs'",
    "torchtitan<0.4,>=0.3; extra == 'torchtitan'",
    "some-package~=1.0; extra == 'torchtitan'",
]


@pytest.mark.parametrize("installed", [True, False])
def test_packages_of_an_extra_are_named_without_versions_and_extras(monkeypatch, installed):
    names = []
    monkeypatch.setattr(doctor, "requires", lambda package: REQUIREMENTS)
    monkeypatch.setattr(
        doctor,
        "_version",
        lambda name: names.append(name) or ("1.0" if installed else "not installed"),
    )
    found = doctor._extras()
    assert names == ["mkdocstrings", "torchtitan", "some-package"]
    if installed:
        assert found == {"docs": "complete", "torchtitan": "complete"}
    else:
        said = "lacks torchtitan, some-package: pip install 'polarlight[torchtitan]'"
        assert found["torchtitan"] == said
