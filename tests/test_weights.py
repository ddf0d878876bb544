"""Finding weights: packages, files, and the real hub client against a hub on this machine. About 6 s.

The hub here answers as the public one is documented to: `resolve` URLs, 302 to a storage host with the
commit, the size and the etag in the headers of the redirect, and error codes in `X-Error-Code`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from vitrail.catalog import candidates
from vitrail.errors import InputError
from vitrail.vocabulary import Candidate, Weights
from vitrail.weights import find as module
from vitrail.weights.find import WeightsFinder, WeightsUnavailable, missing

FIRST, SECOND, THIRD = "a" * 40, "b" * 40, "c" * 40
MIB = 1024 * 1024


class Hub(http.server.ThreadingHTTPServer):
    """Repositories as {name: {commit: {file: bytes}}}; the last commit is the head."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        """Repository -> status and X-Error-Code."""
        self.broken_storage = False
        self.seen: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.path.startswith("/api/"):  # the client asks for more than files; nothing here needs it
            self.answer(404, {})
            return
        self.server.seen.append(f"{self.command} {self.path}")
        if self.path.startswith("/storage/"):
            self.storage(self.path.removeprefix("/storage/"))
            return
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        repo = f"{owner}/{name}"
        if repo in self.server.refused:
            status, code = self.server.refused[repo]
            self.answer(status, {"X-Error-Code": code} if code else {})
        elif repo not in self.server.repos:
            self.answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        else:
            self.resolve(repo, revision, file)

    do_GET = do_HEAD

    def resolve(self, repo: str, revision: str, file: str) -> None:
        commits = self.server.repos[repo]
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        elif file not in commits[commit]:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            content = commits[commit][file]
            storage = f"http://localhost:{self.server.server_port}/storage/{repo}/{commit}/{file}"
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Location": storage,
            }
            self.answer(302, headers)

    def storage(self, path: str) -> None:
        if self.server.broken_storage:
            self.answer(403, {})
            return
        owner, name, commit, file = path.split("/", 3)
        self.answer(200, {}, self.server.repos[f"{owner}/{name}"][commit][file])

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one's own, with the client pointed at it and empty caches."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "vitrail"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        point_at(monkeypatch, server.url)
        yield server
        server.shutdown()


def point_at(monkeypatch, url: str) -> None:
    # The client reads HF_ENDPOINT when it is imported; the last test here does it that way.
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def of(source: str, reference: str) -> Candidate:
    return dataclasses.replace(
        candidates()[0], name=f"{reference}.test", weights=Weights(source=source, reference=reference)
    )


TINY = of("hub", "acme/tiny")


def refusal(finder: WeightsFinder, candidate: Candidate = TINY) -> str:
    with pytest.raises(WeightsUnavailable) as raised:
        finder.locate(candidate)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert ": " in sentence, "the fix comes after a colon"
    return sentence


def test_what_several_models_lack_is_one_line_for_each_reason():
    """Packages are one line for pip, and a hub that is away is said once, with the number of its models."""
    offline, away = WeightsFinder(offline=True), WeightsFinder()
    away._unreachable = "the model hub cannot be reached (ConnectError)"
    asked = [
        (offline, of("package", "no-such-a")),
        (offline, of("package", "no-such-b")),
        (away, TINY),
        (away, of("hub", "acme/small")),
        (offline, of("hub", "acme/other")),
    ]
    errors = []
    for finder, one in asked:
        with pytest.raises(WeightsUnavailable) as raised:
            finder.locate(one)
        errors.append(raised.value)
    packages, hub, unasked = missing(errors)
    assert packages.startswith("2 models: `")
    assert packages.endswith("pip install no-such-a no-such-b`")
    assert hub.startswith("2 models: the model hub cannot be reached (ConnectError): connect, or")
    assert unasked == "1 model: not downloaded because of --offline: run once without it"


# --- the first download locks the revision --------------------------------------------------------


def test_the_first_download_locks_the_commit_and_digest(hub, tmp_path):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    finder = WeightsFinder()
    assert not finder.at_hand(TINY)
    assert hub.seen == []
    found = finder.locate(TINY)
    assert found.path.read_bytes() == b"first"
    assert found.weights.revision == FIRST
    assert found.weights.sha256 == hashlib.sha256(b"first").hexdigest()
    assert json.loads((tmp_path / "vitrail/hub-revisions.json").read_text()) == {"acme/tiny": FIRST}
    assert WeightsFinder().at_hand(TINY)


def test_offline_finds_what_was_downloaded_at_the_locked_commit(hub):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    before = WeightsFinder().locate(TINY)
    hub.seen.clear()
    assert WeightsFinder(offline=True).locate(TINY) == before
    assert hub.seen == []


def test_when_the_head_moves_the_locked_commit_is_still_used(hub, tmp_path, monkeypatch):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    before = WeightsFinder().locate(TINY)
    hub.repos["acme/tiny"][SECOND] = {"model.safetensors": b"second"}
    # Another program fetches the new head into the shared cache.
    import huggingface_hub

    new = huggingface_hub.hf_hub_download("acme/tiny", "model.safetensors")
    assert Path(new).read_bytes() == b"second"
    assert WeightsFinder().locate(TINY) == before
    # The same on an empty cache of the hub's: the lock is asked for.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    again = WeightsFinder().locate(TINY)
    assert (again.path.read_bytes(), again.weights) == (b"first", before.weights)


def test_what_another_program_downloaded_is_used_and_locked(hub, tmp_path):
    import huggingface_hub

    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    huggingface_hub.hf_hub_download("acme/tiny", "model.safetensors")
    assert WeightsFinder(offline=True).locate(TINY).weights.revision == FIRST
    hub.repos["acme/tiny"][SECOND] = {"model.safetensors": b"second"}
    huggingface_hub.hf_hub_download("acme/tiny", "model.safetensors")
    assert WeightsFinder(offline=True).locate(TINY).path.read_bytes() == b"first"


def test_a_revision_that_the_candidate_names_wins_over_the_lock(hub):
    commits = {name: {"model.safetensors": name.encode()} for name in (FIRST, SECOND, THIRD)}
    hub.repos["acme/tiny"] = commits
    assert WeightsFinder().locate(TINY).weights.revision == THIRD
    pinned = dataclasses.replace(TINY, weights=dataclasses.replace(TINY.weights, revision=SECOND))
    assert WeightsFinder().locate(pinned).path.read_bytes() == SECOND.encode()


def test_a_damaged_lock_file_is_written_anew(hub, tmp_path):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    locks = tmp_path / "vitrail" / "hub-revisions.json"
    locks.parent.mkdir()
    locks.write_text('{"acme/ti')
    assert WeightsFinder().locate(TINY).weights.revision == FIRST
    assert json.loads(locks.read_text()) == {"acme/tiny": FIRST}


def test_a_repository_without_safetensors_gives_its_torch_file(hub):
    hub.repos["acme/tiny"] = {FIRST: {"pytorch_model.bin": b"torch"}}
    found = WeightsFinder().locate(TINY)
    assert (found.path.name, found.path.read_bytes()) == ("pytorch_model.bin", b"torch")
    assert WeightsFinder(offline=True).locate(TINY).path == found.path


# --- refusals are one sentence --------------------------------------------------------------------


def test_offline_without_a_download_is_one_sentence(hub):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    assert "run once without --offline" in refusal(WeightsFinder(offline=True))
    assert hub.seen == []


def test_max_download_is_an_allowance_for_all_downloads(hub):
    content = bytes(MIB)
    hub.repos = {f"acme/{n}": {FIRST: {"model.safetensors": content + n.encode()}} for n in "abc"}
    finder = WeightsFinder(max_download_mib=2.5)
    for name in "ab":
        finder.locate(of("hub", f"acme/{name}"))
    hub.seen.clear()
    sentence = refusal(finder, of("hub", "acme/c"))
    assert "are 1 MiB and --max-download leaves 0 MiB" in sentence
    assert [line.split()[0] for line in hub.seen] == ["HEAD"], "the size is asked, the file is not fetched"
    # What is on this machine costs nothing.
    assert WeightsFinder(max_download_mib=0).locate(of("hub", "acme/a")).weights.revision == FIRST


def test_a_repository_that_is_not_there_stops_only_itself(hub):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    finder = WeightsFinder()
    assert "The hub has no acme/none" in refusal(finder, of("hub", "acme/none"))
    assert finder.locate(TINY).path.read_bytes() == b"first"


def test_a_repository_without_weights_files_is_named(hub):
    hub.repos["acme/tiny"] = {FIRST: {"README.md": b"nothing"}}
    assert "holds none of model.safetensors, pytorch_model.bin" in refusal(WeightsFinder())


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "GatedRepo", "log in with `hf auth login`"),
        (403, "GatedRepo", "log in with `hf auth login`"),
        (401, "", "refuses acme/tiny .HTTP 401.: check your login"),
        (403, "", "refuses acme/tiny .HTTP 403.: check your login"),
    ],
)
def test_a_repository_that_asks_for_a_login_says_so_and_stops_only_itself(hub, status, code, said):
    hub.refused["acme/tiny"] = (status, code)
    hub.repos["acme/open"] = {FIRST: {"model.safetensors": b"open"}}
    finder = WeightsFinder()
    assert re.search(said, refusal(finder))
    assert finder.locate(of("hub", "acme/open")).path.read_bytes() == b"open"


def test_a_locked_commit_that_is_gone_says_how_to_unlock(hub, tmp_path, monkeypatch):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    WeightsFinder().locate(TINY)
    hub.repos["acme/tiny"] = {SECOND: {"model.safetensors": b"second"}}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "emptied"))
    sentence = refusal(WeightsFinder())
    assert FIRST in sentence
    assert "hub-revisions.json" in sentence


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_out_of_order_is_asked_once(hub, status):
    hub.refused["acme/tiny"] = (status, "")
    hub.repos["acme/open"] = {FIRST: {"model.safetensors": b"open"}}
    finder = WeightsFinder()
    begin = time.monotonic()
    assert f"cannot be reached (HTTP {status})" in refusal(finder)
    assert len(hub.seen) == 1
    assert "cannot be reached" in refusal(finder, of("hub", "acme/open"))
    assert len(hub.seen) == 1
    assert time.monotonic() - begin < 20


def test_a_closed_port_fails_fast_and_is_tried_once(hub, monkeypatch):
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    finder = WeightsFinder()
    begin = time.monotonic()
    assert "cannot be reached (ConnectError): connect, or pass them with --weights FILE" in refusal(finder)
    assert time.monotonic() - begin < 20
    # The hub is back, yet nobody waits for it a second time in this selection.
    point_at(monkeypatch, hub.url)
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    assert "cannot be reached" in refusal(finder)
    assert hub.seen == []
    assert WeightsFinder().locate(TINY).weights.revision == FIRST


def test_a_hub_that_never_answers_is_waited_for_once(hub, monkeypatch):
    monkeypatch.setattr(module, "HUB_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert "cannot be reached (ReadTimeout)" in refusal(WeightsFinder())
        assert time.monotonic() - begin < 20


def test_a_download_that_breaks_off_leaves_no_weights(hub):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    hub.broken_storage = True
    assert "HTTP 403" in refusal(WeightsFinder())
    assert not WeightsFinder().at_hand(TINY)
    hub.broken_storage = False
    assert WeightsFinder().locate(TINY).path.read_bytes() == b"first"


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_hub(hub, tmp_path, monkeypatch):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    (tmp_path / "taken").write_text("a file, no folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "taken" / "hub"))
    assert "cannot be saved" in refusal(WeightsFinder())


# --- packages and files ---------------------------------------------------------------------------


def test_a_package_gives_its_one_weights_file(monkeypatch, tmp_path):
    package = tmp_path / "acme_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models" / "net.pth").write_bytes(b"net")
    monkeypatch.syspath_prepend(tmp_path)
    found = WeightsFinder(offline=True).locate(of("package", "acme-weights"))
    assert found.path == package / "models" / "net.pth"
    assert found.weights.sha256 == hashlib.sha256(b"net").hexdigest()
    assert WeightsFinder().at_hand(of("package", "acme-weights"))


def test_a_package_that_is_not_installed_names_its_install_line():
    missing = of("package", "acme-none")
    assert not WeightsFinder().at_hand(missing)
    assert "pip install acme-none" in refusal(WeightsFinder(), missing)


def test_a_file_is_digested_and_a_missing_one_is_bad_input(tmp_path):
    path = tmp_path / "net.pth"
    with pytest.raises(InputError, match="check --weights") as raised:
        WeightsFinder().locate(of("file", str(path)))
    assert not isinstance(raised.value, WeightsUnavailable), "a typo ends the command"
    path.write_bytes(b"net")
    assert WeightsFinder().locate(of("file", str(path))).weights.sha256 == hashlib.sha256(b"net").hexdigest()


# --- as a user runs it ----------------------------------------------------------------------------

SCRIPT = """
import dataclasses, json, sys
from vitrail.catalog import candidates
from vitrail.weights.find import WeightsFinder
from vitrail.vocabulary import Weights

