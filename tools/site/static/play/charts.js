/* The charts: bytes by token, and bytes a token against memory and against the window's length. */
"use strict";

const Charts = (() => {
  const HEIGHT = 230;
  const MARGIN = { left: 64, right: 22, top: 12, bottom: 42 };

  /** An empty chart with its axes. Returns its drawing and its scales.
   *
   * box: where it goes, whose old chart is removed; its width is the chart's
   * xs: { from, to, ticks, label }; ys: { most, label }
   */
  function axes(box, xs, ys, title) {
    box.replaceChildren();
    const width = Math.max(240, box.clientWidth);
    const svg = Svg.add(box, "svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
    svg.setAttribute("aria-label", title);
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const levels = Svg.ticks(ys.most, 4);
    const x = Svg.scale(xs.from, xs.to, MARGIN.left, right);
    const y = Svg.scale(0, levels.at(-1), bottom, MARGIN.top);
    for (const level of levels) {
      Svg.add(svg, "line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(level), y2: y(level) });
      Svg.add(svg, "text", { class: "tick end", x: MARGIN.left - 7, y: y(level) + 4 }, level.toLocaleString("en"));
    }
    for (const tick of xs.ticks) {
      Svg.add(svg, "text", { class: "tick middle", x: x(tick), y: bottom + 16 }, tick.toLocaleString("en"));
    }
    Svg.add(svg, "text", { class: "axis middle", x: (MARGIN.left + right) / 2, y: HEIGHT - 6 }, xs.label);
    const up = `translate(11 ${(MARGIN.top + bottom) / 2}) rotate(-90)`;
    Svg.add(svg, "text", { class: "axis middle", transform: up }, ys.label);
    return { svg, x, y, right, bottom };
  }

  /** Bytes by token. needed: kB of each token; runs: of each policy { name, kb }, kB of each token. */
  function byToken(box, needed, runs) {
    const xs = { from: 0, to: needed.length, ticks: Svg.ticks(needed.length, 6).slice(0, -1), label: "token" };
    const chart = axes(box, xs, { most: Math.max(...needed), label: "kB read" }, "kB read for each token");
    const stairs = (values) => values.flatMap((kb, t) => [[t, kb], [t + 1, kb]].map(([a, b]) => [chart.x(a), chart.y(b)]));
    const area = `${Svg.path([[chart.x(0), chart.bottom], ...stairs(needed), [chart.x(needed.length), chart.bottom]])}Z`;
    Svg.add(chart.svg, "path", { class: "needed", d: area });
    for (const { name, kb } of runs) Svg.add(chart.svg, "path", { class: `series ${name}`, d: Svg.path(stairs(kb)) });
    const veil = Svg.add(chart.svg, "rect", { class: "veil", y: MARGIN.top, height: chart.bottom - MARGIN.top });
    const cursor = Svg.add(chart.svg, "line", { class: "cursor", y1: MARGIN.top, y2: chart.bottom });
    return (t) => { // moves the cursor; what is still to come lies under a veil
      const at = chart.x(t + 1);
      veil.setAttribute("x", at);
      veil.setAttribute("width", Math.max(0, chart.right - at));
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
    };
  }

  /** Mean kB a token against a setting.
   *
   * xs: see `axes`; at: the setting's value now
   * needed: kB that a token needs
   * curves: of each policy { name, points }, points [value, kB]
   */
  function against(box, xs, at, needed, curves, title) {
    const chart = axes(box, xs, { most: needed, label: "kB read a token" }, title);
    const level = chart.y(needed);
    Svg.add(chart.svg, "line", { class: "needed-line", x1: MARGIN.left, x2: chart.right, y1: level, y2: level });
    Svg.add(chart.svg, "line", { class: "cursor", x1: chart.x(at), x2: chart.x(at), y1: MARGIN.top, y2: chart.bottom });
    for (const { name, points, now } of curves) {
      const line = Svg.path(points.map(([value, kb]) => [chart.x(value), chart.y(kb)]));
      Svg.add(chart.svg, "path", { class: `series ${name}`, d: line });
      Svg.add(chart.svg, "circle", { class: `dot ${name}`, cx: chart.x(at), cy: chart.y(now), r: 4.5 });
    }
  }

  return { byToken, against };
})();
