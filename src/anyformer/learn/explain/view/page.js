// The page: what is typed, what the model does with it, and what it writes.

const TOP_K = [1, 2, 3, 5, 10, 20, 50, 100, null];
const query = (selector) => document.querySelector(selector);

// Base64 in pieces, so that there is never a second string of the whole.
const fromBase64 = (text) => {
  const bytes = new Uint8Array((text.length / 4) * 3 - (text.match(/=*$/)[0].length)), step = 1 << 20;
  for (let begin = 0, place = 0; begin < text.length; begin += step) {
    const part = atob(text.slice(begin, begin + step));
    for (let i = 0; i < part.length; i++) bytes[place++] = part.charCodeAt(i);
  }
  return bytes;
};

const open = () => {
  const session = new Session(JSON.parse(query("#data").textContent), fromBase64(query("#weights").textContent.trim()));
  query("#weights").remove();
  const { tokenizer, head, data: { model: description } } = session, spell = (id) => tokenizer.spell(id);
  const textArea = query("#text"), sourceArea = query("#source"), temperatureSlider = query("#temperature"), topKSlider = query("#top-k");
  const say = (text) => { query(".status").textContent = text; };
  const temperature = () => Number(temperatureSlider?.value ?? 1), topK = () => TOP_K[Number(topKSlider?.value ?? 8)];

  // What is looked at: a token of each side, a part of the model, and whether a text is being written.
  const at = { text: 0, source: 0 };
  let chosen = { side: "text", kind: "output" }, readings = {}, running = false;
  const stackOf = (side) => (side === "source" ? description.stacks.encoder : session.textStack);
  const sides = () => Object.keys(readings);

  const settle = () => {
    readings = { ...(session.encoded && { source: new Reading([session.encoded], spell) }), text: new Reading(session.records, spell) };
    for (const side of sides()) at[side] = Math.min(at[side], readings[side].tokens.length - 1);
  };
  const read = () => {
    const begun = performance.now();
    try {
      session.read(textArea.value, sourceArea?.value);
    } catch (error) {
      return say(error.message);
    }
    settle();
    at.text = session.ids.length - 1;
    const mask = tokenizer.description.mask;
    if (session.fills && mask && session.ids.includes(mask.id)) at.text = session.ids.indexOf(mask.id);
    for (const section of ["#model", "#maps"]) query(section).hidden = false;
    draw(); drawMaps();
    const count = session.ids.length + (readings.source && !session.readsTwice ? readings.source.tokens.length : 0);
    say(`${count} tokens read in ${Math.round(performance.now() - begun)} ms.${session.cut ? ` The page reads ${session.limit} at most: the rest was left out.` : ""}`);
  };

  const guessBars = (state, count) =>
    session.guesses(state, count)?.map(({ token, share }) => ({ name: visible(session.name(token)), size: share, text: share < 0 || share > 1 ? decimals(share) : percent(share), tone: "guess" }));
  const showMaps = (part, layer, index) => {
    const stack = part === "cross" ? 2 : session.hasSource && chosen.side === "text" ? 1 : 0;
    drawMaps(stack, layer * stackOf(chosen.side).heads + index);
    query("#maps").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  };

  const outputDetails = () => {
    const { side } = chosen, reading = readings[side], token = at[side], state = reading.state(token, (record) => record.output);
    if (side === "source") return [lesson("source"), element("div", { class: "stripes" }, stripe(state.numbers, `${state.columns} numbers`))];
    const scores = session.scores(state);
    if (!scores) return [lesson("none"), element("div", { class: "stripes" }, stripe(state.numbers, `${state.columns} numbers`))];
    const last = token === reading.tokens.length - 1, plain = temperature() === 0;
    const rows = session.answers(scores, 10, session.writes && !plain ? temperature() : 1, session.writes && !plain ? topK() : null)
      .filter(({ share }) => share !== 0)
      .map(({ token: value, share }) => ({ name: visible(session.name(value)), size: share, text: head.problem === "regression" ? decimals(share) : percent(share), value, tone: "guess" }));
    if (head.labels) return [lesson("labels"), equation(head.problem === "multi_label_classification" ? "sigmoid(W x + b)" : head.problem === "regression" ? "W x + b" : "softmax(W x + b)"), bars(rows, { label: "Labels" })];
    if (session.fills) {
      const masked = session.ids[token] === tokenizer.description.mask?.id;
      return [
        lesson("language_model"),
        equation("softmax(head(x))"),
        caption(masked ? "What may stand at the mask; choose one to put it there." : `What the model would put in the place of ${quoted(reading.tokens[token])}.`),
        bars(rows, { choose: masked ? fill : null, label: "Tokens for this place" }),
      ];
    }
    return [
      lesson("language_model"),
      equation(plain ? "softmax(logits)" : `softmax(logits / ${temperature()})`),
      caption(`${last ? "What may come next" : `What the model expected after ${quoted(reading.tokens[token])}`}: ${plain ? "temperature 0 takes the first of them." : topK() === null ? "one is drawn." : `one of the first ${topK()} is drawn.`}${last ? " Choose one to write it." : ""}`),
      bars(rows, { choose: last && !session.isFull && !session.hasEnded ? (value) => { write(value); drawMaps(); } : null, label: "Next tokens" }),
    ];
  };

  const strip = (side) => {
    const place = query(side === "source" ? "#source-tokens" : "#text-tokens"), name = side === "source" ? "source" : session.hasSource ? "target" : "tokens";
    place.hidden = false;
    place.replaceChildren(element("span", { class: "strip-name" }, name), element("div", { class: "strip", role: "group", "aria-label": name }, readings[side].tokens.map((token, i) =>
      element("button", { type: "button", "aria-pressed": String(i === at[side]), tabindex: i === at[side] ? "0" : "-1", title: `token ${readings[side].ids[i]}`, onclick: () => chooseToken(side, i) }, visible(token)))));
  };
  const chooseToken = (side, token) => {
    at[side] = token;
    if (chosen.side !== side) chosen = { side, kind: "embedding" };
    draw();
    query(side === "source" ? "#source-tokens" : "#text-tokens").querySelector("[aria-pressed=true]").focus({ preventScroll: true });
  };
  const chooseStep = (part) => {
    chosen = part;
    draw();
    if (part.kind === "block") drawMaps();
    query(".step[aria-pressed=true]").focus({ preventScroll: true });
  };

  const draw = () => {
    for (const side of sides()) {
      strip(side);
      let column = query(`#overview .column.${side}`);
      if (!column) query("#overview").append((column = element("div", { class: `column ${side}` })));
      overview(column, {
        title: side === "source" ? "Encoder" : description.stacks.decoder ? "Decoder" : "Encoder", side, reading: readings[side], token: at[side], model: description, stack: stackOf(side), chosen, choose: chooseStep,
        gives: { language_model: "probabilities", none: "hidden states" }[head.kind] ?? (head.problem === "regression" ? "a number" : "labels"),
        guess: side === "text" && head.kind !== "none" ? (state) => { const [best] = guessBars(state, 1); return { name: best.name, text: best.text }; } : null,
      });
    }
    const { side, kind, layer } = chosen, reading = readings[side], token = at[side];
    const seen = { reading, token, layer, model: description, stack: stackOf(side), keys: reading.tokens, sourceKeys: readings.source?.tokens, lookAt: showMaps, guesses: side === "text" && head.kind !== "none" ? guessBars : null };
    const parts = { embedding: () => embeddingDetails(seen), block: () => blockDetails(seen), output: outputDetails };
    const title = { embedding: "Embedding", block: `Block ${layer + 1}`, output: "Output" }[kind];
    query("#details").replaceChildren(element("h3", {}, `${title}${kind === "output" ? "" : ` · ${quoted(reading.tokens[token])}`}`), ...parts[kind]());
  };

  // The maps of all heads, with the token that is looked at. `stack` is one of Encoder, Decoder, Cross.
  const drawMaps = (stack, map) => {
    const found = sides().map((side) => [side, "attention", stackOf(side), readings[side].tokens]);
    if (readings.source) found.push(["text", "cross", session.textStack, readings.source.tokens]);
    const shown = stack ?? (session.hasSource && chosen.side === "text" ? 1 : 0), all = found.map(([side, part, { layers, heads }, keys], i) => ({
      name: part, title: i === 2 ? "Cross" : side, layers, numbers: Array.from({ length: layers }, (_, layer) => layer + 1), heads, crosses: part === "cross",
      queries: readings[side].tokens, keys, weights: readings[side].maps(part, heads, keys.length), patterns: [], does: Array(layers * heads).fill(""),
    }));
    const here = map ?? (chosen.kind === "block" ? chosen.layer * all[shown].heads : 0), side = found[shown][0];
    query("section.attention").dispatchEvent(new CustomEvent("stacks", { detail: { stacks: all, stack: shown, head: Math.min(here, all[shown].does.length - 1), query: at[side] } }));
  };

  const write = (token) => {
    session.write(token);
    settle();
    at.text = session.ids.length - 1;
    textArea.value = session.text;
    chosen = { side: "text", kind: chosen.side === "text" ? chosen.kind : "output", layer: chosen.layer };
    draw();
  };
  const fill = (token) => {
    const { text } = tokenizer.description.mask, before = session.ids.slice(0, at.text).filter((id) => id === tokenizer.description.mask.id).length;
    const parts = textArea.value.split(text);
    textArea.value = `${parts.slice(0, before + 1).join(text)}${session.name(token).replace(/^##/, "").trim()}${parts.slice(before + 1).map((part, i) => (i ? text : "") + part).join("")}`;
    read();
  };

  // Writes tokens one after the other, each drawn before the next is computed.
  const more = async (count) => {
    running = true;
    query("#more").textContent = "Stop";
    const begun = performance.now();
    let written = 0;
    for (; written < count && running && !session.isFull && !session.hasEnded; written++) {
      write(session.next(temperature(), topK(), Math.random()));
      await new Promise((resolve) => { setTimeout(resolve, 0); });
    }
    running = false;
    query("#more").textContent = "Write 20";
    drawMaps();
    const seconds = (performance.now() - begun) / 1000;
    say(session.hasEnded ? "The model has ended its text." : session.isFull ? `The page reads ${session.limit} tokens at most: shorten the text.` : `${written} ${written === 1 ? "token" : "tokens"} written, ${Math.round(written / seconds)} a second.`);
  };

  let waiting;
  const readSoon = () => { running = false; clearTimeout(waiting); waiting = setTimeout(read, 200); };
  for (const area of [textArea, sourceArea]) area?.addEventListener("input", readSoon);
  if (session.writes) {
    query("#next").addEventListener("click", () => { if (!running) more(1); });
    query("#more").addEventListener("click", () => { if (running) running = false; else more(20); });
    const slid = () => {
      query("output[for=temperature]").textContent = temperature() === 0 ? "0, greedy" : temperature().toFixed(1);
      query("output[for=top-k]").textContent = topK() === null ? "all" : topK();
      if (readings.text) draw();
    };
    for (const slider of [temperatureSlider, topKSlider]) slider.addEventListener("input", slid);
    slid();
  }
  query("#lesson-of-tokens").textContent = LESSONS.tokens;
  // Arrow keys move among tokens and among the parts of the model.
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const group = step && event.target.closest?.(".tokens .strip, .steps");
    if (!group) return;
    event.preventDefault();
    const buttons = [...group.querySelectorAll("button")];
    buttons[Math.max(0, Math.min(buttons.length - 1, buttons.indexOf(event.target) + step))].click();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (readings.text) draw(); });
  // For the browser's console, and for tests.
  globalThis.session = session;
  read();
  // An encoder-decoder begins with what it makes of the source, for a target of one token shows little.
  if (session.writes && session.hasSource && readings.text) more(8);
};

setTimeout(open, 0);
