"""The hub: places, what is told when it cannot be reached, and a way there and back over a small server of its API."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.saes import build, formats, load
from monosem.saes.formats import push
from monosem.saes.formats.hub import Reference, fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def made(architecture="topk"):
    dictionary = build(architecture, d_in=6, n_latents=20, k=3)
    for seed, parameter in enumerate(dictionary.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    if architecture == "jumprelu":
        dictionary.theta.abs_()
    return dictionary


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:org/repo", ("org/repo", "", None)),
        ("hf:org/repo/", ("org/repo", "", None)),
        ("hf:org/re.po-1/a/b.c@v1", ("org/re.po-1", "a/b.c", "v1")),
        ("hf:org/repo@refs/pr/1", ("org/repo", "", "refs/pr/1")),
        ("hf:org/repo/layer_3.safetensors", ("org/repo", "layer_3.safetensors", None)),
    ],
)
def test_places(text, parts):
    assert Reference.parse(text) == parts
    assert str(Reference(*parts)) == text.rstrip("/")


@pytest.mark.parametrize("text", ["hf:", "hf:repo", "hf:/repo", "hf:org/re po", "hf:org//x"])
def test_what_is_no_place(text):
    with pytest.raises(InputError, match="is no place on the hub: write hf:ORG/REPO"):
        load(text)


def test_offline_is_one_sentence():
    with pytest.raises(InputError, match=r"^hf:no/such/x@main is not in the local cache, for the hub is out of reach"):
        load("hf:no/such/x@main")
    with pytest.raises(InputError, match=r"^hf:no/such cannot be written, for the hub is out of reach"):
        push(made(), "no/such")
    with pytest.raises(InputError, match="and this is gated"):
        push(made("gated"), "no/such", to="sparsify")


# --- a repository in the hub's cache, as huggingface_hub lays it out


def cached(cache: Path, dictionary, folder: str, to=None) -> Path:
    """`folder` of hf:org/repo, already fetched: large files lie under their SHA-256."""
    repo = cache / "models--org--repo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    place = repo / "snapshots" / COMMIT / folder
    place.parent.mkdir(parents=True)
    if to:
        formats.write(dictionary, place, to)
    else:
        dictionary.save(place)
    for file in place.iterdir():
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, place))
    return place


@pytest.mark.parametrize("to", [None, "sae-lens", "gemma-scope-2"])
def test_what_is_in_the_cache_needs_no_network(tmp_path, to):
    dictionary = made("jumprelu")
    place = cached(tmp_path, dictionary, "a/b", to)
    found = fetch(Reference.parse("hf:org/repo/a/b"), formats.FILES, tmp_path)
    assert found == place
    x = torch.randn(9, 6)
    torch.testing.assert_close(load(found)(x), dictionary(x), rtol=1e-5, atol=1e-5)
    assert fetch(Reference.parse(f"hf:org/repo/a/b@{COMMIT}"), formats.FILES, tmp_path) == place
    with pytest.raises(InputError, match="hf:org/repo/c is not in the local cache"):
        fetch(Reference.parse("hf:org/repo/c"), formats.FILES, tmp_path)


def test_a_damaged_file_in_the_cache_is_noticed(tmp_path):
    place = cached(tmp_path, made(), "a")
    blob = (place / "dictionary.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(
        InputError, match=r"dictionary\.safetensors is damaged \(its SHA-256 is not [0-9a-f]{64}\): delete"
    ):
        fetch(Reference.parse("hf:org/repo/a"), formats.FILES, tmp_path)


# --- over the wire


class Hub(ThreadingHTTPServer):
    """As much of the hub's API as an upload and a download of small files use."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        return

    def reply(self, body: bytes | dict | list, status=200, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if b"locked" in body:
            self.reply({"error": "not yours"}, 403)
        elif self.path == "/api/repos/create":
            self.reply({"url": f"http://{self.headers['Host']}/org/repo"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/org/repo/commit/{COMMIT}"
            self.reply({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.reply({"error": f"no {self.path}"}, 404)

    def do_GET(self):
        files = self.server.files
        path = self.path.partition("?")[0]
        if not path.startswith(("/api/models/org/repo", "/org/repo/resolve/")):
            self.reply({"error": "no such"}, 404, X_Error_Code="RepoNotFound")
        elif "/revision/v9" in path:
            self.reply({"error": "no such"}, 404, X_Error_Code="RevisionNotFound")
        elif "/tree/" in path:
            self.reply([{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files])
        elif path.startswith("/api/"):
            self.reply({"id": "org/repo", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif (name := path.split("/", 5)[5]) in files:
            self.reply(files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"')
        else:
            self.reply({"error": "no such"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


THERE_AND_BACK = """
import sys, torch
from monosem.lab.errors import InputError
from monosem.saes import load
from monosem.saes.formats import push
mine = load(sys.argv[1])
print(push(mine, "org/repo", folder="ours"))
print(push(mine, "org/repo", folder="lens/blocks.2.hook_resid_post", to="sae-lens"))
for place in ("hf:org/repo/ours", "hf:org/repo/lens/blocks.2.hook_resid_post@main"):
    again = load(place)
    assert type(again) is type(mine) and all(torch.equal(t, again.tensors()[n]) for n, t in mine.tensors().items())
try:
    push(mine, "org/locked")
except InputError as error:
    print(error)
for place in ("hf:org/repo/lens/blocks.3.hook_resid_post", "hf:org/repo", "hf:org/missing", "hf:org/repo/ours@v9"):
    try:
        load(place)
    except InputError as error:
        print(error)
"""


def test_there_and_back(tmp_path):
    made("batchtopk").save(tmp_path / "mine")
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{hub.server_port}"
    told = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", THERE_AND_BACK, str(tmp_path / "mine")],
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        hub.shutdown()
        hub.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{address}/org/repo/tree/main/ours",
        f"{address}/org/repo/tree/main/lens/blocks.2.hook_resid_post",
        "the hub refuses org/locked: log in with `hf auth login` (or set HF_TOKEN) as one who may",
        "hf:org/repo/lens/blocks.3.hook_resid_post: unknown folder of org/repo 'lens/blocks.3.hook_resid_post': did you"
        " mean 'lens/blocks.2.hook_resid_post'?",
        "hf:org/repo: no dictionary's files there; the folders are lens/blocks.2.hook_resid_post, ours",
        "no repository org/missing on the hub that you may use: check the name, or log in with `hf auth login`",
        "org/repo has no revision 'v9'",
    ]
    assert {"ours/dictionary.json", "ours/dictionary.safetensors"} < set(hub.files)
    kept = fetch(Reference.parse("hf:org/repo/ours"), formats.FILES, tmp_path / "home/hub")  # the server is gone
    assert load(kept).architecture == "batchtopk"
