"""Tokenizers of every published form: what AutoTokenizer makes of a checkpoint it makes of the store, and no less."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flashlite.errors import FlashliteError
from flashlite.storage.find import open_model
from flashlite.storage.pack import pack
from flashlite.storage.tokenizer import load_tokenizer

SPECIAL = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **SPECIAL}
TEXTS = ["hi", "def f(x):\n    return x", "<|bot|>hi</s>", "<extra>", ""]
CHAT = [{"role": "user", "content": "hi"}]


def write(folder: Path, **files: Any) -> None:
    """Write files of a checkpoint: JSON or text, `__` in a name for its dot."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)


def byte_level(folder: Path, merges: str = "", **more: Any) -> None:
    """vocab.json and merges.txt of a tokenizer of bytes, as OPT has them."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "hi"]
    vocabulary = {word: i for i, word in enumerate(words)}
    write(folder, vocab__json=vocabulary, merges__txt=f"#version: 0.2\n{merges}", **more)


def fast(folder: Path, name: str = "tokenizer.json", word: str = "hi") -> None:
    """A tokenizer of words in one file."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, word: 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / name))


def versioned(folder: Path) -> None:
    """A file for each range of versions, of which the newest that fits is used."""
    fast(folder, word="old")
    fast(folder, "tokenizer.4.0.0.json", word="hi")
    files = ["tokenizer.4.0.0.json", "tokenizer.json"]
    write(folder, tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast", "fast_tokenizer_files": files})


def bert(folder: Path) -> None:
    """Words in vocab.txt, and a class that only config.json names."""
    write(folder, vocab__txt="[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\ndef\n##s\n")
    config = json.loads((folder / "config.json").read_text())
    write(folder, config__json=config | {"tokenizer_class": "BertTokenizer"})


def templates(folder: Path) -> None:
    """Several chat templates, each in a file."""
    byte_level(folder, tokenizer_config__json=GPT2, chat_template__jinja="{{ messages[0]['content'] }}")
    (folder / "additional_chat_templates").mkdir()
    write(folder / "additional_chat_templates", loud__jinja="{{ messages[0]['content'] }}!")


FORMS: dict[str, Callable[[Path], None]] = {
    "vocabulary and merges alone": byte_level,
    "with a class": lambda d: byte_level(d, tokenizer_config__json=GPT2),
    "without a class": lambda d: byte_level(d, tokenizer_config__json={k: v for k, v in GPT2.items() if k[0] != "t"}),
    "merges": lambda d: byte_level(d, "h i\n", tokenizer_config__json=GPT2),
    "added tokens": lambda d: byte_level(d, tokenizer_config__json=GPT2, added_tokens__json={"<|bot|>": 270}),
    "special tokens alone": lambda d: byte_level(
        d, special_tokens_map__json={"bos_token": "<s>", "additional_special_tokens": ["<extra>"]}
    ),
    "special and added tokens": lambda d: byte_level(
        d, special_tokens_map__json={"bos_token": "<s>"}, added_tokens__json={"<|bot|>": 270, "<extra>": 271}
    ),
    "chat template": lambda d: byte_level(d, tokenizer_config__json=GPT2, chat_template__jinja="{{ messages[0] }}"),
    "chat template in the settings": lambda d: byte_level(d, tokenizer_config__json=GPT2 | {"chat_template": "x"}),
    "chat templates": templates,
    "one file": fast,
    "one file with a class": lambda d: (
        fast(d), write(d, tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    ),
    "versions": versioned,
    "a class in config.json": bert,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint without a tokenizer. Its packed forms are this test's own."""
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    return save_checkpoint(make_model(vocab_size=300, num_hidden_layers=1), tmp_path / "checkpoint")


def facts(path: Path) -> dict[str, Any]:
    """All that a tokenizer says of itself, and what it makes of some texts."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    chats = {}
    for name in [None, *(tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else ())]:
        if tokenizer.chat_template is not None:
            chats[name] = tokenizer.apply_chat_template(CHAT, chat_template=name, tokenize=False)
    return {
        "class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template, "ids": [tokenizer(text)["input_ids"] for text in TEXTS],
        "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in TEXTS], "chats": chats,
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_stores_tokenizer_is_the_checkpoints(form: str, folder: Path) -> None:
    FORMS[form](folder)
    store = open_model(folder)
    expected = facts(folder)
    assert facts(store.path) == expected
    assert load_tokenizer(store).get_vocab() == expected["vocabulary"]
    store.verify()


def test_the_forms_differ(folder: Path, tmp_path: Path) -> None:
    """So that each of them tries something of its own."""
    seen = []
    for form, make in FORMS.items():
        other = save_checkpoint(make_model(vocab_size=300, num_hidden_layers=1), tmp_path / form)
        make(other)
        seen.append(facts(other))
    same = [(list(FORMS)[i], list(FORMS)[j]) for i, a in enumerate(seen) for j, b in enumerate(seen[:i]) if a == b]
    assert same == [("without a class", "with a class")]  # it follows from config.json


CHANGES: dict[str, Callable[[Path], None]] = {
    "merges": lambda d: byte_level(d, "h i\n", tokenizer_config__json=GPT2),
    "settings": lambda d: write(d, tokenizer_config__json=GPT2 | {"add_bos_token": False}),
    "added tokens": lambda d: write(d, added_tokens__json={"<|bot|>": 270}),
    "a template": lambda d: write(d, chat_template__jinja="{{ messages[0].role }}"),
    "another template": lambda d: templates(d),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_was_changed_is_packed_anew(change: str, folder: Path) -> None:
    byte_level(folder, tokenizer_config__json=GPT2)
    before = open_model(folder)
    CHANGES[change](folder)
    after = open_model(folder)
    assert after.path != before.path
    assert facts(after.path) == facts(folder) != facts(before.path)


def test_a_checkpoint_without_a_tokenizer_is_named(folder: Path) -> None:
    """Of which AutoTokenizer would make one that gives no tokens at all."""
    with pytest.raises(FlashliteError, match=r"does not hold a tokenizer .*: its vocabulary is empty") as error:
        load_tokenizer(open_model(folder))
    assert "\n" not in str(error.value)


def test_what_is_no_tokenizers_is_left_behind(folder: Path, tmp_path: Path) -> None:
    fast(folder)
    for name in ("README.md", "evil.py", "training_args.bin", "x.safetensors.index.json", "model.h5", "manifest.json"):
        (folder / name).write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "vocab.json").write_text("{}")
    store = pack(folder, tmp_path / "store")
    assert sorted(store.manifest["copied"]) == ["config.json", "tokenizer.json"]
    own = {"manifest.json", "resident.safetensors", "checksums.safetensors"}
    kept = {path.name for path in store.path.iterdir()} - own
    assert kept == {"config.json", "tokenizer.json", "ffn-split.safetensors", "ffn-bundled.safetensors"}


def test_a_saved_tokenizer_of_transformers_comes_along(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "hi": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", model_max_length=77)
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(open_model(folder).path).model_max_length == 77
