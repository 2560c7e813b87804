"""Models by name: folders first, then the bundled one, then the hub, which here is a small server of our own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from conftest import call, make_model, save_checkpoint
from transformers import AutoTokenizer, OPTForCausalLM

import flashlite
from flashlite.errors import CheckpointError, FlashliteError, StoreError
from flashlite.storage import find
from flashlite.storage.find import open_model
from flashlite.storage.hub import BUNDLED_MODEL, find_checkpoint
from flashlite.storage.pack import pack
from flashlite.storage.store import Store

MODEL = "someone/tiny"


class Hub(ThreadingHTTPServer):
    """What the hub's client asks of a hub. repos: by model, its commits, oldest first; refs: by model, name to commit;
    fetched: every file that was downloaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.fetched: list[str] = []

    def publish(self, folder: Path, model: str = MODEL, ref: str = "main") -> str:
        """Make a folder the newest commit of a model; returns the commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[model, commit] = files
        self.refs[model, ref] = commit
        return commit


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        model, verb, ref, path = "/".join(parts[:2]), *(*parts[2:4], "", "main")[:2], "/".join(parts[4:])
        commit = self.server.refs.get((model, ref or "main"), ref)
        if (files := self.server.commits.get((model, commit))) is None or (verb == "resolve" and path not in files):
            kind = "RevisionNotFound" if any(m == model for m, _ in self.server.refs) else "RepoNotFound"
            return self._send(404, b"", {"X-Error-Code": kind if files is None else "EntryNotFound"}, body)
        if verb == "resolve":
            if body:
                self.server.fetched.append(path)
            etag = hashlib.sha1(files[path]).hexdigest()
            return self._send(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)
        if verb == "tree":
            listed: Any = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        else:
            listed = {"id": model, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with its client's cache and flashlite's home in folders of this test."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
    template = place + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to be offline from then on."""
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def embedding(store: Store) -> torch.Tensor:
    loaded = flashlite.load(store, predictor="oracle", dram_budget="2MB")
    return loaded.model.decoder.embed_tokens.weight


def assert_one_line(error: pytest.ExceptionInfo[Exception]) -> None:
    assert "\n" not in str(error.value)


def test_a_model_is_downloaded_and_packed_once(hub: Hub, tiny_checkpoint: Path, tiny_store: Store) -> None:
    commit = hub.publish(tiny_checkpoint)
    first, again = open_model(MODEL), open_model(MODEL)
    assert first.manifest["files"] == tiny_store.manifest["files"]
    assert commit[:12] in first.path.name
    assert again.path == first.path
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]


# What is downloaded

TOKENIZER = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "additional_chat_templates/tools.jinja", "tokenizer.model",
)  # fmt: skip
LEFT = (
    "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "README.md", "evil.py", "onnx/config.json", "onnx/model.onnx",
    "checkpoint-5/model.safetensors", "checkpoint-5/trainer.json", "training_args.bin", "model.fp16.safetensors",
)  # fmt: skip
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "extra.safetensors")


def repository(folder: Path, kind: str, shards: int = 1) -> Path:
    """A checkpoint with all that repositories have beside it."""
    save_checkpoint(make_model(), folder, kind, shards)
    for name in (*TOKENIZER, *LEFT, *ADAPTER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"name": name}))  # the hub keeps the same content once
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_are_chosen_by_name_and_small_files_come_along(
    kind: str, shards: int, hub: Hub, tmp_path: Path
) -> None:
    folder = repository(tmp_path / "repository", kind, shards)
    weights = sorted(path.name for path in folder.glob(f"*model*.{kind}*") if path.name not in (*ADAPTER, *LEFT))
    assert len(weights) == (1 if shards == 1 else 3)
    hub.publish(folder)
    downloaded = find_checkpoint(MODEL)
    assert sorted(hub.fetched) == sorted(["config.json", "adapter_config.json", *TOKENIZER, *weights])
    assert pack(downloaded, tmp_path / "store").path.is_dir()


