"""Build the wheel and the source archive, install the wheel alone into a new environment, and use it there.

    python scripts/check_dist.py [--out dist]      # two to three minutes, needs a package index

The wheel is built from the source archive (`python -m build` does so), so both are proven. In the new
environment there is only the base install: help, doctor, predict, verify, and the line of a missing extra.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARTIFACT = """
import sys
from pathlib import Path
import vitrail
from artifacts import make_artifact
assert Path(vitrail.__file__).is_relative_to(sys.prefix), vitrail.__file__
make_artifact(Path(sys.argv[1]))
"""


def run(*command: object, expect: int = 0, **options: object) -> str:
    """What the command says on both streams; stops unless it ends with `expect`."""
    shown = " ".join(map(str, command))
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    if done.returncode != expect:
        sys.exit(f"{shown}\nended with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}")
    print(f"ok  {shown}", flush=True)
    return done.stdout + done.stderr


def main() -> int:
    """Exit code 0, or 1 with what did not work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="dist", help="where wheel and archive go (dist)")
    out = ROOT / parser.parse_args().out
    for old in out.glob("vitrail-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    (wheel,) = out.glob("vitrail-*.whl")
    with tempfile.TemporaryDirectory() as temporary:
        use(wheel, Path(temporary))
    return 0


def use(wheel: Path, folder: Path) -> None:
    """Install it into an environment below `folder`, and go through the commands of the base install."""
    venv.create(folder / "venv", with_pip=True)
    python, vitrail = (folder / "venv" / "bin" / name for name in ("python", "vitrail"))
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    here = {"cwd": folder, "env": {**environment, "VITRAIL_CACHE": str(folder / "cache")}}
    assert "select" in run(vitrail, "--help", **here)
    assert "OpenVINO" in run(vitrail, "doctor", **here)
    made = {**here, "env": {**here["env"], "PYTHONPATH": str(ROOT / "tests")}}
    run(python, "-c", ARTIFACT, folder / "made", **made)
    artifact, photo = folder / "made" / "winner", folder / "made" / "photos" / "photo0.png"
    assert "photo0.png" in run(vitrail, "predict", artifact, photo, **here)
    assert "holds its claims" in run(vitrail, "verify", artifact, **here)
    said = run(vitrail, "select", "--max-latency", "1s", expect=2, **here)
    assert "[workbench]" in said, said
    assert "Traceback" not in said, said
    line = shlex.split(said.split("`")[1])
    print(*line)
    words = [python, "-m", *line] if line[0] == "pip" else line
    run(*words, "--dry-run", "--no-deps", "-q", **here)


if __name__ == "__main__":
    sys.exit(main())
