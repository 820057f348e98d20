"""Fetch the libraries of the chat page again: `python docs/vendor.py`, or `--check` that the files are as they were.

octavo/server/static/vendor/manifest.json says which versions, and what the registry's archives and each file hash to.
To take a newer one, change its version and "integrity" there (`npm view NAME@VERSION dist.integrity`) and run this.
It needs npm; nothing else does: the files are in the repository.
"""

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "octavo" / "server" / "static" / "vendor"
MANIFEST = VENDOR / "manifest.json"


def archive(name: str, version: str, integrity: str, folder: str) -> tarfile.TarFile:
    """A package of the npm registry, if it is the one that the manifest means."""
    command = ["npm", "pack", f"{name}@{version}", "--json", "--ignore-scripts", "--pack-destination", folder]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (one,) = made if isinstance(made, list) else made.values()
    data = Path(folder, Path(one["filename"]).name).read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != integrity:
        raise SystemExit(f"{name} {version} hashes to {found}, and the manifest says {integrity}")
    return tarfile.open(fileobj=io.BytesIO(data), mode="r:gz")


def fetch() -> None:
    """Every file from its package, and its hash into the manifest."""
    manifest = json.loads(MANIFEST.read_text())
    for library in manifest:
        of = (library["name"], library["version"], library["integrity"])
        with tempfile.TemporaryDirectory() as folder, archive(*of, folder) as packed:
            for target, file in library["files"].items():
                member = packed.extractfile("package/" + file["from"])
                assert member is not None, file["from"]
                data = member.read()
                (VENDOR / target).parent.mkdir(parents=True, exist_ok=True)
                (VENDOR / target).write_bytes(data)
                file["sha256"] = hashlib.sha256(data).hexdigest()
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n")


def wrong_files() -> list[str]:
    """Files that are not as the manifest says, or that it does not name."""
    hashes = {t: f["sha256"] for library in json.loads(MANIFEST.read_text()) for t, f in library["files"].items()}
    there = {p.relative_to(VENDOR).as_posix(): p for p in VENDOR.rglob("*") if p.is_file() and p != MANIFEST}
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items()}
    return sorted(name for name in hashes.keys() | found.keys() if hashes.get(name) != found.get(name))


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        fetch()
    if wrong := wrong_files():
        raise SystemExit(f"not as manifest.json says: {', '.join(wrong)}")
