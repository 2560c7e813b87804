/* The interactive page: its state, its controls, and what they show. See policies.js for what is computed. */
"use strict";

const byId = (id) => document.getElementById(id);
const NAMES = ["window", "lru", "belady"];
const MOST_ROWS = 1024;
const LONGEST = 16; // tokens of a window
const PACE = 160; // milliseconds a token

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

/** The page. */
class Page {
  constructor(lab) {
    this.lab = lab;
    this.t = lab.trace.length - 1;
    this.pools = Object.fromEntries(NAMES.map((name) => [name, new PoolView(byId(`pool-${name}`), MOST_ROWS)]));
    this.makeText();
    this.makeControls();
    this.chooseLayer(Math.floor(lab.layers.length / 2));
    new ResizeObserver(() => this.drawCharts()).observe(byId("chart-tokens"));
  }

  get k() {
    return Number(byId("k").value);
  }

  get rows() {
    return Number(byId("rows").value);
  }

  makeText() {
    this.words = this.lab.recorded.tokens.map((text, t) => {
      const word = document.createElement("span");
      word.textContent = text.replaceAll("\n", "⏎\n");
      word.addEventListener("click", () => this.show(t));
      byId("text").append(word);
      return word;
    });
  }

  makeControls() {
    this.lab.layers.forEach((_, layer) => byId("layer").append(new Option(`${layer}`, layer)));
    byId("layer").addEventListener("change", () => this.chooseLayer(Number(byId("layer").value)));
    for (const id of ["k", "rows"]) byId(id).addEventListener("input", () => this.compute());
    byId("token").max = this.lab.trace.length;
    byId("token").addEventListener("input", () => this.show(Number(byId("token").value) - 1));
    byId("play").addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    byId("back").addEventListener("click", () => this.stepTo(this.t - 1));
    byId("forth").addEventListener("click", () => this.stepTo(this.t + 1));
    byId("lab").addEventListener("keydown", (event) => this.press(event));
  }

  /** Keys: space plays; the arrows step, where they don't move a slider. */
  press(event) {
    const { tagName } = event.target;
    if (event.key === " " && tagName !== "BUTTON" && tagName !== "SELECT") byId("play").click();
    else if (event.key === "ArrowLeft" && tagName !== "INPUT" && tagName !== "SELECT") this.stepTo(this.t - 1);
    else if (event.key === "ArrowRight" && tagName !== "INPUT" && tagName !== "SELECT") this.stepTo(this.t + 1);
    else return;
    event.preventDefault();
  }

  chooseLayer(layer) {
    this.lab.choose(layer);
    byId("layer").value = layer;
    byId("rows").min = this.lab.fewestRows;
    this.compute();
  }

  set({ k, rows }) {
    byId("k").value = k;
    byId("rows").value = rows;
    this.compute();
  }

  /** Let the policies run through the whole trace with the settings as they are, and show it. */
  compute() {
    const { lab, k, rows } = this;
    byId("k-value").textContent = k === 1 ? "1 token" : `${k} tokens`;
    byId("rows-value").textContent = `${rows} of ${lab.recorded.neurons.toLocaleString("en")} neurons`;
    this.runs = Object.fromEntries(NAMES.map((name) => {
      const steps = lab.steps(name, k, rows);
      return [name, { steps, loads: lab.loads(name, k, rows), rows: Policies.rowsAfter(steps, lab.recorded.neurons, rows) }];
    }));
    const most = Math.max(...this.runs.window.loads);
    this.words.forEach((word, t) => word.style.setProperty("--reads", (this.runs.window.loads[t] / most).toFixed(3)));
    this.drawCharts();
    this.show(this.t);
  }

  drawCharts() {
    const { lab, k, rows } = this;
    const tokens = lab.trace.length;
    const mean = (name, kNow, rowsNow) => lab.bytes(name, kNow, rowsNow) / tokens / 1e3;
    const needed = lab.neededBytes / tokens / 1e3;
    const runs = NAMES.map((name) => ({ name, kb: lab.kb(this.runs[name].loads) }));
    this.moveCursor = Charts.byToken(byId("chart-tokens"), lab.kb(lab.trace.map((active) => active.length)), runs);
    const settings = Array.from({ length: 21 }, (_, i) => Math.round(lab.fewestRows + (i / 20) * (MOST_ROWS - lab.fewestRows)));
    const lengths = Array.from({ length: LONGEST + 1 }, (_, i) => i);
    const curves = (values, mean) =>
      NAMES.map((name) => ({ name, points: values.map((value) => [value, mean(name, value)]), now: this.mean(name) }));
    Charts.against(
      byId("chart-memory"),
      { from: lab.fewestRows, to: MOST_ROWS, ticks: [256, 512, 768, 1024].filter((n) => n > lab.fewestRows), label: "rows of memory" },
      rows, needed, curves(settings, (name, value) => mean(name, k, value)), "kB read a token, against memory",
    );
    Charts.against(
      byId("chart-k"),
      { from: 0, to: LONGEST, ticks: [0, 4, 8, 12, 16], label: "k, tokens of the window" },
      k, needed, curves(lengths, (name, value) => mean(name, value, rows)), "kB read a token, against k",
    );
    this.moveCursor(this.t);
  }