def test_safetensors_are_preferred_to_a_pickle(hub: Hub, tmp_path: Path) -> None:
    folder = save_checkpoint(make_model(), save_checkpoint(make_model(1), tmp_path / "repository", "bin"))
    hub.publish(folder)
    find_checkpoint(MODEL)
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]


def test_shards_of_any_name_are_those_of_the_index(hub: Hub, tmp_path: Path) -> None:
    folder = save_checkpoint(make_model(), tmp_path / "repository", "bin", shards=2)
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    for old, new in zip(sorted(set(index["weight_map"].values())), ("[1].bin", "second *.bin"), strict=True):
        (folder / old).rename(folder / new)
        index["weight_map"] = {k: new if v == old else v for k, v in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "second other.bin").write_bytes(b"")
    hub.publish(folder)
    pack(find_checkpoint(MODEL), tmp_path / "store").verify()
    assert sorted(hub.fetched) == ["[1].bin", "config.json", "pytorch_model.bin.index.json", "second *.bin"]


def test_the_file_that_the_configuration_names_is_the_one(hub: Hub, tmp_path: Path) -> None:
    folder = save_checkpoint(make_model(), tmp_path / "repository")
    save_checkpoint(make_model(1), tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", folder / "chosen.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "chosen.safetensors"}))
    hub.publish(folder)
    expected = OPTForCausalLM.from_pretrained(folder).model.decoder.embed_tokens.weight
    assert torch.equal(embedding(open_model(MODEL)), expected)
    assert "model.safetensors" not in hub.fetched


def test_a_tokenizer_from_the_hub_is_the_repositorys(hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED_MODEL, folder := tmp_path / "repository", ignore=shutil.ignore_patterns("*.safetensors"))
    save_checkpoint(make_model(vocab_size=4098, pad_token_id=0), folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "loud.jinja").write_text("{{ messages[0]['content'] }}!")
    hub.publish(folder)
    expected, found = (AutoTokenizer.from_pretrained(path) for path in (folder, open_model(MODEL).path))
    for arguments in ({}, {"chat_template": "loud"}):
        said = [
            t.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, **arguments)
            for t in (expected, found)
        ]
        assert said[0] == said[1]
    assert found("def f(x):")["input_ids"] == expected("def f(x):")["input_ids"]


# Commits


def test_a_model_that_was_updated_is_packed_anew(hub: Hub, tmp_path: Path) -> None:
    models = [make_model(seed) for seed in (0, 1)]
    commits = []
    for i, model in enumerate(models):
        commits.append(hub.publish(save_checkpoint(model, tmp_path / str(i))))
        assert torch.equal(embedding(open_model(MODEL)), model.model.decoder.embed_tokens.weight)
    hub.refs[MODEL, "v1"] = commits[0]
    for revision, i in ((commits[0], 0), ("v1", 0), ("main", 1), (None, 1)):
        store = open_model(MODEL, revision=revision)
        assert torch.equal(embedding(store), models[i].model.decoder.embed_tokens.weight)
        assert commits[i][:12] in store.path.name
    assert hub.fetched.count("model.safetensors") == 2


def test_a_named_revision_can_be_packed_by_hand(hub: Hub, tmp_path: Path) -> None:
    hub.publish(save_checkpoint(make_model(0), tmp_path / "0"), ref="old")
    hub.publish(save_checkpoint(make_model(1), tmp_path / "1"))
    store = pack(MODEL, tmp_path / "store", revision="old")
    assert torch.equal(embedding(store), make_model(0).model.decoder.embed_tokens.weight)


def test_models_of_the_same_name_are_told_apart(hub: Hub, tmp_path: Path) -> None:
    for i, model in enumerate((MODEL, "other/tiny")):
        hub.publish(save_checkpoint(make_model(i), tmp_path / str(i)), model)
    assert open_model(MODEL).path != open_model("other/tiny").path
    assert {open_model(model).manifest["name"] for model in (MODEL, "other/tiny")} == {"tiny"}


