"""Install one release of torch into a virtual environment, without CUDA's libraries.

`python tests/install_torch.py VERSION FOLDER` makes FOLDER a virtual environment with that release
and what the core's tests need. Many releases have no CPU wheel on the package index: the Linux
wheel links against several gigabytes of CUDA libraries, none of which runs without a GPU. Such a
release is installed without them, beside stubs: shared libraries of the same names in which every
function fails with "no device". That takes a C compiler and readelf; without them the release is
installed with everything that it asks for.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
NEEDS = (
    "expecttest",
    "hypothesis",
    "matplotlib",
    "numpy",
    "pytest",
    "pytest-xdist",
    "rich",
    "typer",
)
CUDA = re.compile(r"(nvidia|cuda|triton)\b", re.IGNORECASE)
SYSTEM = re.compile(r"ld-linux|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so")
NO_DEVICE = 100  # cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE

NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
SYMBOL = re.compile(r"(?:GLOBAL|WEAK)\s+\w+\s+(\w+)\s+(\w+)(?:@+(\S+))?")
VERSION = re.compile(r"\b(File|Name): (\S+)")
TEXT = 'const char* {name}(void) {{ return "no CUDA here"; }}\n'
CODE = "void* {name}(void) {{ return (void*) {value}; }}\n"


def main(version: str, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    constraints = folder / "constraints.txt"
    exact = (REPOSITORY / "constraints.txt").read_text().splitlines()
    constraints.write_text("\n".join(line for line in exact if not line.startswith("torch==")))
    wanted = planned(folder, constraints, version)
    if any(CUDA.match(name) for name in wanted) and has_tools():
        needs = [f"{n}=={v}" for n, v in wanted.items() if n != "torch" and not CUDA.match(n)]
        pip(folder, "install", "-c", constraints, *needs, *NEEDS)
        pip(folder, "install", "--no-deps", f"torch=={version}")
        write_stubs(next(folder.glob("lib/python*/site-packages/torch/lib")))
    else:
        pip(folder, "install", "-c", constraints, f"torch=={version}", *NEEDS)
    pip(folder, "install", "--no-deps", "-e", REPOSITORY)


def pip(folder: Path, command: str, *arguments: object) -> None:
    quiet = ("--disable-pip-version-check", "--quiet")
    line = [folder / "bin" / "python", "-m", "pip", command, *quiet, *arguments]
    subprocess.run([str(part) for part in line], check=True)


def planned(folder: Path, constraints: Path, version: str) -> dict[str, str]:
    """Return the version of every package that a plain install of torch would bring."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.json")
        options = ("--dry-run", "--ignore-installed", "--report", report, "-c", constraints)
        pip(folder, "install", *options, f"torch=={version}")
        found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in found}


def has_tools() -> bool:
    try:
        for tool in ("cc", "readelf"):
            subprocess.run([tool, "--version"], check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        return False
    return True


def readelf(option: str, library: Path) -> str:
    line = ["readelf", "--wide", option, str(library)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def write_stubs(folder: Path) -> None:
    """Write a stub of every library that those in `folder` link against and do not find."""
    files = sorted(folder.glob("*.so*"))
    missing = {name for file in files for name in NEEDED.findall(readelf("-d", file))}
    missing = sorted(n for n in missing - {f.name for f in files} if not SYSTEM.match(n))
    stubs: dict[str, dict[str, set[str]]] = {name: {name: set()} for name in missing}
    homes = {version: home for file in files for version, home in versions(file)}
    wanted, present = symbols(files)
    for name, version in wanted:
        home = homes.get(version, missing[0])
        if name not in present and home in stubs:
            stubs[home].setdefault(version or home, set()).add(name)
    for library, names in stubs.items():
        compile_stub(folder / library, names)


def versions(file: Path) -> list[tuple[str, str]]:
    """Return the symbol versions that a library asks for, each with the library that has it."""
    found, home = [], ""
    for kind, name in VERSION.findall(readelf("-V", file)):
        home = name if kind == "File" else home
        found += [(name, home)] if kind == "Name" and home else []
    return found


def symbols(files: list[Path]) -> tuple[set[tuple[str, str]], set[str]]:
    """Return the symbols that libraries ask for, each with its version, and those they define."""
    wanted, present = set(), set()
    for file in files:
        for place, name, version in SYMBOL.findall(readelf("--dyn-syms", file)):
            if place == "UND":
                wanted.add((name, version))
            else:
                present.add(name)
    return wanted, present


def compile_stub(library: Path, versioned: dict[str, set[str]]) -> None:
    """Compile a library whose functions all fail, under the symbol versions asked for."""
    names = sorted(set().union(*versioned.values()))
    with tempfile.TemporaryDirectory() as temporary:
        source, script = Path(temporary, "stub.c"), Path(temporary, "versions")
        texts = [name for name in names if name.endswith(("ErrorString", "ErrorName"))]
        lines = [TEXT.format(name=name) for name in texts]
        lines += [CODE.format(name=name, value=NO_DEVICE) for name in names if name not in texts]
        source.write_text("".join(lines))
        lists = {v: " ".join(f"{name};" for name in sorted(n)) for v, n in versioned.items()}
        script.write_text("".join(f"{v} {{ global: {n or '*;'} }};\n" for v, n in lists.items()))
        options = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library.name}"]
        options.append(f"-Wl,--version-script={script}")
        subprocess.run(["cc", *options, "-o", str(library), str(source)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
