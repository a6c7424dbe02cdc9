// The model as a vertical stack: what each block adds to the residual stream of a token, and what it would answer.

const overview = (column, { title, side, reading, token, model, stack, guess, gives, chosen, choose }) => {
  const layers = Array.from({ length: reading.layers }, (_, layer) => layer);
  const written = (layer, part) => length(reading.row(token, (record) => record.layers[layer][part].written));
  const parts = ["attention", ...(stack.cross ? ["cross"] : []), "feedForward"];
  const names = { attention: "attention", cross: "source", feedForward: "feed-forward" };
  const sizes = layers.map((layer) => parts.map((part) => written(layer, part))), largest = Math.max(...sizes.flat(), 1e-9);
  const answer = (state) => {
    const found = guess && guess(state);
    return found ? element("span", { class: "guess" }, element("b", {}, `“${found.name}”`), ` ${found.text}`) : null;
  };
  const row = (part, name, middle, last) =>
    element("button", { type: "button", class: `step ${part.kind}`, "aria-pressed": String(chosen.kind === part.kind && chosen.layer === part.layer && chosen.side === part.side), onclick: () => choose(part) },
      element("span", { class: "step-name" }, name), middle, last);
  const rows = [
    row({ side, kind: "embedding" }, "Embedding", element("span", { class: "what" }, `${quoted(reading.tokens[token])} as ${model.d_model} numbers`), null),
    ...layers.map((layer) =>
      row({ side, kind: "block", layer }, `Block ${layer + 1}`,
        element("span", { class: "adds", "aria-label": parts.map((part, i) => `${names[part]} adds ${decimals(sizes[layer][i])}`).join(", ") },
          parts.map((part, i) => element("i", { class: part, style: { "--share": `${(100 * sizes[layer][i]) / largest}%` } }))),
        answer(reading.state(token, (record) => record.layers[layer].output)))),
  ];
  rows.push(row({ side, kind: "output" }, side === "source" ? "To the decoder" : "Output",
    element("span", { class: "what" }, side === "source" ? "read by its cross-attention" : gives), null));
  column.replaceChildren(
    element("h3", {}, title),
    element("p", { class: "aside keys-of-bars" }, parts.map((part) => element("span", { class: `key-of ${part}` }, names[part])), guess ? element("span", { class: "key-of" }, "→ its guess so far") : null),
    element("div", { class: "steps", role: "group", "aria-label": title }, rows));
};
