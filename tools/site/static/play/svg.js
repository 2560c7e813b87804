/* What charts and pools are drawn with: SVG elements, scales and round numbers. */
"use strict";

const Svg = (() => {
  /** A new SVG element with these attributes, put into a parent. */
  function add(parent, name, attributes = {}, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  /** A function from values between `from` and `to` to places between `begin` and `end`. */
  const scale = (from, to, begin, end) => (value) => begin + ((value - from) / (to - from || 1)) * (end - begin);

  /** Round numbers from 0 to at least `most`, about `count` of them. */
  function ticks(most, count) {
    const rough = most / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough);
    return Array.from({ length: Math.ceil(most / step) + 1 }, (_, i) => i * step);
  }

  /** A line through points [x, y]. */
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

  return { add, scale, ticks, path };
})();
