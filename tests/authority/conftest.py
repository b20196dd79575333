"""A SoftHSM2 token, one for each test process: PKCS#11 libraries read their settings once and are never really unloaded."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.needs import needs

LIBRARIES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so")
PIN = "271828"


@dataclass(frozen=True)
class SoftHsm:
    module: str
    environ: dict[str, str]
    pin_file: Path

    def uri(self, name: str, *, token: str = "handclasp-test", pin: bool = True) -> str:
        return f"pkcs11:token={token};object={name}" + (f"?pin-source=file:{self.pin_file}" if pin else "")


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    needs("softhsm2")
    module = next(path for path in LIBRARIES if Path(path).exists())
    if find_spec("pkcs11") is None:
        pytest.skip("python-pkcs11 is not installed")
    home = tmp_path_factory.mktemp("softhsm")
    (home / "tokens").mkdir()
    (home / "softhsm2.conf").write_text(f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(home / "softhsm2.conf")
    for label in ("handclasp-test", "handclasp-other"):
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "31415926"]
        subprocess.run(command, check=True, capture_output=True)
    pin_file = home / "pin"
    pin_file.write_text(PIN + "\n")
    pin_file.chmod(0o600)
    return SoftHsm(module, {"HANDCLASP_PKCS11_MODULE": module, "HANDCLASP_PKCS11_PIN": PIN}, pin_file)
