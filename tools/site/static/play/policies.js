/* What stays in memory: the window, LRU and Belady's policy, token by token, and the pool's rows that hold it.
 *
 * The library does the same in flashlite/engine/window.py, flashlite/bench/replay.py and flashlite/engine/pool.py, and
 * the site's tests hold that both give the same numbers. A trace is what one layer needs: for each token an array of
 * neurons, sorted. A policy answers with steps: for each token the neurons to load and those to drop, sorted.
 */
"use strict";

const Policies = (() => {
  const DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const FURTHER = "."; // stands for as many neurons as there are digits, none of them needed

  /** The trace that tools/site/play_trace.py wrote as text. */
  function decode(text) {
    return text.split(" ").map((word) => {
      const neurons = [];
      let at = -1;
      for (const mark of word) {
        at += mark === FURTHER ? DIGITS.length : DIGITS.indexOf(mark) + 1;
        if (mark !== FURTHER) neurons.push(at);
      }
      return neurons;
    });
  }

  /** The neurons of the last `tokens` tokens, never more than `capacity`: where they are more, the oldest leave early. */
  function slidingWindow(trace, neurons, tokens, capacity) {
    const uses = new Int32Array(neurons); // how many tokens of the window use each neuron
    const history = [];
    let size = 0;
    const forgetOldest = () => {
      const gone = history.shift().filter((neuron) => --uses[neuron] === 0);
      size -= gone.length;
      return gone;
    };
    return trace.map((active) => {
      const drop = [];
      while (tokens === 0 && history.length) drop.push(...forgetOldest());
      const load = active.filter((neuron) => uses[neuron]++ === 0);
      history.push(active);
      size += load.length;
      while (history.length > Math.max(1, tokens) || size > capacity) drop.push(...forgetOldest());
      return { load, drop };
    });
  }

  /** Room for `capacity` neurons; the one that was used least recently leaves. */
  function leastRecentlyUsed(trace, neurons, capacity) {
    return evict(trace, neurons, capacity, trace.map((active, t) => active.map(() => -t)));
  }

  /** Room for `capacity` neurons; the one whose next use lies furthest ahead leaves. Nobody knows it; it is a bound. */
  function belady(trace, neurons, capacity) {
    const following = new Float64Array(neurons).fill(Infinity);
    const nextUses = [];
    for (let t = trace.length - 1; t >= 0; t--) {
      nextUses.unshift(trace[t].map((neuron) => following[neuron]));
      for (const neuron of trace[t]) following[neuron] = t;
    }
    return evict(trace, neurons, capacity, nextUses);
  }

  /** Evict those of the highest rank, which each token gives to the neurons that it uses; of equal ones the last. */
  function evict(trace, neurons, capacity, ranks) {
    const rank = new Float64Array(neurons);
    const lastUse = new Int32Array(neurons).fill(-1); // of those that are held
    let held = [];
    return trace.map((active, t) => {
      const load = active.filter((neuron) => lastUse[neuron] === -1);
      active.forEach((neuron, i) => {
        lastUse[neuron] = t;
        rank[neuron] = ranks[t][i];
      });
      const others = held.filter((neuron) => lastUse[neuron] !== t);
      const excess = active.length + others.length - capacity;
      const drop = [];
      if (excess > 0) {
        others.sort((a, b) => rank[a] - rank[b] || a - b);
        drop.push(...others.splice(-excess));
        for (const neuron of drop) lastUse[neuron] = -1;
      }
      held = active.concat(others);
      return { load, drop: drop.sort((a, b) => a - b) };
    });
  }

  /** The pool's rows after each step, -1 where a row is free: new neurons take the rows of dropped ones, lowest first,
   * then rows after the used ones; holes that remain are filled from the tail. */
  function rowsAfter(steps, neurons, capacity) {
    const rowOf = new Int32Array(neurons).fill(-1);
    const rows = new Int16Array(capacity).fill(-1);
    let used = 0;
    const put = (neuron, row) => {
      rowOf[neuron] = row;
      rows[row] = neuron;
    };
    return steps.map(({ load, drop }) => {
      const free = drop.map((neuron) => rowOf[neuron]).sort((a, b) => a - b);
      for (const neuron of drop) rowOf[neuron] = -1;
      for (const row of free) rows[row] = -1;
      load.forEach((neuron, i) => put(neuron, i < free.length ? free[i] : used++));
      const holes = free.slice(load.length);
      const end = used - holes.length;
      const tail = [];
      for (let row = end; row < used; row++) if (rows[row] !== -1) tail.push(row);
      holes.filter((row) => row < end).forEach((row, i) => {
        put(rows[tail[i]], row);
        rows[tail[i]] = -1;
      });
      used = end;
      return rows.slice();
    });
  }

  return { decode, slidingWindow, leastRecentlyUsed, belady, rowsAfter };
})();
