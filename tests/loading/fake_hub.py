"""A hub on this machine: the few answers of the Hugging Face API that a download asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        repo: str = self.server.repo
        if self.path.startswith(f"/api/models/{repo}/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": p.name,
                    "size": p.stat().st_size,
                    "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
                }
                for p in sorted(self.server.folder.iterdir())
            ]
            return self._answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        if self.path.startswith(f"/api/models/{repo}"):
            if "revision" in self.path and not self.path.split("revision/")[1].startswith(("main", "v2", COMMIT)):
                return self._answer(404, b"{}", X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": p.name} for p in sorted(self.server.folder.iterdir())]
            body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self._answer(200, json.dumps(body).encode(), Content_Type="application/json")
        if self.path.startswith(f"/{repo}/resolve/"):
            file = self.server.folder / self.path.rpartition("/")[2]
            data = file.read_bytes()
            return self._answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', Accept_Ranges="bytes")
        return self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@contextmanager
def serve(folder: Path, repo: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """The address of a hub that has `folder` as the model `repo`, and the requests it has seen."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.repo, server.seen = folder, repo, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.seen
    finally:
        server.shutdown()
