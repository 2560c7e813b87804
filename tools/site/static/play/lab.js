/* A recorded trace, and what the policies make of it; what was computed once is kept. */
"use strict";

const MOST_ROWS = 1024; // that memory can be given

/** A layer's trace, and what the policies make of it. */
class Lab {
  constructor(recorded) {
    this.recorded = recorded;
    this.layers = recorded.layers.map(Policies.decode);
    this.mostRows = MOST_ROWS;
    this.choose(Math.floor(this.layers.length / 2));
  }

  choose(layer) {
    this.trace = this.layers[layer];
    this.fewestRows = Math.max(...this.trace.map((active) => active.length));
    this.neededBytes = this.inBytes(this.trace.map((active) => active.length));
    this.known = new Map(); // of settings that were computed before
  }

  /** What a policy loads and drops, token by token. */
  steps(name, k, rows) {
    const key = name === "window" ? `${k} ${rows}` : `${name} ${rows}`;
    if (!this.known.has(key)) {
      const neurons = this.recorded.neurons;
      this.known.set(key, {
        window: () => Policies.slidingWindow(this.trace, neurons, k, rows),
        lru: () => Policies.leastRecentlyUsed(this.trace, neurons, rows),
        belady: () => Policies.belady(this.trace, neurons, rows),
      }[name]());
    }
    return this.known.get(key);
  }

  /** The neurons that a policy reads, token by token. */
  loads(name, k, rows) {
    return this.steps(name, k, rows).map((step) => step.load.length);
  }

  /** What it reads in all. */
  bytes(name, k, rows) {
    return this.inBytes(this.loads(name, k, rows));
  }

  inBytes(neurons) {
    return neurons.reduce((sum, count) => sum + count, 0) * this.recorded.recordBytes;
  }

  /** kB of each token. */
  kb(neurons) {
    return neurons.map((count) => (count * this.recorded.recordBytes) / 1e3);
  }
}