  mean(name) {
    return this.lab.bytes(name, this.k, this.rows) / this.lab.trace.length / 1e3;
  }

  /** Show all with one token. */
  show(t) {
    this.t = Math.max(0, Math.min(t, this.lab.trace.length - 1));
    byId("token").value = this.t + 1;
    byId("token-value").textContent = `token ${this.t + 1} of ${this.lab.trace.length}`;
    this.words.forEach((word, i) => (word.className = i < this.t ? "past" : i === this.t ? "now" : "ahead"));
    const active = this.lab.trace[this.t];
    for (const name of NAMES) this.pools[name].show(this.runs[name].rows[this.t], active, this.runs[name].steps[this.t].load);
    this.moveCursor(this.t);
    this.tell("needed", this.lab.trace.map((neurons) => neurons.length));
    for (const name of NAMES) this.tell(name, this.runs[name].loads);
  }

  /** A row of the table: with this token, up to it, and in the whole text. loads: neurons, token by token. */
  tell(name, loads) {
    const mb = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`;
    const soFar = loads.slice(0, this.t + 1);
    const all = this.lab.inBytes(loads);
    const cells = {
      now: `${loads[this.t]} · ${(this.lab.inBytes([loads[this.t]]) / 1e3).toFixed(0)} kB`,
      far: mb(this.lab.inBytes(soFar)),
      all: mb(all),
      token: `${(all / loads.length / 1e3).toFixed(1)} kB`,
      share: `${((100 * all) / this.lab.neededBytes).toFixed(1)} %`,
    };
    for (const [cell, text] of Object.entries(cells)) byId(`${name}-${cell}`).textContent = text;
  }

  stepTo(t) {
    this.pause();
    this.show(t);
  }

  play() {
    if (this.t === this.lab.trace.length - 1) this.show(0);
    this.timer = setInterval(() => {
      this.show(this.t + 1);
      if (this.t === this.lab.trace.length - 1) this.pause();
    }, PACE);
    byId("play").textContent = "Pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    byId("play").textContent = "Play";
  }
}

/** The questions, one after another. */
class Guessing {
  constructor(page) {
    this.page = page;
    byId("guess-next").addEventListener("click", () => this.ask((this.number + 1) % GUESSES.length));
    this.ask(0);
  }

  ask(number) {
    this.number = number;
    const { lab } = this.page;
    const guess = GUESSES[number];
    this.page.set(guess.settings(lab)[0]);
    byId("guess-number").textContent = `Guess ${number + 1} of ${GUESSES.length}`;
    byId("guess-ask").textContent = guess.ask(lab);
    byId("guess-answer").textContent = "";
    byId("guess-next").hidden = true;
    byId("guess-options").replaceChildren(...guess.options.map(([label, from, to]) => {
      const button = document.createElement("button");
      button.textContent = label;
      button.addEventListener("click", () => this.answer(button));
      button.dataset.from = from;
      button.dataset.to = to;
      return button;
    }));
  }

  answer(chosen) {
    const guess = GUESSES[this.number];
    const { lab } = this.page;
    const value = guess.measure(lab);
    const holds = (button) => Number(button.dataset.from) <= value && value < Number(button.dataset.to);
    for (const button of byId("guess-options").children) {
      button.disabled = true;
      button.className = holds(button) ? "right" : button === chosen ? "wrong" : "";
    }
    this.page.set(guess.settings(lab)[1]);
    byId("guess-answer").textContent = `${holds(chosen) ? "Yes." : "No."} ${guess.tell(value, lab)}`;
    byId("guess-next").hidden = false;
    byId("guess-next").textContent = this.number + 1 < GUESSES.length ? "Next guess" : "Once more from the first";
  }
}

new Guessing(new Page(new Lab(window.flashliteTrace)));
