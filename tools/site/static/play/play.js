/* The interactive page: its state, its controls, and what they show. See policies.js for what is computed. */
"use strict";

const byId = (id) => document.getElementById(id);
const NAMES = ["window", "lru", "belady"];
const LONGEST = 16; // tokens of a window
const PACE = 160; // milliseconds a token

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
    byId("layer").addEventListener("change", () => {
      this.hide(false);
      this.chooseLayer(Number(byId("layer").value));
    });
    for (const id of ["k", "rows", "token"]) byId(id).addEventListener("input", () => this.hide(false));
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
    byId("rows-value").textContent = `${rows} rows, ${Math.round((100 * rows) / lab.recorded.neurons)} % of the layer`;
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
    this.keepInSight(this.words[this.t]);
    this.tell("needed", this.lab.trace.map((neurons) => neurons.length));
    for (const name of NAMES) this.tell(name, this.runs[name].loads);
  }

  /** Scroll the text, and not the page, to a word. */
  keepInSight(word) {
    const box = byId("text");
    const above = word.getBoundingClientRect().top - box.getBoundingClientRect().top;
    if (above < 0 || above > box.clientHeight - 2 * word.offsetHeight) box.scrollTop += above - box.clientHeight / 2;
  }

  /** Hide what the policies do until the reader has guessed, or moves a control all the same. */
  hide(isHidden) {
    byId("lab").classList.toggle("asking", isHidden);
    byId("results").inert = isHidden;
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
    this.hide(false);
    this.show(t);
  }

  play() {
    this.hide(false);
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

new Guessing(new Page(new Lab(window.flashliteTrace)));
