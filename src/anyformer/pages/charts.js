"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
  const choice = { x: chosen("x") || "step", scale: chosen("scale") || "focus" };
  const views = [];

  const SUFFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const plain = (value, digits) => String(Number(value.toPrecision(digits)));
  const si = (value, digits = 3, giga = "G") => {
    for (const [size, suffix] of SUFFIXES)
      if (Math.abs(value) >= size * 0.9995) return plain(value / size, digits) + (suffix === "G" ? giga : suffix);
    return plain(value, digits);
  };
  const power = (value, digits) => {
    if (value === 0) return "0";
    if (Math.abs(value) >= 0.01) return plain(value, digits);
    const [head, tail] = value.toExponential(digits - 1).split("e");
    return `${Number(head)}e${Number(tail)}`;
  };
  const clock = (seconds) => {
    const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = whole % 60;
    const two = (part) => String(part).padStart(2, "0");
    if (h >= 48) return `${Math.floor(h / 24)}d ${h % 24}h`;
    return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
  };
  const READ = {
    loss: (v) => v.toFixed(4), number: (v) => plain(v, 4), rate: (v) => power(v, 4),
    count: (v) => si(v, 4, "B"), flops: (v) => si(v, 3).replace(/[A-Z]?$/, " $&FLOP/s"),
  };
  const TICK = {
    loss: (v) => plain(v, 4), number: (v) => plain(v, 4), rate: (v) => power(v, 3),
    count: (v) => si(v, 4, "B"), flops: (v) => si(v, 3),
  };
  const PLACE = {
    step: (v) => `step ${v.toLocaleString("en")}`, time: (v) => clock(v), tokens: (v) => `${si(v, 4, "B")} tokens`,
    flops: (v) => `${si(v, 3)} FLOPs`.replace(/([A-Z]) FLOPs$/, " $1FLOPs"),
  };
  const XTICK = { step: (v) => si(v, 4), time: clock, tokens: (v) => si(v, 4, "B"), flops: (v) => si(v, 3) };
  const TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

  const make = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (parent) parent.append(element);
    return element;
  };
  const nice = (span, count) => {
    const rough = span / Math.max(1, count), base = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 2.5, 5, 10].find((step) => step * base >= rough * 0.8) * base;
  };
  const whole = (step) => (step < 1 ? 1 : Number.isInteger(step) ? step : step * 2);
  const ticks = (low, high, step) => {
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  };
  const logTicks = (low, high, count) => {
    let found = [];
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
      found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
        for (const s of steps) if (s * 10 ** e >= low && s * 10 ** e <= high) found.push(s * 10 ** e);
      if (found.length >= Math.min(4, count)) break;
    }
    return found.length >= 2 ? found : ticks(low, high, nice(high - low, count));
  };

  const points = (series) => {
    const axis = data.axes[series.axis][choice.x];
    return series.y.map((y, i) => [axis[i], y]);
  };
  const known = (p) => p[0] !== null && p[1] !== null;

  // One stretch for all charts, so that they can be read below each other.
  const extent = () => {
    const all = data.axes.flatMap((axis) => axis[choice.x]).filter((v) => v !== null);
    if (!all.length) return [0, 1];
    const low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    return low === high ? [low - 1, high + 1] : [low <= high * 0.2 ? 0 : low, high];
  };

  const range = (chart, drawn, xs) => {
    const log = chart.scaled && choice.scale === "log";
    let values = drawn.flatMap((s) => s.points.filter(known).map((p) => p[1]));
    if (log) values = values.filter((v) => v > 0);
    if (chart.scaled && choice.scale === "focus") {
      // The fall at the start would press the rest flat: what lies in the first part of the run may leave at the top.
      const from = xs[0] + (xs[1] - xs[0]) * 0.04;
      const later = (s) => s.points.filter((p) => known(p) && p[0] >= from).map((p) => p[1]);
      const lines = drawn.filter((s) => s.style !== "faint").flatMap(later);
      const noise = drawn.filter((s) => s.style === "faint").flatMap(later).sort((a, b) => a - b);
      if (noise.length) lines.push(noise[Math.floor(noise.length * 0.03)], noise[Math.floor(noise.length * 0.97)]);
      if (lines.length > 3) values = lines;
    }
    for (const mark of chart.marks) values.push(mark.y);
    if (!values.length) return { low: 0, high: 1, log: false };
    let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    if (log) return { low: low / 1.03, high: high * 1.03, log };
    if (chart.zero) low = Math.min(0, low);
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return { low: chart.zero && low === 0 ? 0 : low - pad, high: high + pad, log };
  };

  const draw = (view) => {
    const { chart, svg } = view;
    const width = Math.max(260, Math.round(view.box.clientWidth)), height = view.wide ? (width < 560 ? 260 : 360) : 190;
    const left = 50, right = 10, top = 8, bottom = 24;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const drawn = chart.series.map((s) => ({ ...s, points: points(s) }));
    const xs = extent();
    const { low, high, log } = range(chart, drawn, xs);
    const fy = log ? Math.log : (v) => v;
    const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0])) * (width - left - right);
    const y = (v) => height - bottom - ((fy(v) - fy(low)) / (fy(high) - fy(low) || 1)) * (height - top - bottom);
    const rows = Math.max(2, Math.round((height - top - bottom) / 52)), columns = Math.max(2, Math.round(width / 110));
    for (const tick of log ? logTicks(low, high, rows) : ticks(low, high, nice(high - low, rows))) {
      make("line", { class: tick === 0 ? "base" : "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }, svg);
      make("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, svg).textContent = TICK[chart.format](tick);
    }
    const span = xs[1] - xs[0];
    const step = choice.x === "time" ? TIMES.find((t) => t >= span / columns * 0.8) || nice(span, columns)
      : whole(nice(span, columns));
    for (const tick of ticks(xs[0], xs[1], step)) {
      const anchor = x(tick) > width - right - 14 ? "end" : "middle";
      make("text", { x: anchor === "end" ? width - right : x(tick), y: height - 6, "text-anchor": anchor }, svg).textContent = XTICK[choice.x](tick);
    }
    make("line", { class: "base", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, svg);
    const clip = make("clipPath", { id: `clip${view.index}` }, svg);
    make("rect", { x: left - 6, y: top - 4, width: width - left - right + 12, height: height - top - bottom + 5 }, clip);
    const plot = make("g", { "clip-path": `url(#clip${view.index})` }, svg);
    for (const mark of chart.marks) {
      make("line", { class: "mark", x1: left, x2: width - right, y1: y(mark.y), y2: y(mark.y) }, svg);
      make("text", { class: "mark-label", x: width - right, y: y(mark.y) + 15, "text-anchor": "end" }, svg).textContent =
        `${mark.label} ${READ[chart.format](mark.y)}`;
    }
    for (const s of drawn) {
      let path = "", pen = false;
      for (const p of s.points) {
        const fits = known(p) && (!log || p[1] > 0);
        if (fits) path += `${pen ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`;
        pen = fits;
      }
      const style = `--key: var(--c${s.color % 8})`;
      const line = make("path", { d: path, style, class: s.style === "faint" || s.style === "seed" ? "faint" : "" }, plot);
      if (s.color > 7) line.setAttribute("stroke-dasharray", "6 4");
      const shown = s.points.filter((p) => known(p) && (!log || p[1] > 0));
      if ((s.style === "points" && shown.length <= 40) || shown.length === 1)
        for (const p of shown) make("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.8, style }, plot);
    }
    view.cursor = make("g", { "pointer-events": "none" }, svg);
    Object.assign(view, { drawn, xs, x, y, log, size: { width, height, left, right, top, bottom } });
    read(view, null);
  };

  const nearest = (s, at) => {
    let best = null;
    for (const p of s.points) if (known(p) && (best === null || Math.abs(p[0] - at) <= Math.abs(best[0] - at))) best = p;
    return best;
  };
  const read = (view, at) => {
    const { drawn, cursor, size, x, y } = view;
    cursor.replaceChildren();
    let place = view.chart.note;
    if (at !== null) {
      const guide = drawn.find((s) => s.style !== "points" && s.style !== "seed") || drawn[0], p = guide && nearest(guide, at);
      if (p) {
        at = p[0];
        place = PLACE[choice.x](at);
        make("line", { class: "cursor", x1: x(at), x2: x(at), y1: size.top, y2: size.height - size.bottom }, cursor);
      }
    }
    // What the pointer is at stands where the note stood, so that nothing moves under it.
    view.note.textContent = place;
    const form = READ[view.chart.format], items = [];
    let raw = "";
    for (const s of drawn) {
      const p = at === null ? s.points.filter(known).at(-1) : nearest(s, at);
      if (s.style === "seed") continue;
      if (s.style === "faint") {
        if (at !== null && p && size.width > 600) raw = ` (this line ${form(p[1])})`;
        continue;
      }
      const style = `--key: var(--c${s.color % 8})`;
      const item = document.createElement("i"), value = document.createElement("em");
      item.style.cssText = style;
      value.textContent = p ? form(p[1]) : "–";
      item.append(`${s.name} `, value, raw);
      items.push(item);
      raw = "";
      if (at !== null && p && y(p[1]) >= size.top - 4)
        make("circle", { class: "here", cx: x(p[0]), cy: y(p[1]), r: 4, style }, cursor);
    }
    view.reads.replaceChildren(...items);
    view.at = at;
  };
  const point = (at) => { for (const view of views) read(view, at); };

  const begin = (chart, index) => {
    const box = document.createElement("figure"), caption = document.createElement("figcaption");
    const title = document.createElement("span"), bold = document.createElement("b"), reads = document.createElement("span");
    const wide = index === 0;
    const note = document.createElement("span");
    bold.textContent = chart.title; title.append(bold, note); reads.className = "reads";
    caption.append(title, reads);
    const inner = document.createElement("div");
    const svg = make("svg", { tabindex: "0", role: "img", "aria-label": `${chart.title} over the run; the arrow keys read it out` }, null);
    inner.append(svg); box.append(caption, inner);
    if (wide) box.className = "wide";
    document.getElementById("charts").append(box);
    const view = { chart, svg, note, reads, wide, index, box: inner, at: null };
    views.push(view);
    const move = (event) => {
      const scale = view.size.width / svg.getBoundingClientRect().width;
      const px = (event.clientX - svg.getBoundingClientRect().left) * scale;
      const part = (px - view.size.left) / (view.size.width - view.size.left - view.size.right);
      point(view.xs[0] + Math.min(1, Math.max(0, part)) * (view.xs[1] - view.xs[0]));
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
    svg.addEventListener("blur", () => point(null));
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return point(null);
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      const guide = (view.drawn.find((s) => s.style !== "points") || view.drawn[0]).points.filter(known);
      const here = view.at === null ? guide.length - 1 : guide.findIndex((p) => p[0] >= view.at);
      const next = guide[Math.min(guide.length - 1, Math.max(0, here + (event.key === "ArrowRight" ? 1 : -1)))];
      if (next) point(next[0]);
    });
    draw(view);
    new ResizeObserver(() => { if (Math.round(view.box.clientWidth) !== view.size.width) draw(view); }).observe(inner);
  };

  for (const part of location.hash.slice(1).split("&")) {
    const [key, value] = part.split("=");
    const input = key in choice && document.querySelector(`input[name="${key}"][value="${CSS.escape(value || "")}"]`);
    if (input) { input.checked = true; choice[key] = value; }
  }
  data.charts.forEach(begin);
  for (const input of document.querySelectorAll(".choice input"))
    input.addEventListener("change", () => {
      choice[input.name] = input.value;
      history.replaceState(null, "", `#x=${choice.x}&scale=${choice.scale}`);
      views.forEach(draw);
    });

  const folded = () => document.querySelectorAll("details.print");
  addEventListener("beforeprint", () => folded().forEach((d) => { d.open = true; }));
  addEventListener("afterprint", () => folded().forEach((d) => { d.open = false; }));

  // A page on a run that goes on is written anew at each evaluation.
  const written = Number(document.documentElement.dataset.written) * 1000;
  if (document.documentElement.dataset.state === "running")
    setInterval(() => {
      if (!document.hidden && views.every((v) => v.at === null) && Date.now() - written < 3600e3) location.reload();
    }, 30000);
})();