tiny = dataclasses.replace(candidates()[0], weights=Weights(source="hub", reference="acme/tiny"))
found = WeightsFinder(offline=sys.argv[1] == "offline").locate(tiny)
assert "torch" not in sys.modules
print(json.dumps([found.path.read_text(), found.weights.revision]))
"""


def test_a_new_process_with_the_hubs_own_settings_does_the_same(hub, tmp_path):
    hub.repos["acme/tiny"] = {FIRST: {"model.safetensors": b"first"}}
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "VITRAIL_CACHE": str(tmp_path / "another"),
    }

    def run(mode: str) -> list[str]:
        command = [sys.executable, "-c", SCRIPT, mode]
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=True
        )
        return json.loads(done.stdout)

    assert run("online") == ["first", FIRST]
    hub.shutdown()
    assert run("offline") == ["first", FIRST]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "is a folder without a weights file (one that ends in .safetensors, .pt, .pth or .bin): check"),
        (["config.json"], "is a folder without a weights file"),
        (
            ["config.json", "model.safetensors"],
            "is a folder: give the weights file in it, {}/model.safetensors.",
        ),
        (["a.pth", "b.bin"], "is a folder with 2 weights files (a.pth, b.bin): give one of them"),
        (["a.pt", "b.pt", "c.pt", "d.PT"], "with 4 weights files (a.pt, b.pt, c.pt and 1 more)"),
    ],
)
@pytest.mark.parametrize("way", ["finder", "own", "clip"])
def test_a_folder_in_place_of_a_weights_file_says_what_it_holds(tmp_path, names, said, way):
    """No file is chosen for the user, however few there are; the same sentence wherever --weights is read."""
    from vitrail.sources.own import OwnWeights, own_candidate
    from vitrail.zeroshot.loading import load

    for name in names:
        (tmp_path / name).touch()
    folder = str(tmp_path)
    asked = dataclasses.replace(candidates()[0], weights=Weights(source="file", reference=folder))
    ways = {
        "finder": lambda: WeightsFinder(offline=True).locate(asked),
        "own": lambda: own_candidate(OwnWeights(file=folder, arch="resnet18", labels="labels.txt")),
        "clip": lambda: load("ViT-B-32", weights=folder, tag="laion2b_s34b_b79k"),
    }
    with pytest.raises(InputError) as error:
        ways[way]()
    assert str(error.value).startswith(folder)
    assert said.format(folder) in str(error.value)
