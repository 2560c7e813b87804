#!/usr/bin/env bash
# transformers 5.23.0: an attention function of one's own, registered by AttentionInterface.register, can't be used if
# its name has "flash" in it. Such a name is taken for one of FlashAttention's kernels, and these are looked for in the
# installed packages and on the hub, although the registry has the function. Seen: "my_attention" is set and called,
# "my_flash_reads" is refused with a ValueError that no flash attention implementation could be found by that name.
# What to do: choose a name without "flash".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$folder/names.py" <<'PY'
import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

calls = []


def attention(*args, **kwargs):
    calls.append(1)
    return sdpa_attention_forward(*args, **kwargs)


config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
seen = {}
for name in ("my_attention", "my_flash_reads"):
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model = LlamaForCausalLM(config).eval()
    try:
        model.set_attn_implementation(name)
    except ValueError as error:
        seen[name] = str(error)
        continue
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    seen[name] = f"called {len(calls)} times"
for name, what in seen.items():
    print(f"{name}: {what}")
assert seen["my_attention"] == "called 2 times"
assert "Could not find" in seen["my_flash_reads"] and "flash attention" in seen["my_flash_reads"]
PY
"$folder/env/bin/python" "$folder/names.py"
