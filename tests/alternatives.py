"""Other right answers to exercises, as a student might write them: the graders must accept each.

Each stands in for the engine's function of its exercise, so it uses what that function's module has: the imports here
only say what that is.
"""

# ruff: noqa: B905
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashlite.bench.cost import Speeds, Work, io_ms
from flashlite.bench.speculative import expected_tokens
from flashlite.drive.probe import Curve
from flashlite.engine.budget import FEWEST_ROWS, Candidate, _smallest
from flashlite.engine.kernels.rows import FEW, weighted_sum
from flashlite.engine.overlap import Begun
from flashlite.engine.pool import Landing, ffn_product
from flashlite.engine.predictor import active_set
from flashlite.engine.predictors.copy_predictor import ERRORS, STEP_ERROR
from flashlite.engine.product import rows_of
from flashlite.engine.timing import REST
from flashlite.engine.window import LONGEST_UNION, Step
from flashlite.errors import CheckpointError, ReadError
from flashlite.storage.bundle import unpack_bundles
from flashlite.storage.int8.rounding import LARGEST, blocks
from flashlite.storage.neurons import wait_all
from flashlite.training.train_predictor import BATCH, balanced_loss, initial_factors


def answers(exercise: str) -> Callable[[Any], Any]:
    """Names the exercise that a function answers. tools/mutate.py reads it in this file's text."""
    return lambda function: function