# Offline


def test_offline_the_hubs_cache_is_used_with_a_line(
    hub: Hub, offline: Any, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.publish(tiny_checkpoint)
    find_checkpoint(MODEL)
    offline()
    caplog.clear()
    assert commit[:12] in open_model(MODEL).path.name
    line = f"flashlite: {MODEL} as it was downloaded before, commit {commit}: the hub fails (OfflineModeIsEnabled)"
    assert caplog.messages[0] == line
    assert pack(MODEL, tmp_path / "store").path.is_dir()


def test_offline_a_packed_model_needs_no_cache(
    hub: Hub, offline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in (0, 1):
        hub.publish(save_checkpoint(make_model(i), tmp_path / str(i)))
        packed = open_model(MODEL)
    shutil.rmtree(tmp_path / "hub-cache")
    offline()
    caplog.clear()
    assert open_model(MODEL).path == packed.path
    assert [line.split(":")[1] for line in caplog.messages] == [f" {MODEL} as it was packed before, to {packed.path}"]
    with pytest.raises(CheckpointError) as error:
        open_model(MODEL, "bf16")
    assert_one_line(error)


def test_online_a_packed_model_needs_no_cache_either(hub: Hub, tiny_checkpoint: Path, tmp_path: Path) -> None:
    hub.publish(tiny_checkpoint)
    packed = open_model(MODEL)
    shutil.rmtree(tmp_path / "hub-cache")
    hub.fetched.clear()
    assert open_model(MODEL).path == packed.path
    assert hub.fetched == []


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    for act in (lambda: open_model(MODEL), lambda: pack(MODEL, tmp_path / "store")):
        with pytest.raises(CheckpointError, match=r"is not a local folder, and downloading it .*\(ConnectError\)") as e:
            act()
        assert_one_line(e)


def test_what_only_the_tokenizer_was_downloaded_of_is_no_model(
    hub: Hub, offline: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    hub.publish(tiny_checkpoint)
    snapshot_download(MODEL, allow_patterns=["config.json"])
    offline()
    with pytest.raises(CheckpointError, match="is not a local folder, and downloading it from the hub failed"):
        open_model(MODEL)


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("someone/absent", None, "RepositoryNotFoundError.: check the name and the network"),
        (MODEL, "absent", "at revision 'absent' from the hub failed .RevisionNotFoundError.: .*the revision"),
        ("no such: name", None, "HFValidationError"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(
    model: str, revision: str | None, words: str, hub: Hub, tiny_checkpoint: Path
) -> None:
    hub.publish(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=words) as error:
        open_model(model, revision=revision)
    assert_one_line(error)


def test_a_repository_without_weights_or_configuration_is_one_line(hub: Hub, tmp_path: Path) -> None:
    folder = repository(tmp_path / "repository", "safetensors")
    (folder / "model.safetensors").unlink()
    hub.publish(folder)
    with pytest.raises(CheckpointError, match=r"holds no weights: expected one of model\.safetensors, "):
        open_model(MODEL)
    (folder / "config.json").unlink()
    hub.publish(folder)
    with pytest.raises(CheckpointError, match=r"has no config\.json: is it a checkpoint folder\?"):
        open_model(MODEL)


# Folders come first


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a checkpoint called opt-mini in it, and a home for packed models."""
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    save_checkpoint(make_model(), tmp_path / "work" / "opt-mini")
    return tmp_path / "work"


@pytest.mark.parametrize("kind", ["plain", "path", "dotted", "absolute", "absolute path", "up and down"])
def test_a_folder_called_opt_mini_is_that_folder(kind: str, at_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = {
        "plain": "opt-mini", "path": Path("opt-mini"), "dotted": "./opt-mini", "absolute": str(at_home / "opt-mini"),
        "absolute path": at_home / "opt-mini", "up and down": "../work/opt-mini/",
    }[kind]  # fmt: skip
    assert find_checkpoint(model).resolve() == at_home / "opt-mini"
    assert ["not the model that comes with flashlite" in line for line in caplog.messages] == [True] * (kind == "plain")
    assert open_model(model).config.hidden_size == 64
    assert open_model(model).manifest["name"] == "opt-mini"


def test_a_store_called_opt_mini_is_that_store(at_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(at_home / "opt-mini")
    pack(save_checkpoint(make_model(), at_home / "checkpoint"), at_home / "opt-mini")
    assert open_model("./opt-mini").config.hidden_size == 64
    assert caplog.messages == []
    assert open_model("opt-mini").config.hidden_size == 64
    assert ["not the model that comes with flashlite" in line for line in caplog.messages] == [True]


def test_opt_mini_is_the_model_that_comes_with_flashlite(at_home: Path) -> None:
    shutil.rmtree(at_home / "opt-mini")
    assert find_checkpoint("opt-mini") == find_checkpoint(Path("opt-mini")) == BUNDLED_MODEL
    (at_home / "opt-mini").touch()
    assert find_checkpoint("opt-mini") == BUNDLED_MODEL
    with pytest.raises(CheckpointError, match="is a file: name the folder"):
        find_checkpoint("./opt-mini")


def test_only_hub_models_have_revisions(at_home: Path, tiny_store: Store) -> None:
    for model, kind in ((tiny_store, StoreError), (tiny_store.path, StoreError), ("opt-mini", CheckpointError)):
        with pytest.raises(kind, match=r"only hub models have revisions, and .*: leave out 'main'") as error:
            open_model(model, revision="main")
        assert_one_line(error)


@pytest.mark.parametrize("variable", ["FLASHLITE_HOME", "XDG_CACHE_HOME"])
def test_a_tilde_is_the_users_home(
    variable: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("FLASHLITE_HOME", "")
    monkeypatch.setenv(variable, "~/x")
    path = open_model(tiny_checkpoint).path
    assert path.parent == tmp_path / "me" / "x" / ("" if variable == "FLASHLITE_HOME" else "flashlite") / "stores"
    assert not (tmp_path / "~").exists()


def test_a_tilde_of_nobody_is_one_line(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", "~nobody-of-this-name/x")
    with pytest.raises(FlashliteError, match="home folder") as error:
        open_model(tiny_checkpoint)
    assert_one_line(error)


# Stores


@pytest.fixture
def published(tiny_store: Store, tmp_path: Path) -> Path:
    """The folder of a store that may be altered, with its card."""
    shutil.copytree(tiny_store.path, folder := tmp_path / "published")
    (folder / "README.md").write_text("# a card")
    (folder / "evil.py").write_text("raise SystemExit")
    return folder


def test_a_store_is_loaded_by_its_hub_id(hub: Hub, published: Path, tiny_model: OPTForCausalLM) -> None:
    commit = hub.publish(published)
    model = flashlite.load(MODEL, dram_budget="1MB", predictor="trained")
    assert commit in str(model.flash.store.path)
    assert sorted(hub.fetched) == sorted(path.name for path in published.iterdir() if path.name not in LEFT)
    ids = torch.arange(3, 23)[None]
    exact = flashlite.load(MODEL, dram_budget="1MB", predictor="oracle", stage=4)
    written = exact.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(written, tiny_model.generate(ids, max_new_tokens=8, do_sample=False))
    assert not (find.shelf()).exists()  # nothing is packed, and nothing is there twice


def test_a_store_of_the_hub_is_compared_with_its_checksums_once(
    hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(published)
    compared: list[Path] = []
    monkeypatch.setattr(Store, "verify", lambda store: compared.append(store.path))
    first = open_model(MODEL)
    open_model(MODEL)
    assert compared == [first.path]
    file = (first.path / "ffn-split.safetensors").resolve()
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    open_model(MODEL)
    assert compared == [first.path] * 2


@pytest.mark.parametrize("name", ["ffn-bundled.safetensors", "resident.safetensors", "checksums.safetensors"])
def test_a_damaged_store_of_the_hub_is_refused_each_time(name: str, hub: Hub, published: Path) -> None:
    content = bytearray((published / name).read_bytes())
    content[-1] ^= 1
    (published / name).write_bytes(content)
    hub.publish(published)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{MODEL}, a store of the hub: .*{name}: .* was altered; fetch it ") as e:
            flashlite.load(MODEL, dram_budget="1MB")
        assert_one_line(e)


def test_an_incomplete_store_of_the_hub_is_refused(hub: Hub, published: Path) -> None:
    (published / "ffn-bundled.safetensors").unlink()
    hub.publish(published)
    with pytest.raises(StoreError, match=r"ffn-bundled.safetensors cannot be read: .*fetch it again") as error:
        open_model(MODEL)
    assert_one_line(error)


def test_revisions_of_a_store_are_told_apart(hub: Hub, tmp_path: Path) -> None:
    for seed, ref in ((0, "old"), (1, "main")):
        hub.publish(pack(save_checkpoint(make_model(seed), tmp_path / f"{seed}"), tmp_path / f"s{seed}").path, ref=ref)
    for revision, seed in (("old", 0), (None, 1)):
        store = open_model(MODEL, revision=revision)
        assert torch.equal(embedding(store), make_model(seed).model.decoder.embed_tokens.weight)
    with pytest.raises(StoreError, match="was packed as fp32, not bf16"):
        open_model(MODEL, "bf16")


def test_offline_a_downloaded_store_is_used_with_a_line(
    hub: Hub, offline: Any, published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.publish(published)
    first = open_model(MODEL)
    offline()
    caplog.clear()
    assert open_model(MODEL).path == first.path
    assert ["as it was downloaded before" in line for line in caplog.messages] == [True]


def test_a_store_that_lies_in_the_hubs_cache_needs_no_hub(
    hub: Hub, offline: Any, published: Path, tmp_path: Path
) -> None:
    commit = "0" * 40  # as `hf download` lays it out, blobs and links
    cache = tmp_path / "hub-cache" / "models--someone--tiny"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (cache / folder).mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    for i, path in enumerate(sorted(published.iterdir())):
        shutil.copyfile(path, cache / f"blobs/{i}")
        (cache / f"snapshots/{commit}/{path.name}").symlink_to(f"../../blobs/{i}")
    offline()
    store = open_model(MODEL)
    assert store.path == cache / "snapshots" / commit
    store.verify()


def test_verify_takes_the_hub_id_of_a_store(
    hub: Hub,
    published: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.publish(published, ref="v1")
    hub.publish(tiny_checkpoint)
    assert call(monkeypatch, capsys, "verify", MODEL, "--revision", "v1")[:2] == (
        0, f"{MODEL} is complete and unaltered\n",
    )  # fmt: skip
    code, _, err = call(monkeypatch, capsys, "verify", MODEL)
    assert (code, err) == (
        1, f"flashlite: {MODEL} is a checkpoint, not a store: make one with `flashlite pack {MODEL} OUT`\n",
    )  # fmt: skip
    assert "model.safetensors" not in hub.fetched


def test_a_store_of_the_hub_is_not_packed_again(hub: Hub, published: Path, tmp_path: Path) -> None:
    hub.publish(published)
    with pytest.raises(CheckpointError, match="is a store, which is packed already"):
        pack(MODEL, tmp_path / "store")


def test_a_store_says_which_commit_of_the_hub_it_was_packed_from(
    hub: Hub, tiny_checkpoint: Path, tiny_store: Store
) -> None:
    commit = hub.publish(tiny_checkpoint)
    assert open_model(MODEL).manifest["packed_from"] == {"model": MODEL, "commit": commit}
    assert "packed_from" not in tiny_store.manifest
