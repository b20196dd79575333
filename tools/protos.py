"""Usage: tools/protos.py write|check: make the Python messages of src/handclasp/proto/*.proto, or tell whether they are up to date."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PROTOS = SOURCE / "handclasp" / "proto"


def generate(into: Path) -> None:
    """Write the messages below ``into``."""
    files = [str(path.relative_to(SOURCE)) for path in sorted(PROTOS.glob("*.proto"))]
    included = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{SOURCE}", f"-I{included}", f"--python_out={into}", f"--pyi_out={into}", *files]
    if protoc.main(arguments) != 0:
        raise SystemExit("the protocol files cannot be compiled")


def stale() -> list[str]:
    """Return the names of generated files that differ from what would be generated now."""
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh = sorted(Path(directory).rglob("*_pb2.py*"))
        return [path.name for path in fresh if not (PROTOS / path.name).exists() or (PROTOS / path.name).read_text() != path.read_text()]


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:] == ["write"]:
        generate(SOURCE)
    elif sys.argv[1:] == ["check"]:
        if found := stale():
            raise SystemExit(f"not up to date: {', '.join(found)}; run: make protos")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