@answers("0.1")
def loop(offsets: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    first, held = [], 0
    for i in range(len(offsets)):
        if i == 0 or offsets[i] != offsets[i - 1] + sizes[i - 1] or held == most:
            first.append(i)
            held = 0
        held += 1
    return np.array(first, dtype=np.int64)


@answers("0.1")
def runs_then_cuts(offsets: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    n = len(offsets)
    joins = offsets[1:] == offsets[:-1] + sizes[:-1]
    begins = [0, *(np.flatnonzero(~joins) + 1)]
    first: list[int] = []
    for begin, end in zip(begins, [*begins[1:], n]):
        first.extend(range(begin, end, most))
    return np.asarray(first, np.int64)


@answers("0.2")
def early_return(curve: Curve, reads: float, nbytes: float, batches: int) -> float:
    if not reads:
        return 0
    seconds = nbytes / curve.rate(nbytes=nbytes / reads, depth=reads / batches)  # rate keeps to depths it knows
    return seconds * 1000


@answers("0.3")
def five_parts(curve: Curve, work: Work, speeds: Speeds) -> float:
    flash = io_ms(curve, work.reads, work.bytes, work.batches)
    copying = work.copied_bytes / speeds.copy * 1000
    multiplying = work.product_bytes / speeds.product * 1000
    computing, beginning = speeds.rest_ms + multiplying, work.batches * curve.batch_ms
    hidden = min(flash, computing) if work.overlapped else 0
    return copying + flash + computing + beginning - hidden


@answers("1.1")
def two_products(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None) -> Tensor:
    h = torch.relu(x @ up.T + bias)
    if keep is not None:
        h = h.masked_fill(~keep, 0)
    return h @ down


@answers("1.1")
def token_by_token(x: Tensor, up: Tensor, bias: Tensor, down: Tensor, keep: Tensor | None = None) -> Tensor:
    out = torch.empty_like(x)
    for t in range(len(x)):
        h = (up @ x[t] + bias).clamp(min=0)
        if keep is not None:
            h = torch.where(keep[t], h, torch.zeros_like(h))
        out[t] = down.T @ h
    return out


@answers("1.2")
def tickets(self: Any, layer: int, neurons: np.ndarray, matrices: Sequence[np.ndarray], rows: np.ndarray) -> list[Any]:
    found = []
    for p in range(len(matrices)):
        size = self.pieces[p].nbytes
        found.append(self.file.submit(self.begins[layer][p] + size * neurons, size, matrices[p], rows))
    return found


@answers("1.3")
def tensor_by_tensor(config: Any) -> tuple[int, int]:
    d, ffn, narrow = config.hidden_size, config.ffn_dim, config.word_embed_proj_dim
    kept = config.vocab_size * narrow
    kept += (config.max_position_embeddings + 2) * d
    if narrow != d:
        kept += narrow * d
        kept += d * narrow
    for _ in range(config.num_hidden_layers):
        for _ in ("q", "k", "v", "out"):
            kept += d * d + d
        kept += ffn
        kept += d
        for _ in ("attention", "ffn"):
            kept += d + d
    if config.do_layer_norm_before:
        kept += d + d
    return kept, 2 * ffn * d * config.num_hidden_layers


@answers("2.1")
def union_of_sets(predictor: Any, x: Tensor) -> np.ndarray:
    needed = set()
    for token in predictor.mask(x):
        needed |= set(token.nonzero().flatten().tolist())
    return np.array(sorted(needed), dtype=np.int64)


@answers("2.1")
def counted(predictor: Any, x: Tensor) -> np.ndarray:
    return predictor.mask(x).sum(dim=0).nonzero().squeeze(1).numpy()


@answers("2.1")
def unique(predictor: Any, x: Tensor) -> np.ndarray:
    return np.unique(np.nonzero(predictor.mask(x).numpy())[1])


@answers("2.2")
def step_by_step(self: Any, x: Tensor) -> Tensor:
    narrow = self.a(x.to(torch.bfloat16))
    return self.b(narrow) + self.bias


@answers("2.3")
def softplus(scores: Tensor, fired: Tensor, positive_weight: float = 4.0) -> Tensor:
    return torch.where(fired, positive_weight * F.softplus(-scores), F.softplus(scores)).mean()


@answers("2.3")
def log_sigmoid(scores: Tensor, fired: Tensor, positive_weight: float = 4.0) -> Tensor:
    hits = F.logsigmoid(scores[fired]).sum() * positive_weight
    misses = F.logsigmoid(-scores[~fired]).sum()
    return -(hits + misses) / scores.numel()


@answers("2.4")
def in_numpy(scores: Tensor, fired: Tensor, recall: float) -> float:
    import numpy

    needed = numpy.sort(scores.numpy()[fired.numpy()])
    if needed.size == 0:
        return 0.0
    lowest = needed[int((1 - recall) * needed.size)]
    return float(numpy.nextafter(lowest, numpy.float32("-inf")))


@answers("2.4")
def kth_value(scores: Tensor, fired: Tensor, recall: float) -> float:
    needed = scores[fired]
    n = needed.numel()
    if not n:
        return 0.0
    lowest = needed.kthvalue(int((1 - recall) * n) + 1).values
    return torch.nextafter(lowest, torch.full_like(lowest, -float("inf"))).item()


@answers("2.5")
def plain_products(x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    up, down = rows[:, :d_model], rows[:, d_model : 2 * d_model]
    return (x @ up.T + bias).relu() @ down


@answers("2.5")
def clamped(x: Tensor, rows: Tensor, bias: Tensor, d_model: int) -> Tensor:
    up, down = unpack_bundles(rows, d_model)
    hidden = torch.addmm(bias, x, up.T)
    hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
    return hidden.matmul(down)


@answers("2.6")
def interpolated_curves(nbytes: np.ndarray, measure: Any, budget: float, calls: int) -> list[int]:
    layers, levels = nbytes.shape
    seen: dict[tuple[int, ...], float] = {}

    def lost(choice: list[int]) -> float:
        if tuple(choice) not in seen:
            seen[tuple(choice)] = measure(choice) if len(seen) < calls else float("inf")
        return seen[tuple(choice)]

    def total(choice: Any) -> float:
        return sum(nbytes[i, level] for i, level in enumerate(choice))

    low, high = 0, levels - 1
    while low < high:
        middle = (low + high) // 2
        if lost([middle] * layers) <= budget:
            high = middle
        else:
            low = middle + 1
    common, base = [low] * layers, lost([low] * layers)
    curve = np.zeros((layers, levels))
    for i in range(layers):
        at = sorted({max(low - 3, 0), max(low - 1, 0), low, min(low + 2, levels - 1)})
        nats = [lost([*common[:i], level, *common[i + 1 :]]) - base for level in at]
        x, known = np.log(nbytes[i]), np.log(nbytes[i, at])
        curve[i] = np.interp(x, known, nats)
        if len(at) > 1:
            slope = (nats[1] - nats[0]) / (known[1] - known[0])
            curve[i] = np.where(x < known[0], nats[0] + 1.5 * slope * (x - known[0]), curve[i])
    best, low_price, high_price = common, -12.0, 12.0
    for _ in range(12):
        price = nbytes.sum() / budget * np.exp((low_price + high_price) / 2)
        choice = [int(level) for level in (nbytes + price * curve).argmin(axis=1)]
        if lost(choice) <= budget:
            high_price = (low_price + high_price) / 2
            best = min(best, choice, key=total)
        else:
            low_price = (low_price + high_price) / 2
    tried = set()
    while len(seen) < calls:
        steps = [
            (max(curve[i, best[i] - 1] - curve[i, best[i]], 1e-12) / (nbytes[i, best[i]] - nbytes[i, best[i] - 1]), i)
            for i in range(layers)
            if best[i] > 0 and i not in tried
        ]
        if not steps:
            break
        i = min(steps)[1]
        choice = [*best[:i], best[i] - 1, *best[i + 1 :]]
        if lost(choice) <= budget:
            best = choice
        else:
            tried.add(i)
    return best


@answers("2.6")
def trades_between_layers(nbytes: np.ndarray, measure: Any, budget: float, calls: int) -> np.ndarray:
    layers, levels = nbytes.shape
    left, memory = calls, {}

    def ask(choice: np.ndarray) -> float:
        nonlocal left
        key = choice.tobytes()
        if key not in memory:
            if left == 0:
                return math.inf
            left -= 1
            memory[key] = measure([int(level) for level in choice])
        return memory[key]

    def read(choice: np.ndarray) -> float:
        return nbytes[np.arange(layers), choice].sum()

    best = np.full(layers, levels - 1)
    for stride in (4, 2, 1):
        while best.min() >= stride and ask(best - stride) <= budget:
            best = best - stride
    for stride in (2, 2, 1, 1, 1):
        if left < 2 * layers:
            break
        base, steps = ask(best), []
        for i in range(layers):
            for by in (-stride, stride):
                moved = best.copy()
                moved[i] = min(max(best[i] + by, 0), levels - 1)
                if moved[i] != best[i]:
                    steps.append((i, moved[i], ask(moved) - base, read(moved) - read(best)))
        downs = sorted((s for s in steps if s[3] < 0), key=lambda s: max(s[2], 0) / -s[3])
        ups = sorted((s for s in steps if s[3] > 0), key=lambda s: s[2] / s[3])
        found = best
        options = []
        for n_down in range(1, len(downs) + 1):
            for n_up in range(len(ups) + 1):
                choice = best.copy()
                for i, level, _, _ in [*ups[:n_up], *downs[:n_down]]:
                    choice[i] = level
                nats = base + sum(s[2] for s in steps if choice[s[0]] == s[1])
                options.append((nats, read(choice), choice))
        options = [o for o in options if o[1] < read(best)]
        slack = 1.0
        for _ in range(6):
            fitting = [o for o in options if o[0] <= budget * slack and o[1] < read(found)]
            if not fitting or left == 0:
                break
            choice = min(fitting, key=lambda o: o[1])[2]
            if ask(choice) <= budget:
                found = choice
            else:
                slack -= 0.12
        best = found
    return best


@answers("2.7")
def signs_of_a_mean(up: Tensor, bias: Tensor, rank: int, data: Any, seed: int, steps: int = 800) -> Any:
    """Every weight moves by the same, in the direction of the mean of its last gradients."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.nn.Parameter(t.clone()) for t in (*initial_factors(up, rank), bias)]
    means = [torch.zeros_like(weight) for weight in weights]
    for step in range(steps):
        rows = torch.randint(len(data.x), (BATCH,), generator=generator).numpy()
        with torch.enable_grad():
            s = data.x[rows].float() @ weights[0].T @ weights[1].T + weights[2]
            loss = F.softplus(s).mean() + (4 * F.softplus(-s) - F.softplus(s))[data.mask(rows)].sum() / s.numel()
            gradients = torch.autograd.grad(loss, weights)
        for weight, mean, gradient in zip(weights, means, gradients):
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            weight.data -= 0.015 * (1 - step / steps) * mean.sign()
    return tuple(weight.data for weight in weights)


@answers("2.7")
def epochs_and_an_average(up: Tensor, bias: Tensor, rank: int, data: Any, seed: int, steps: int = 800) -> Any:
    rng = np.random.default_rng(seed)
    start = [*initial_factors(up, rank), bias]
    values = [t.clone() for t in start]
    first, second = ([torch.zeros_like(t) for t in start] for _ in range(2))
    mean, order = None, np.zeros(0, np.int64)
    with torch.enable_grad():
        for step in range(1, steps + 1):
            if len(order) < BATCH:
                order = np.concatenate([order, rng.permutation(len(data.x))])
            rows, order = order[:BATCH], order[BATCH:]
            leaves = [t.detach().requires_grad_() for t in values]
            scores = F.linear(F.linear(data.x[rows].float(), leaves[0]), leaves[1], leaves[2])
            balanced_loss(scores, data.mask(rows)).backward()
            rate = 2e-2 * (1 - 0.9 * step / steps)
            for i, leaf in enumerate(leaves):
                first[i] = 0.9 * first[i] + 0.1 * leaf.grad
                second[i] = 0.99 * second[i] + 0.01 * leaf.grad**2
                size = (second[i] / (1 - 0.99**step)).sqrt() + 1e-8
                values[i] = values[i] - rate * first[i] / (1 - 0.9**step) / size
            values = [t.detach() for t in values]
            if step > 0.8 * steps or mean is None:
                mean = values if mean is None else [0.7 * m + 0.3 * v for m, v in zip(mean, values)]
    return tuple(mean)


@answers("3.1")
def windows_one_by_one(mask: Tensor, length: int) -> tuple[float, ...]:
    means = []
    for k in range(1, LONGEST_UNION + 1):
        total, places = 0, 0
        for begin in range(0, len(mask), length):
            for i in range(begin, begin + length - k + 1):
                total += int(mask[i : i + k].any(dim=0).sum())
                places += 1
        means.append(total / places)
    return tuple(means)


@answers("3.2")
def rebuilt_from_sets(self: Any, active: np.ndarray) -> Step:
    before = set(np.flatnonzero(self._uses).tolist())
    if self.tokens == 0:
        self.clear()
    kept, overflow = self._fit(active)
    new = [n for n in kept if self._uses[n] == 0]
    self._history.append(kept)
    for n in kept:
        self._uses[n] += 1
    self.size += len(new)
    while len(self._history) > self.tokens and len(self._history) > 1:
        self._forget_oldest()
    while self.size > self.capacity:
        self._forget_oldest()
    after = set(np.flatnonzero(self._uses).tolist())
    gone = before if self.tokens == 0 else before - after
    return Step(np.array(new, np.int64), np.array(sorted(gone), np.int64), overflow)


@answers("3.3")
def neuron_by_neuron(self: Any) -> np.ndarray:
    leaving = []
    for neuron in self._history[0]:
        self._uses[neuron] -= 1
        if not self._uses[neuron]:
            leaving.append(neuron)
    self._history.popleft()
    self.size -= len(leaving)
    return np.array(leaving, dtype=np.int64)


@answers("3.3")
def recounted(self: Any) -> np.ndarray:
    oldest = self._history.popleft()
    left = np.zeros_like(self._uses)
    for token in self._history:
        left[token] += 1
    self._uses[:] = left
    self.size = np.count_nonzero(left)
    return oldest[left[oldest] == 0]


@answers("3.4")
def counting(sizes: Sequence[float], rows: int) -> int:
    return sum(size <= rows for size in sizes)


@answers("3.4")
def first_too_large(sizes: Sequence[float], rows: int) -> int:
    for k, size in enumerate(sizes):
        if size > rows:
            return k
    return len(sizes)


@answers("4.1")
def row_by_row(up: Tensor, down: Tensor, record_bytes: int) -> np.ndarray:
    records = np.zeros((len(up), record_bytes), np.uint8)
    half = up.shape[1] * up.element_size()
    records[:, :half] = up.contiguous().view(torch.uint8).numpy()
    records[:, half : 2 * half] = down.T.contiguous().view(torch.uint8).numpy()
    return records


@answers("4.2")
def narrowed(rows: Tensor, d_model: int) -> tuple[Tensor, Tensor]:
    return rows.narrow(1, 0, d_model), rows.narrow(1, d_model, d_model)


@answers("4.3")
def pair_by_pair(fired: Tensor) -> Tensor:
    counts = fired.to(torch.int64)
    friends = []
    for i in range(fired.shape[1]):
        together = (counts[:, i : i + 1] * counts).sum(0)
        together[i] = -1
        friends.append(int(together.argmax()))
    return torch.tensor(friends)


@answers("5.1")
def one_list_of_rows(self: Any, load: np.ndarray, drop: np.ndarray) -> Landing:
    after = self.num_used + len(load) - len(drop)
    if after > self.capacity:
        raise ValueError("no room")
    free = sorted(self._row_of_neuron[drop].tolist())
    for neuron in drop:
        self._row_of_neuron[neuron] = -1
    taken = []
    for _ in load:
        if free:
            taken.append(free.pop(0))
        else:
            taken.append(self.num_used)
            self.num_used += 1
    rows = np.array(taken, np.int64)
    self._note(load, rows)
    if free:
        self._fill_holes(np.array(free))
    return Landing(self._buffer, rows)


@answers("5.1")
def any_rows_below_the_new_end(self: Any, load: np.ndarray, drop: np.ndarray) -> Landing:
    end = self.num_used + len(load) - len(drop)
    if end > self.capacity:
        raise ValueError("no room")
    free = self._row_of_neuron[drop]
    self._row_of_neuron[drop] = -1
    safe = np.concatenate([np.arange(self.num_used, end), free[free < end]])
    rows = safe[: len(load)]
    self._note(load, rows)
    self.num_used = max(self.num_used, end)
    holes = np.setdiff1d(free, rows)
    if len(holes):
        self._fill_holes(holes)
    return Landing(self._buffer, rows)


@answers("5.2")
def two_pointers(self: Any, holes: np.ndarray) -> None:
    empty, last = set(holes.tolist()), self.num_used - 1
    for hole in holes:
        while last in empty:
            last -= 1
        if last < hole:
            break
        self._buffer[hole] = self._buffer[last]
        self._note(self._neuron_of_row[last], hole)
        self.moved += 1
        last -= 1
    self.num_used -= len(holes)


@answers("5.3")
def by_hand(self: Any, x: Tensor) -> Tensor:
    d, n = self._d_model, self.num_used
    up, down = self._matrix[:n, :d], self._matrix[:n, d : 2 * d]
    return torch.relu(x @ up.T + self._bias[:n]) @ down


@answers("5.3")
def by_ffn_product(self: Any, x: Tensor) -> Tensor:
    used = slice(0, self.num_used)
    return ffn_product(x, rows=self._matrix[used], bias=self._bias[used], d_model=self._d_model)


@answers("6.1")
def layers_settled_one_by_one(total: int, needs: Sequence[float], neurons: int, spare: int) -> tuple[int, ...]:
    """Every layer is at one of its bounds or in proportion: raise the scale from bound to bound."""
    fewest = min(FEWEST_ROWS, neurons)

    def rows(scale: float) -> list[float]:
        return [min(neurons, max(fewest, scale * need)) for need in needs]

    def used(scale: float) -> float:
        return sum(rows(scale)) + spare * max(rows(scale))

    bounds = sorted({bound / need for need in needs for bound in (fewest, neurons)})
    below = [bound for bound in bounds if used(bound) <= total]
    if len(below) == len(bounds):
        return (neurons,) * len(needs)
    low, high = below[-1], bounds[len(below)]
    left, slope = total - used(low), (used(high) - used(low)) / (high - low)
    return tuple(int(row) for row in rows(low + left / slope))


@answers("6.2")
def met_in_the_middle(layers: Sequence[Sequence[Candidate]], room: int, record: int) -> tuple[int, tuple[int, ...]]:
    """All ways for each half of the layers; to each way of the first the best of the second that still fits."""
    least, choice = float("inf"), (1, tuple(_smallest(layer, record) for layer in layers))
    middle = len(layers) // 2
    for k in range(1, len(layers[0][0].window_rows)):
        halves = []
        for part in (layers[:middle], layers[middle:]):
            taken, read = np.zeros(1), np.zeros(1)
            for layer in part:
                taken = np.add.outer(taken, [c.nbytes + c.window_rows[k - 1] * record for c in layer]).ravel()
                read = np.add.outer(read, [c.window_rows[k] - c.window_rows[k - 1] for c in layer]).ravel()
            order = np.argsort(taken)
            halves.append((order, taken[order], read[order], [len(layer) for layer in part]))
        (one, taken, read, sizes), (other, others_taken, others_read, others_sizes) = halves
        fitting = np.searchsorted(others_taken, room - taken, side="right")
        best = np.append(np.inf, np.minimum.accumulate(others_read))[fitting]
        if (read + best).min() < least:
            i = int((read + best).argmin())
            j = int(others_read[: fitting[i]].argmin())
            places = *np.unravel_index(one[i], sizes), *np.unravel_index(other[j], others_sizes)
            least, choice = float((read + best).min()), (k, tuple(int(place) for place in places))
    return choice


@answers("6.2")
def on_a_grid(layers: Sequence[Sequence[Candidate]], room: int, record: int) -> tuple[int, tuple[int, ...]]:
    """The room in a few thousand cells: how little can be read with so many of them, layer after layer."""
    cells, least = 4000, float("inf")
    choice = 1, tuple(_smallest(layer, record) for layer in layers)
    for k in range(1, len(layers[0][0].window_rows)):
        reads, steps = np.zeros(cells + 1), []
        for layer in layers:
            costs = [c.nbytes + c.window_rows[k - 1] * record for c in layer]
            sizes = [int(np.ceil(cost * cells / max(room, 1))) for cost in costs]
            tried = np.full((len(layer), cells + 1), np.inf)
            for i, size in enumerate(sizes):
                if size <= cells:
                    tried[i, size:] = reads[: cells + 1 - size] + layer[i].window_rows[k] - layer[i].window_rows[k - 1]
            steps.append((sizes, tried.argmin(0)))
            reads = tried.min(0)
        if reads[-1] < least:
            least, left, places = float(reads[-1]), cells, list[int]()
            for sizes, best in reversed(steps):
                places.insert(0, int(best[left]))
                left -= sizes[places[0]]
            choice = k, tuple(places)
    return choice


@answers("7.1")
def closed_form(acceptance: float, draft: int) -> float:
    if acceptance == 1:
        return draft + 1
    return (1 - acceptance ** (draft + 1)) / (1 - acceptance)


@answers("7.1")
def by_chances(acceptance: float, draft: int) -> float:
    tokens, chance = 1.0, 1.0
    for _ in range(draft):
        chance *= acceptance
        tokens += chance
    return tokens


@answers("7.2")
def tokens_over_time(acceptance: float, draft: int, draft_cost: float, check_cost: float = 1.0) -> float:
    time = check_cost
    for _ in range(draft):
        time += draft_cost
    return expected_tokens(acceptance, draft) / time


@answers("8.1")
def the_next_layer_first(self: Any, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """The next layer's reads are begun as soon as its guess can be told."""
    for following in self.following:
        guess = following.window.step(following.likely(x))
        early, _ = following._submit(guess, following.early)
        following.begun = Begun(early, guess.load)
    needed = active_set(self.predictor, x)
    if self.begun is not None:
        self.land(self.begun.tickets)
        step = self.window.amend(needed)
        self.wasted += len(np.setdiff1d(self.begun.neurons, needed))
        self.begun = None
    else:
        step = self.window.step(needed)
    tickets, rows = self._submit(step, self.file)
    try:
        values = self.activations(x)
    except BaseException:
        self.land(tickets)
        raise
    self.land(tickets)
    return self.product_after(values, x, rows), step.overflow


@answers("8.1")
def beside_the_window(self: Any, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """A guess takes free rows alone, and the window doesn't know of it."""
    from flashlite.engine.window import NONE, Step

    guessed = NONE
    if self.begun is not None:
        self.land(self.begun.tickets)
        guessed, self.begun = self.begun.neurons, None
    step = self.window.step(active_set(self.predictor, x))
    wrong = np.setdiff1d(guessed, self.window.held)
    self.wasted += len(wrong)
    changes = Step(np.setdiff1d(step.load, guessed), np.union1d(step.drop, wrong), step.overflow)
    tickets, rows = self._submit(changes, self.file)
    try:
        h = self.activations(x)
    finally:
        self.land(tickets)
    for following in self.following:
        free = following.memory.capacity - following.memory.num_used
        likely = np.setdiff1d(following.likely(x), following.window.held)[:free]
        reads, _ = following._submit(Step(likely, NONE, NONE), following.early)
        following.begun = Begun(reads, likely)
    return self.product_after(h, x, rows), step.overflow


@answers("8.1")
def read_again(self: Any, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """Early reads that failed are no reason to give up: the layer begins from nothing."""
    active, begun = active_set(self.predictor, x), self.begun
    try:
        if begun is None:
            step = self.window.step(active)
        else:
            self.land(begun.tickets)
            step = self.window.amend(active)
            self.wasted += int((~np.isin(begun.neurons, active)).sum())
    except ReadError:
        self.forget()
        step = self.window.step(active)
    self.begun = None
    tickets, rows = self._submit(step, self.file)
    try:
        h = self.activations(x)
    finally:
        self.land(tickets)
    if self.following:
        following = self.following[0]
        guess = following.window.step(following.likely(x))
        following.begun = Begun(following._submit(guess, following.early)[0], guess.load)
    return self.product_after(h, x, rows), step.overflow


@answers("9.1")
def by_masks(self: Any, first: Tensor, second: Tensor | None = None) -> Tensor:
    first[first <= self.threshold] = 0
    if self.power == 2:
        first *= first
    if second is not None:
        first *= second.clamp(min=0) if self.both else second
    return first


@answers("9.1")
def copied_back(self: Any, first: Tensor, second: Tensor | None = None) -> Tensor:
    import torch

    value = torch.where(self.fires(first), first**self.power, torch.zeros_like(first))
    if second is not None:
        value = value * (second.relu() if self.both else second)
    return first.copy_(value)


@answers("9.2")
def variances(x: Tensor, scale: Tensor, errors: float = ERRORS) -> Tensor:
    variance = x.float().square().sum(1)[:, None] * (scale.float() * STEP_ERROR).square()
    return errors * variance.sqrt()


@answers("9.2")
def outer_product(x: Tensor, scale: Tensor, errors: float = ERRORS) -> Tensor:
    return torch.outer(x.to(torch.float64).norm(dim=1), scale.double() * errors / 12**0.5).float()


@answers("9.3")
def waits_for_what_was_broken_off(self: Any, x: Tensor) -> None:
    if self._under_way:
        wait_all(self._under_way)
        self.window.clear()
        self.memory.clear()
    self._begun = self.window.step(active_set(self.predictor, x))
    self._under_way, self._rows = self._submit(self._begun, self.early)
    self._clock.switch(REST)


@answers("10.1")
def each_row_alone(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, scale = [], []
    for row in matrix:
        step = row.float().abs().max() / LARGEST
        if not torch.isfinite(step):
            raise CheckpointError(f"{name}: a weight is NaN or infinite")
        scaled = row.float() / step if step > 0 else torch.zeros(len(row))
        values.append(scaled.round().clamp(-LARGEST, LARGEST).to(torch.int8))
        scale.append(step)
    return torch.stack(values), torch.stack(scale)


@answers("10.2")
def numbers_first(h: Tensor, rows: Tensor, scale: Tensor, picked: Any = slice(None)) -> Tensor:
    numbers = torch.from_numpy(rows_of(picked, len(rows)))
    fires = (h != 0).sum(0) > 0
    scaled, numbers = (h * scale[numbers])[:, fires], numbers[fires]
    if len(h) <= FEW:
        return weighted_sum(scaled, rows, numbers.numpy(), rows.shape[1])
    total = torch.zeros(len(h), rows.shape[1])
    for part in blocks(len(numbers), rows.shape[1]):
        total = total + scaled[:, part] @ rows[numbers[part]].to(torch.float32)
    return total
