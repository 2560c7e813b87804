#!/usr/bin/env bash
# transformers 5.23.0: StaticCache.get_seq_length() returns a tensor that the cache itself goes on counting in. A length
# that was noted before a call is the length after it, and "how much longer has the cache become" is always 0. The
# growing DynamicCache returns a number. Seen: the lengths noted after tokens 1, 2 and 3 all read 3, and are one object.
# What to do: int(cache.get_seq_length()), at once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$folder/lengths.py" <<'PY'
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config).eval()
noted = {}
for cache in (StaticCache(config=config, max_cache_len=32), DynamicCache(config=config)):
    lengths = noted[type(cache).__name__] = []
    with torch.no_grad():
        for token in (5, 6, 7):
            model(torch.tensor([[token]]), past_key_values=cache)
            lengths.append(cache.get_seq_length())
print("noted after each of three tokens:", noted)
assert [int(n) for n in noted["DynamicCache"]] == [1, 2, 3]
assert [int(n) for n in noted["StaticCache"]] == [3, 3, 3]
assert noted["StaticCache"][0] is noted["StaticCache"][2]
PY
"$folder/env/bin/python" "$folder/lengths.py"
