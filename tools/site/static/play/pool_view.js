/* A pool as a picture: a square for each row of memory, which fills and empties token by token. */
"use strict";

const COLUMNS = 32; // squares side by side
const SIDE = 10; // of a square with the gap to the next

/** Draws one policy's rows into a box. most: as many rows as memory can ever be given. */
class PoolView {
  constructor(box, most) {
    const lines = Math.ceil(most / COLUMNS);
    this.svg = Svg.add(box, "svg", { viewBox: `0 0 ${COLUMNS * SIDE} ${lines * SIDE}`, role: "img" });
    this.squares = Array.from({ length: most }, (_, row) => {
      const place = { x: (row % COLUMNS) * SIDE + 1, y: Math.floor(row / COLUMNS) * SIDE + 1, rx: 1.5 };
      return Svg.add(this.svg, "rect", { ...place, width: SIDE - 2, height: SIDE - 2 });
    });
    this.shown = new Array(most).fill("");
  }

  /** Show the rows with one token: what was read for it, what it found there, what waits, what is free. */
  show(rows, needed, read) {
    const [isNeeded, isRead] = [new Set(needed), new Set(read)];
    this.squares.forEach((square, row) => {
      const kind = PoolView.kind(rows, row, isNeeded, isRead);
      if (this.shown[row] !== kind) square.setAttribute("class", (this.shown[row] = kind));
    });
    const held = rows.reduce((count, neuron) => count + (neuron >= 0), 0);
    const words = `${held} of ${rows.length} rows hold a neuron; this token needs ${needed.length}, ${read.length} of them were read`;
    this.svg.setAttribute("aria-label", words);
  }

  static kind(rows, row, isNeeded, isRead) {
    if (row >= rows.length) return "outside";
    if (rows[row] < 0) return "free";
    if (isRead.has(rows[row])) return "read";
    return isNeeded.has(rows[row]) ? "hit" : "idle";
  }
}
