"use strict";
(() => {
  const percent = (weight) => (weight > 0 && weight < 0.01 ? "<1%" : `${Math.round(weight * 100)}%`);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const shown = (token) => {
    const text = token.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
    return text.trim() === "" ? text.replace(/ /g, "␣") : text;
  };
  const named = (token) => `“${shown(token).trim()}”`;
  const LETTERS = 12;
  const special = (token) => /^(\[.+\]|<.+>)$/.test(token.trim());

  // Colors are those of the page, light or dark.
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const color = (element, name) => {
    probe.clearRect(0, 0, 1, 1);
    probe.fillStyle = getComputedStyle(element).getPropertyValue(name).trim();
    probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };

  // Of each row what is left without the first key, as shares that sum to 1. Where nearly all goes to it, the rest is
  // rounding, and such a row is empty.
  const LEAST = 0.02 * 255;
  const withoutFirst = ({ weights, keys }) => {
    const found = new Uint8Array(weights.length), columns = keys.length;
    for (let row = 0; row < weights.length; row += columns) {
      let rest = 0;
      for (let key = 1; key < columns; key++) rest += weights[row + key];
      if (rest >= LEAST) for (let key = 1; key < columns; key++) found[row + key] = Math.round((weights[row + key] / rest) * 255);
    }
    return found;
  };

  const SVG = "http://www.w3.org/2000/svg";
  const shape = (name, attributes, text = "") => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };

  const explore = (root) => {
    const find = (selector) => root.querySelector(selector);
    let stacks = JSON.parse(find("script").textContent).stacks;
    for (const stack of stacks) if (stack.weights) stack.weights = bytes(stack.weights);
    const map = find("canvas.map"), lines = find("svg.lines"), heads = find(".heads"), sort = find("select"), said = find(".said");
    const strips = { queries: find(".strip.queries"), keys: find(".strip.keys") };
    // What is looked at: a head of a stack; and a token of one side, pinned or only pointed at.
    // view: a map, or lines of the head or of its whole layer; without: whether the share of the first token is hidden.
    const state = { stack: 0, head: 0, sort: "", direction: "from", view: "map", without: false, pinned: null, pointed: null };
    let palette = [], size = null, drawnLines = null;

    const stack = () => stacks[state.stack];
    const shares = () => (state.without ? (stack().others ??= withoutFirst(stack())) : stack().weights);
    const place = (head) => [Math.floor(head / stack().heads), head % stack().heads];
    const weight = (head, query, key) => {
      const { queries, keys } = stack();
      return shares()[(head * queries.length + query) * keys.length + key] / 255;
    };
    const title = (head) => { const [layer, number] = place(head); return `Layer ${stack().numbers[layer]}, head ${number + 1}`; };

    const readColors = () => {
      const low = color(root, "--card"), high = color(root, "--heat");
      // Small weights would be lost in a linear scale.
      palette = Array.from({ length: 256 }, (_, value) => {
        const part = (value / 255) ** 0.6;
        return low.map((channel, i) => Math.round(channel + (high[i] - channel) * part));
      });
    };
    const picture = (head) => {
      const { queries, keys } = stack(), weights = shares(), rows = queries.length, columns = keys.length;
      const image = new ImageData(columns, rows);
      for (let i = 0; i < rows * columns; i++) image.data.set([...palette[weights[head * rows * columns + i]], 255], 4 * i);
      return image;
    };

    const order = () => {
      const all = [...stack().does.keys()], pattern = stack().patterns.find((each) => each.name === state.sort);
      return pattern ? all.sort((a, b) => pattern.scores[b] - pattern.scores[a]) : all;
    };
    // The head that a page opens with: one that follows a pattern which few can be seen at once.
    const telling = () => {
      const { does, patterns } = stack(), plain = ["first token", "last token", "itself", "punctuation"];
      const gain = (head) => {
        const own = patterns.find((each) => each.name === does[head]);
        return own && own.chance < 1 && !plain.includes(own.name) ? own.scores[head] : 0;
      };
      return [...does.keys()].reduce((best, head) => (gain(head) > gain(best) ? head : best), 0);
    };
    const drawHeads = () => {
      const { heads: count, layers, patterns, does } = stack(), pattern = patterns.find((each) => each.name === state.sort);
      heads.classList.toggle("sorted", Boolean(pattern));
      heads.style.setProperty("--columns", Math.min(16, count));
      heads.style.setProperty("--narrow", count <= 9 ? count : Math.min(8, Math.ceil(count / 2)));
      const rows = Array.from({ length: pattern ? 1 : layers }, (_, layer) => {
        const [row, cells, name] = ["div", "div", "i"].map((tag) => document.createElement(tag));
        row.className = "row"; cells.className = "cells"; name.textContent = stack().numbers[layer]; name.title = `layer ${stack().numbers[layer]}`;
        if (!pattern) row.append(name);
        row.append(cells);
        return row;
      });
      for (const head of order()) {
        const [layer, number] = place(head), image = picture(head), score = pattern ? percent(pattern.scores[head]) : "";
        const [button, canvas, text, bold] = ["button", "canvas", "span", "b"].map((name) => document.createElement(name));
        canvas.width = image.width; canvas.height = image.height;
        canvas.getContext("2d").putImageData(image, 0, 0);
        bold.textContent = score;
        text.append(bold, `${stack().numbers[layer]}.${number + 1}`);
        const label = does[head] ? `${title(head)}: ${does[head]}` : title(head);
        button.type = "button"; button.dataset.head = head; button.title = label;
        button.setAttribute("role", "radio");
        button.setAttribute("aria-label", `${label}${pattern ? `; ${pattern.name} ${score}` : ""}`);
        button.append(canvas, text);
        rows[pattern ? 0 : layer].lastChild.append(button);
      }
      heads.replaceChildren(...rows);
      const counts = new Map();
      for (const each of does) if (each) counts.set(each, (counts.get(each) || 0) + 1);
      const all = [...counts].sort((a, b) => b[1] - a[1]).map(([name, number]) => `${name} ${number}`);
      find(".counts").textContent = pattern ? `Layer and head, and how much of its attention goes to: ${pattern.name}.` : all.length ? `${all.join(" · ")}.` : "";
      markHead();
    };
    const markHead = () => {
      for (const button of heads.querySelectorAll("button")) {
        const here = Number(button.dataset.head) === state.head;
        button.setAttribute("aria-checked", here);
        button.tabIndex = here ? 0 : -1;
      }
    };

    const drawStrips = () => {
      const { queries, keys, crosses } = stack();
      const sides = crosses ? { keys, queries } : { queries };
      strips.keys.hidden = !crosses;
      strips.keys.dataset.name = "source"; strips.queries.dataset.name = crosses ? "target" : "";
      strips.keys.setAttribute("aria-label", "Tokens of the source");
      strips.queries.setAttribute("aria-label", crosses ? "Tokens of the target" : "Tokens of the text");
      find(".direction").hidden = crosses;
      find(".focus").classList.toggle("many", keys.length > 36);
      for (const [side, tokens] of Object.entries(sides)) {
        strips[side].replaceChildren(...tokens.map((token, index) => {
          const button = document.createElement("button");
          button.type = "button"; button.textContent = shown(token); button.tabIndex = index ? -1 : 0;
          button.dataset.index = index; button.classList.toggle("special", special(token));
          if (!button.textContent.trim()) button.setAttribute("aria-label", "space");
          return button;
        }));
      }
    };
    const same = (a, b) => a && b && a.side === b.side && a.index === b.index;
    const looked = () => state.pointed || state.pinned;

    // Of the token that is looked at: the weights that it gives, or those that it gets.
    const weights = (at) => {
      const { queries, keys } = stack();
      return at.side === "queries" && (stack().crosses || state.direction === "from")
        ? { side: stack().crosses ? "keys" : "queries", values: keys.map((_, key) => weight(state.head, at.index, key)), gives: true }
        : { side: "queries", values: queries.map((_, query) => weight(state.head, query, at.index)), gives: false };
    };
    const drawWeights = () => {
      const at = looked(), found = at && weights(at);
      for (const [side, strip] of Object.entries(strips))
        [...strip.children].forEach((button, index) => {
          const value = found && found.side === side ? found.values[index] : 0;
          button.style.setProperty("--weight", value ** 0.6);
          button.classList.toggle("lit", value > 0.05);
          button.classList.toggle("at", Boolean(same(at, { side, index })));
          button.setAttribute("aria-pressed", Boolean(same(state.pinned, { side, index })));
        });
      said.replaceChildren();
      if (!at) return said.append("No token is chosen.");
      const bold = document.createElement("b");
      bold.textContent = named(stack()[at.side][at.index]);
      const others = stack()[found.side];
      const best = [...found.values.keys()].sort((a, b) => found.values[b] - found.values[a]).slice(0, 4).filter((i) => found.values[i] >= 0.01);
      const list = best.map((i) => `${named(others[i])} ${percent(found.values[i])}`).join(", ") || "nothing above 1%";
      said.append(bold, found.gives ? " attends to " : " is attended by ", list, ".");
    };

    const drawMap = () => {
      const { queries, keys } = stack(), context = map.getContext("2d"), ratio = window.devicePixelRatio || 1;
      const style = getComputedStyle(root), font = style.getPropertyValue("--sans"), width = Math.floor(map.parentElement.clientWidth);
      const widest = (tokens) => Math.min(96, Math.max(...tokens.map((token) => context.measureText(shown(token).trim()).width)) + 8);
      let [left, top, wide, high] = [0, 0, 0, 0], labeled = { rows: true, columns: true };
      context.font = `${LETTERS}px ${font}`;
      // Labels are left out where they would be too small to be read, which makes room for the map.
      for (let pass = 0; pass < 2; pass++) {
        left = labeled.rows ? Math.ceil(widest(queries)) : 1; top = labeled.columns ? Math.ceil(widest(keys)) : 1;
        wide = Math.min(34, (width - left - 2) / keys.length); high = Math.min(34, (Math.max(420, width) - top) / queries.length);
        if (!stack().crosses) wide = high = Math.min(wide, high);
        labeled = { rows: labeled.rows && high >= 8.5, columns: labeled.columns && wide >= 8.5 };
      }
      const all = [left + wide * keys.length + 2, top + high * queries.length + 2];
      map.style.width = `${all[0]}px`; map.style.height = `${all[1]}px`;
      map.width = Math.round(all[0] * ratio); map.height = Math.round(all[1] * ratio);
      context.scale(ratio, ratio);
      const small = document.createElement("canvas"), image = picture(state.head);
      small.width = image.width; small.height = image.height;
      small.getContext("2d").putImageData(image, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(small, left, top, wide * keys.length, high * queries.length);
      context.strokeStyle = style.getPropertyValue("--line");
      context.strokeRect(left - 0.5, top - 0.5, wide * keys.length + 1, high * queries.length + 1);
      const at = looked(), row = at && weights(at).gives;
      context.textBaseline = "middle";
      const write = (token, lit, angle, cell, x, y) => {
        context.save();
        context.font = `${Math.min(LETTERS, cell + 0.5)}px ${font}`;
        context.fillStyle = style.getPropertyValue(lit ? "--ink" : "--soft");
        context.translate(x, y); context.rotate(angle);
        context.textAlign = angle ? "left" : "right";
        let text = shown(token).trim() || shown(token);
        while (text.length > 1 && context.measureText(text).width > 90) text = `${text.slice(0, -2)}…`;
        context.fillText(text, 0, 0);
        context.restore();
      };
      if (labeled.rows) queries.forEach((token, i) => write(token, at && row && at.index === i, 0, high, left - 6, top + high * (i + 0.5)));
      if (labeled.columns) keys.forEach((token, i) => write(token, at && !row && at.index === i, -Math.PI / 2, wide, left + wide * (i + 0.5), top - 6));
      if (at) {
        context.strokeStyle = style.getPropertyValue("--c1"); context.lineWidth = 1.5;
        if (row) context.strokeRect(left, top + high * at.index, wide * keys.length, high);
        else context.strokeRect(left + wide * at.index, top, wide, high * queries.length);
      }
      size = { left, top, wide, high, width };
      map.setAttribute("aria-label", `Map of ${title(state.head)}: a row for each token that attends, a column for each that is attended to`);
    };
    const drawHead = () => {
      const { patterns, does } = stack(), own = patterns.find((each) => each.name === does[state.head]);
      find(".head").textContent = title(state.head);
      find(".does").textContent = own
        ? `${own.name}: ${percent(own.scores[state.head])}${own.chance < 1 ? `, where chance is ${percent(own.chance)}` : " of the entropy of equal weights"}`
        : stack().patterns.length ? "no clear pattern" : "";
      markHead(); drawView(); drawWeights();
    };

    // Lines from the tokens that attend, at the left, to those that are attended to; the darker, the more.
    const FAINT = 0.03, ROW = 21;
    const drawLines = () => {
      const { queries, keys, heads: count } = stack(), width = Math.floor(lines.parentElement.clientWidth);
      const room = Math.min(130, Math.max(60, width * 0.26)), high = ROW * Math.max(queries.length, keys.length) + 8;
      const layer = Math.floor(state.head / count) * count;
      const drawn = state.view === "layer" ? Array.from({ length: count }, (_, number) => layer + number) : [state.head];
      const y = (index) => ROW * (index + 0.5) + 4, parts = [];
      for (const head of drawn) {
        const stroke = drawn.length > 1 ? `var(--c${(head - layer) % 8})` : "var(--heat)";
        queries.forEach((_, query) => keys.forEach((_, key) => {
          const value = weight(head, query, key);
          if (value < FAINT) return;
          const beside = drawn.length > 1 ? ((head - layer + 0.5) / count - 0.5) * 10 : 0;
          const ends = { x1: room + 6, y1: y(query) + beside, x2: width - room - 6, y2: y(key) + beside };
          parts.push(shape("line", { ...ends, "data-head": head, "data-query": query, "data-key": key, "data-share": value.toFixed(3), style: `stroke: ${stroke}; --share: ${(value ** 0.6).toFixed(3)}` }));
        }));
      }
      const names = (tokens, side, x, anchor) => tokens.forEach((token, index) => {
        const text = shown(token).trim() || shown(token), longest = Math.floor(room / 7.5);
        parts.push(shape("text", { x, y: y(index) + 4, "text-anchor": anchor, "data-side": side, "data-index": index }, text.length > longest ? `${text.slice(0, longest - 1)}…` : text));
      });
      names(queries, "queries", room, "end"); names(keys, "keys", width - room, "start");
      lines.setAttribute("viewBox", `0 0 ${width} ${high}`);
      lines.style.height = `${high}px`;
      lines.setAttribute("aria-label", `Lines of ${drawn.length > 1 ? `all heads of layer ${stack().numbers[layer / count]}` : title(state.head)}: from each token that attends, at the left, to those that it attends to`);
      lines.replaceChildren(...parts);
      drawnLines = { width };
      find(".legend").replaceChildren(...(drawn.length > 1 ? drawn.map((head) => {
        const name = document.createElement("span");
        name.style.setProperty("--key", `var(--c${(head - layer) % 8})`); name.textContent = `head ${head - layer + 1}`;
        return name;
      }) : []));
      markLines();
    };
    const markLines = () => {
      const at = looked(), gives = at && weights(at).gives;
      for (const line of lines.querySelectorAll("line"))
        line.classList.toggle("away", Boolean(at) && Number(gives ? line.dataset.query : line.dataset.key) !== at.index);
      for (const text of lines.querySelectorAll("text"))
        text.classList.toggle("at", Boolean(at) && Number(text.dataset.index) === at.index && text.dataset.side === (gives ? "queries" : "keys"));
    };
    const drawView = () => {
      map.hidden = state.view !== "map"; lines.toggleAttribute("hidden", !map.hidden);  // an SVG element has no property of that name
      find(".legend").replaceChildren();
      if (map.hidden) drawLines(); else drawMap();
    };
    const look = () => { if (state.view === "map") drawMap(); else markLines(); drawWeights(); };
    const point = (at) => { state.pointed = at; look(); };
    const pin = (at) => { state.pinned = same(state.pinned, at) ? null : at; state.pointed = null; look(); };

    const begin = () => {
      const none = new Option("layer", "");
      sort.replaceChildren(none, ...stack().patterns.map((each) => new Option(each.name, each.name)));
      if (![...sort.options].some((option) => option.value === state.sort)) state.sort = "";
      sort.value = state.sort;
      sort.parentElement.hidden = stack().patterns.length === 0;
      state.head = telling();
      // A token in the middle, so that there is something to see at once.
      state.pinned = { side: "queries", index: Math.floor((stack().queries.length - 1) * 0.6) }; state.pointed = null;
      drawStrips(); drawHeads(); drawHead();
    };

    const on = (element, name, action) => element.addEventListener(name, action);
    for (const input of root.querySelectorAll(".stacks input"))
      on(input, "change", () => { state.stack = Number(input.value); begin(); });
    for (const input of root.querySelectorAll(".direction input"))
      on(input, "change", () => { state.direction = input.value; look(); });
    for (const input of root.querySelectorAll(".view input"))
      on(input, "change", () => { state.view = input.value; drawView(); drawWeights(); });
    const without = find(".without input");
    on(without, "change", () => { state.without = without.checked; find(".without-note").hidden = !state.without; drawHeads(); drawHead(); });
    on(sort, "change", () => { state.sort = sort.value; state.head = order()[0]; drawHeads(); drawHead(); });

    // The arrow keys move within a group, of which one button is in the order of the tab key.
    const arrows = (event, container, columns) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return null;
      event.preventDefault();
      const buttons = [...container.querySelectorAll("button")], here = buttons.indexOf(document.activeElement);
      const next = buttons[Math.min(buttons.length - 1, Math.max(0, here + step))];
      for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
      next.focus();
      return next;
    };
    const choose = (button) => { state.head = Number(button.dataset.head); drawHead(); };
    on(heads, "click", (event) => { const button = event.target.closest("button"); if (button) choose(button); });
    on(heads, "keydown", (event) => {
      const tops = [...heads.querySelectorAll("button")].map((button) => button.offsetTop);
      const next = arrows(event, heads, Math.max(1, tops.filter((top) => top === tops[0]).length));
      if (next) choose(next);
    });
    for (const [side, strip] of Object.entries(strips)) {
      const token = (event) => { const button = event.target.closest("button"); return button && { side, index: Number(button.dataset.index) }; };
      on(strip, "pointerover", (event) => { const at = token(event); if (at && event.pointerType === "mouse") point(at); });
      on(strip, "pointerleave", () => point(null));
      on(strip, "focusin", (event) => { if (event.target.matches(":focus-visible")) point(token(event)); });
      on(strip, "focusout", () => point(null));
      on(strip, "click", (event) => { const at = token(event); if (at) pin(at); });
      on(strip, "keydown", (event) => { if (event.key === "Escape") { state.pinned = null; point(null); } else arrows(event, strip, 1); });
    }
    const under = (event) => {
      const box = map.getBoundingClientRect(), { left, top, wide, high } = size;
      const row = Math.floor((event.clientY - box.top - top) / high), column = Math.floor((event.clientX - box.left - left) / wide);
      const { queries, keys, crosses } = stack();
      if (row >= 0 && row < queries.length && (column < keys.length) && (crosses || state.direction === "from")) return { side: "queries", index: row };
      return !crosses && column >= 0 && column < keys.length && row < queries.length ? { side: "queries", index: column } : null;
    };
    on(map, "pointermove", (event) => { if (event.pointerType === "mouse") point(under(event)); });
    on(map, "pointerleave", () => point(null));
    on(map, "click", (event) => { const at = under(event); if (at) pin(at); });
    const token = (event) => { const text = event.target.closest("text"); return text && { side: text.dataset.side, index: Number(text.dataset.index) }; };
    on(lines, "pointerover", (event) => { if (event.pointerType === "mouse") point(token(event)); });
    on(lines, "pointerleave", () => point(null));
    on(lines, "click", (event) => { const at = token(event); if (at) pin(at); });

    const show = () => {
      for (const part of root.children) if (part.tagName === "DIV") part.hidden = false;
      readColors(); begin();
    };
    if (stacks[0].weights) show();
    // A page that computes attention itself sends stacks, whose weights are bytes; and the head and the token to look at.
    on(root, "stacks", ({ detail }) => {
      stacks = detail.stacks;
      state.stack = detail.stack ?? state.stack;
      for (const [index, input] of root.querySelectorAll(".stacks input").entries()) input.checked = index === state.stack;
      show();
      state.head = detail.head; state.pinned = { side: "queries", index: detail.query };
      drawHead();
    });
    new ResizeObserver(() => {
      const drawn = state.view === "map" ? size : drawnLines;
      if (drawn && Math.floor(map.parentElement.clientWidth) !== drawn.width) drawView();
    }).observe(map.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (size) { readColors(); drawHeads(); drawHead(); } });
  };
  document.querySelectorAll("section.attention").forEach(explore);
})();
