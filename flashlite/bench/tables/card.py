"""A store's model card: what a hub shows of it, in Markdown after a few lines of YAML. All is read off the store."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from flashlite.bench.tables.model import planted_line, predictor_table
from flashlite.bench.tables.table import Table

if TYPE_CHECKING:  # so that tables need no torch
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.store import Store

BEGIN = "---\nlibrary_name: flashlite\n"
_STRANGE = re.compile(r"[^\w./-]")  # signs that no file of a store need have in its name
HOLDS = {
    "manifest.json": "what the model is, and the checksums of all else",
    "resident.safetensors": "embeddings, attention, norms and biases",
    "ffn-bundled.safetensors": "the FFN, a neuron's weights one after the other",
    "ffn-split.safetensors": "the FFN, matrix by matrix",
    "checksums.safetensors": "the CRC-32 of each record",
    "predictor.safetensors": "says which neurons will fire",
}


def model_card(store: Store, predictors: PredictorSet | None, repository: str | None = None) -> str:
    """The card of a store, every byte of which was compared with its checksums before.

    predictors: the store's trained ones; None if it has none
    repository: the hub id that it is to have; None if that isn't known yet
    """
    name, place = _plain(store.manifest["name"]), repository or "USER/NAME"
    comment = "" if repository else "  # the hub id of this repository, or its folder"
    parts = [
        _front(store),
        f"# {name}, packed for flashlite",
        "flashlite runs a language model whose weights stay on flash, and reads for each token those that it needs. "
        "This is a store, the form in which it reads them; transformers can't load it.",
        f'```python\nimport flashlite\n\nmodel = flashlite.load("{place}", dram_budget="50%"){comment}\n```',
        _facts(store).markdown(),
        "## Files",
        _files(store).markdown(),
        _checksums(store),
        "## Predictor",
        *_predictor(store, predictors),
    ]
    return "\n\n".join(parts) + "\n"


def _front(store: Store) -> str:
    """The YAML; texts are written as JSON writes them, which YAML reads too."""
    origin, planted = _origin(store), "planted" in store.manifest
    tags = ["flashlite", store.config.model_type, store.dtype_name, *(["planted"] if planted else [])]
    base = f"base_model: {json.dumps(origin[0])}\n" if origin else ""
    return f"{BEGIN}pipeline_tag: text-generation\n{base}tags: {json.dumps(tags)}\n---"


def _origin(store: Store) -> tuple[str, str] | None:
    """The hub id and the commit of the checkpoint that was packed, if it came from the hub."""
    said = store.manifest.get("packed_from")
    model, commit = (said.get("model"), said.get("commit")) if isinstance(said, dict) else (None, None)
    return (model, commit) if isinstance(model, str) and isinstance(commit, str) else None


def _facts(store: Store) -> Table:
    config, family, shape, manifest = store.config, store.family, store.shape, store.manifest
    origin, streamed = _origin(store), store.layers * shape.layer_bytes
    base = f"{_plain(manifest['name'])}, a local checkpoint"
    if origin:
        base = f"{_plain(origin[0])} at commit {_plain(origin[1])}"
    rows = {
        "base model": "none: its weights are planted" if "planted" in manifest else base,
        "kind": f"{config.model_type} with {_plain(getattr(config, family.activation))}",
        "layers": f"{store.layers}, each of {shape.neurons} neurons; width {config.hidden_size}",
        "weights": f"{store.dtype_name}, {_mb(store.weight_bytes)} MB, of which {_mb(streamed)} MB stream",
        "checkpoint's dtype": _plain(manifest.get("own_dtype") or "not known"),
        "layouts": ", ".join(store.layouts),
        "records": f"{shape.record_bytes} bytes a neuron, on a grid of {manifest['alignment']} bytes",
        "store's format": str(manifest["format"]),
    }
    if "packed_by" in manifest:
        rows["packed by"] = f"{_plain(manifest['packed_by'])}, in place of the engine"
    return Table(("of the model", ""), [[key, value] for key, value in rows.items()])


def _files(store: Store) -> Table:
    sizes = {name: (store.path / name).stat().st_size for name in HOLDS if (store.path / name).is_file()}
    copied = {name: (store.path / name).stat().st_size for name in store.manifest["copied"]}
    rows = [[f"`{name}`", HOLDS[name], f"{size:,}"] for name, size in sizes.items()]
    rows += [[f"`{_STRANGE.sub('?', name)}`", "the checkpoint's own", f"{size:,}"] for name, size in copied.items()]
    total = sum(sizes.values()) + sum(copied.values())
    return Table(("file", "holds", "bytes"), [*rows, ["together", "", f"{total:,}"]])


def _checksums(store: Store) -> str:
    from flashlite.storage.store import sealed

    seal = json.loads(sealed(store.manifest))["sha256"]
    tensors = sum(len(entry["sha256"]) for entry in store.manifest["files"].values())
    return (
        f"`manifest.json` has the SHA-256 of {tensors} tensors and of {len(store.manifest['copied'])} copied files, "
        "`checksums.safetensors` the CRC-32 of each record. All of them agreed when this card was written; "
        "`flashlite verify` compares them again, and `load()` does when it has downloaded them. The manifest's own "
        f"SHA-256 is `{seal}`."
    )


def _predictor(store: Store, predictors: PredictorSet | None) -> list[str]:
    if "planted" in store.manifest:
        planted = store.manifest["planted"]
        line = f"The model is planted (seed {planted['seed']}): its reads and products are real, and its text is noise;"
        return [f"{line} {planted_line(planted)}.", *_table(predictors)]
    if predictors is None:
        return ['It has none; `predictor="copy"`, which needs no training, takes its place.']
    return ["Measured on held-out text, of all neurons of a layer:", *_table(predictors)]


def _table(predictors: PredictorSet | None) -> list[str]:
    return [predictor_table(list(predictors.reports)).markdown()] if predictors else []


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f}"


def _plain(text: Any) -> str:
    """A text that somebody else chose, on one line and without Markdown's or HTML's signs."""
    words = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in r"\`*_[]<>|#" else sign for sign in words)
