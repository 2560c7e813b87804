"""Train opt-mini, the course's bundled model: a real OPT of 21 M parameters on the Python source of this machine.

    python tools/train_opt_mini.py OUT --steps 4000                    # from scratch
    python tools/train_opt_mini.py OUT --steps 1500 --init FOLDER      # go on from a checkpoint folder

Weights are bf16 with fp32 masters. Muon trains the block matrices, AdamW the rest. A sparsity term brings a small model
to the sparsity that large OPTs have by themselves. It has a weight for each layer, which rises while more of the
layer's neurons fire than --target allows. The learning rate warms up, stays constant, and falls linearly over the last
steps. OUT becomes a checkpoint folder in the published format (fp16 safetensors). The model card is written from the
training.json in it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from flashlite.training.corpus import corpus

VOCAB, WIDTH, LAYERS, HEADS, POSITIONS = 4096, 512, 6, 8, 512
BATCH, HELD_OUT_TEXTS = 16, 96
SPARSITY_STEP = 0.001


class Block(nn.Module):
    """One pre-norm OPT layer with the three attention projections fused, which trains faster than transformers' own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH)
        x = x + self.out(attended)
        z = self.fc1(self.ffn_norm(x))
        return x + self.fc2(F.relu(z)), z


class Trainee(nn.Module):
    """OPT in the form that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(POSITIONS + 2, WIDTH)
        self.blocks, self.final_norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)
        for name, p in self.named_parameters():
            into_residual = ".out." in name or "fc2" in name
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss in nats a token, and the soft and the true share of active neurons, [layers] each.

        ids, targets: [texts, length], token ids
        """
        x = self.embed(ids) + self.positions(torch.arange(2, ids.shape[1] + 2))
        zs = []
        for block in self.blocks:
            x, z = block(x)
            zs.append(z)
        logits = F.linear(self.final_norm(x), self.embed.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return loss, torch.stack([_soft_share(z) for z in zs]), torch.stack([(z > 0).float().mean() for z in zs])


def _soft_share(z: Tensor) -> Tensor:
    """The share of active neurons with a gradient. z: [texts, length, ffn], before the ReLU."""
    sample = z[:, ::4].float()
    return torch.sigmoid(sample / (0.2 * sample.detach().std() + 1e-3)).mean()


def published_name(name: str) -> list[str]:
    """The names of a Trainee's parameter in a published OPT checkpoint: three for the fused projection, else one."""
    top = {"embed": "embed_tokens", "positions": "embed_positions", "final_norm": "final_layer_norm"}
    inner = {"attention_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm", "out": "self_attn.out_proj"}
    parts = name.split(".")
    if parts[0] != "blocks":
        return [f"model.decoder.{top[parts[0]]}.{parts[1]}"]
    _, layer, module, kind = parts
    modules = [f"self_attn.{p}_proj" for p in "qkv"] if module == "qkv" else [inner.get(module, module)]
    return [f"model.decoder.layers.{layer}.{m}.{kind}" for m in modules]


def load_init(folder: Path, model: Trainee) -> dict[str, Tensor]:
    """The weights in a checkpoint folder, in float32, by the names of a Trainee's parameters."""
    published = load_file(folder / "model.safetensors")
    names = {name: published_name(name) for name, _ in model.named_parameters()}
    return {name: torch.cat([published[part].float() for part in parts]) for name, parts in names.items()}


def export(masters: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a checkpoint folder in the published format."""
    state = {}
    for name, p in masters.items():
        names = published_name(name)
        state |= dict(zip(names, p.detach().chunk(len(names)), strict=True))
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS, word_embed_proj_dim=WIDTH, dropout=0.0, activation_function="relu",
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"]), missing
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on every third text."""
    bpe = ByteLevelBPETokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(texts[::3], vocab_size=VOCAB, min_frequency=2, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="</s>", bos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """One stream of tokens [n] uint16: documents in a shuffled but fixed order, each after a </s>."""
    documents = []
    for i in range(0, len(texts), 512):
        batch = tokenizer(texts[i : i + 512], add_special_tokens=False)["input_ids"]
        documents += [np.array([1, *ids], dtype=np.uint16) for ids in batch]
    np.random.default_rng(0).shuffle(documents)
    return np.concatenate(documents)


def texts_at(stream: np.ndarray, starts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Texts of a stream of tokens and the token after each of theirs: [texts, POSITIONS] each. starts: [texts]."""
    x = torch.from_numpy(np.stack([stream[s : s + POSITIONS + 1] for s in starts]).astype(np.int64))
    return x[:, :-1], x[:, 1:]


@torch.no_grad()
def held_out_loss(model: nn.Module, stream: np.ndarray) -> tuple[float, list[float]]:
    """Loss in nats a token on the first HELD_OUT_TEXTS texts of a stream, and each layer's share of active neurons."""
    starts = np.arange(HELD_OUT_TEXTS) * POSITIONS
    results = [model(*texts_at(stream, part)) for part in np.split(starts, HELD_OUT_TEXTS // BATCH)]
    loss, _, share = (torch.stack(column).mean(0) for column in zip(*results, strict=True))
    return loss.item(), share.tolist()


class MixedOptimizer:
    """Muon for the block matrices and AdamW for the rest, both on fp32 masters of the model's bf16 weights."""

    def __init__(self, model: nn.Module, masters: dict[str, Tensor], lr: float) -> None:
        self.params, self.masters, self.lr = dict(model.named_parameters()), masters, lr
        matrices = [n for n, p in self.params.items() if p.ndim == 2 and n.startswith("blocks")]
        rest = [n for n in self.params if n not in set(matrices)]
        muon = torch.optim.Muon(
            [masters[n] for n in matrices], lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW([masters[n] for n in rest], lr=lr, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
        self.optimizers = (muon, adam)

    def step(self, scale: float) -> None:
        """Clip the gradients, update the masters at `scale` times the learning rate, and copy them to the model."""
        norm = torch.sqrt(sum(p.grad.float().square().sum() for p in self.params.values()))
        clip = min(1.0, 1.0 / (norm.item() + 1e-6))
        for name, p in self.params.items():
            self.masters[name].grad, p.grad = p.grad.float() * clip, None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * scale
            optimizer.step()
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(self.masters[name])


def schedule(step: int, steps: int, decay: float, warmup: int) -> float:
    """The factor of the learning rate at a step.

    step: counted from 0
    steps: of the whole training
    decay: share of the steps over which the rate falls at the end
    warmup: steps over which it rises at the beginning
    """
    return min(1.0, (step + 1) / warmup, max(0.01, (1 - step / steps) / decay))


def train(args: argparse.Namespace) -> None:
    """Train as the command line says, and write the checkpoint every 100 steps."""
    torch.manual_seed(args.seed)
    texts = list(corpus(held_out=False))
    tokenizer = AutoTokenizer.from_pretrained(args.init) if args.init else train_tokenizer(texts)
    stream, held_out = encode(texts, tokenizer), encode(list(corpus(held_out=True)), tokenizer)
    print(f"{len(stream) / 1e6:.1f} M tokens, {len(held_out) / 1e6:.2f} M held out", flush=True)
    model = Trainee()
    start = load_init(args.init, model) if args.init else {n: p.detach() for n, p in model.named_parameters()}
    model.bfloat16()
    masters = {n: p.clone().float().requires_grad_() for n, p in start.items()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(masters[name])
    compiled, optimizer = torch.compile(model, dynamic=False), MixedOptimizer(model, masters, args.lr)
    history = args.init and args.init / "training.json"
    earlier = {"before": json.loads(history.read_text())} if history and history.exists() else {}
    rng, weights, log = np.random.default_rng(args.seed), torch.tensor(args.sparsity), []
    print("held out at the start", held_out_loss(model, held_out), flush=True)
    began = time.time()
    for step in range(args.steps):
        x, y = texts_at(stream, rng.integers(0, len(stream) - POSITIONS - 1, BATCH))
        loss, soft, share = compiled(x, y)
        (loss + (weights * soft).sum()).backward()
        optimizer.step(schedule(step, args.steps, args.decay, args.warmup))
        excess = ((share.detach() - args.target) / args.target).clamp(max=3.0)
        weights = (weights + SPARSITY_STEP * excess).clamp(0.0, 1.0)
        if step % 20 == 0:
            shares = " ".join(f"{s:.3f}" for s in share.tolist())
            print(f"{step} loss {loss.item():.3f} active {shares} weights {weights.tolist()}", flush=True)
        if step % 100 == 99 or step == args.steps - 1:
            value, shares = held_out_loss(model, held_out)
            log.append({"step": step + 1, "held_out_loss": value, "active": shares, "seconds": time.time() - began})
            print(json.dumps(log[-1]), flush=True)
            export(masters, tokenizer, args.out)
            record = earlier | {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
            record |= {"tokens_a_step": BATCH * POSITIONS, "corpus_tokens": len(stream), "log": log}
            (args.out / "training.json").write_text(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--steps", type=int, default=4000, help=f"of {BATCH * POSITIONS} tokens")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the steps over which the rate falls")
    parser.add_argument("--warmup", type=int, default=100, help="steps over which the rate rises")
    parser.add_argument("--sparsity", type=float, nargs=LAYERS, default=[0.0] * LAYERS, help="weights at the start")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--target", type=float, default=0.035, help="share of a layer's neurons that may fire")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
