// What one part of the model does with one token: the equation, and its numbers.

const POSITIONS_IN_WORDS = {
  none: "Nothing says where a token stands: a decoder finds out from what it may see.",
  sinusoidal: "Sines and cosines of the token's place are added, of a different wavelength in each dimension.",
  learned: "A learned vector for the token's place is added.",
  rotary: "The token's place is not added: it turns queries and keys in every block (RoPE).",
  relative: "The token's place is not added: every distance between two tokens has a learned bias on the scores.",
  disentangled: "The token's place is not added: every distance between two tokens has a query and a key, which are scored as well.",
};
const ACTIVATIONS_IN_WORDS = { relu: "ReLU", relu_squared: "ReLU²", gelu: "GELU", gelu_tanh: "GELU", quick_gelu: "GELU", silu: "SiLU", tanh: "tanh" };

const equation = (...lines) => element("p", { class: "equation" }, lines.flatMap((line, i) => (i ? [element("br"), line] : [line])));
// What a part is for, in a line.
const LESSONS = {
  tokens: "The tokenizer cuts the text into pieces of its vocabulary; all that the model sees of them are their numbers.",
  embedding: "Every token begins as a learned vector, its row of a table: tokens that are used alike get vectors that are alike.",
  stream: "A block reads the residual stream and writes by adding to it, so that later blocks find what earlier ones wrote.",
  normed: "A block writes by adding to the residual stream, and the sum is normalized before the next one reads it.",
  attention: "Attention carries information from token to token: queries look for keys that match, and bring back the values there.",
  cross: "Cross-attention carries information from the source into the target: its keys and values are the encoder's output.",
  feedForward: "The feed-forward looks at each token by itself: a neuron answers to a pattern, and adds its vector to the stream.",
  experts: "A router chooses a few of many networks for each token, so the model knows more than it computes: only those are computed, and weighed by the router's probabilities.",
  lens: "The head, put on the stream before its end, shows how the answer forms from block to block.",
  language_model: "The head compares the last vector with one for each token of the vocabulary: the better they match, the likelier the token.",
  labels: "The head weighs the numbers of the last vector for each label: the larger the sum, the likelier the label.",
  none: "Without a head the vectors themselves are the answer: texts that mean alike are to have vectors that are alike.",
  source: "The encoder's output is a vector for each token of the source, which every block of the decoder reads.",
};
const lesson = (name) => element("p", { class: "lesson" }, LESSONS[name]);
const caption = (text) => element("p", { class: "caption" }, text);
const cosine = (a, b) => a.reduce((sum, number, i) => sum + number * b[i], 0) / (length(a) * length(b) || 1);

const embeddingDetails = ({ reading, token, stack, model }) => {
  const of = (matrix) => reading.row(token, matrix), first = reading.records[0];
  const addends = [
    ["token", of((record) => record.token)],
    ["n-grams", first.ngrams && of((record) => record.ngrams)],
    ["segment", first.segment],
    ["position", first.position && of((record) => record.position)],
  ].filter(([, vector]) => vector);
  const sum = of((record) => record.embedded), scaled = model.embedding_scale === 1 ? "" : ` · √${model.d_model}`;
  const added = addends.map(([name]) => (name === "token" ? `E[${reading.ids[token]}]${scaled}` : name)).join(" + ");
  return [
    lesson("embedding"),
    equation(stack.projects ? `x = W (${added}) + b` : `x = ${added}`),
    caption(`${quoted(reading.tokens[token])} is token ${reading.ids[token]} of the vocabulary: a row of the table E. ${POSITIONS_IN_WORDS[stack.position.kind]}`),
    element("dl", { class: "stripes" }, [...addends, ["x", sum]].flatMap(([name, vector]) => [
      element("dt", {}, name, element("small", {}, ` length ${decimals(length(vector))}`)),
      element("dd", {}, stripe(vector, `${name}: ${vector.length} numbers of length ${decimals(length(vector))}`)),
    ])),
    caption("Each cell is one number: orange above zero, blue below."),
  ];
};

// What each head of a layer reads: a row for a head, a cell for a token.
const headsOfToken = ({ reading, token, stack, layer }, part, keys, lookAt) => {
  const rows = Array.from({ length: stack.heads }, (_, head) => {
    const weights = reading.weights(layer, part, stack.heads, head, token), best = likeliest(weights);
    return { name: `head ${head + 1}`, size: weights[best], text: `${visible(keys[best])} ${percent(weights[best])}`, value: head, tone: part };
  });
  return bars(rows, { choose: (head) => lookAt(part, layer, head), label: "What each head attends to most" });
};

// What the router of a layer says of a token, and which experts it chooses for each token up to there.
const expertsOfToken = ({ reading, token, stack, layer }) => {
  const { count, used, scores, correction } = stack.feed_forwards[layer].experts, chosen = reading.chosen(token, layer), numbers = chosen.map(({ expert }) => expert);
  const shares = reading.row(token, (record) => record.layers[layer].feedForward.probabilities);
  const rows = top(shares, Math.min(count, used + 3)).map(({ token: expert, share }) =>
    ({ name: `expert ${expert + 1}`, size: share, text: percent(share), tone: numbers.includes(expert) ? "feedForward" : "" }));
  const weights = (other) => {
    const row = new Float32Array(count);
    reading.chosen(other, layer).forEach(({ expert, weight }) => { row[expert] = weight; });
    return row;
  };
  const shown = reading.ids.map((_, other) => other).filter((other) => Math.abs(other - token) < 8);
  return [
    element("h4", {}, "Router"),
    lesson("experts"),
    equation(`p = ${scores}(router(x))`),
    ...(correction ? [caption("They are chosen by p and a correction, which keeps all of them busy, and weighed by p alone.")] : []),
    caption(`${chosen.length} of ${count} experts compute ${quoted(reading.tokens[token])}: ${chosen.map(({ expert, weight }) => `${expert + 1} with the weight ${decimals(weight)}`).join(", ")}.`),
    bars(rows, { label: "The likeliest experts" }),
    caption(`The choices for the tokens around it, a cell for each of the experts 1 to ${count}:`),
    element("dl", { class: "stripes choices" }, shown.flatMap((other) => [
      element("dt", {}, visible(reading.tokens[other]), element("small", {}, ` ${reading.chosen(other, layer).map(({ expert }) => expert + 1).join(", ")}`)),
      element("dd", {}, stripe(weights(other), `Experts of ${visible(reading.tokens[other])}`)),
    ])),
  ];
};

const blockDetails = (seen) => {
  const { reading, token, stack, layer, model, keys, sourceKeys, lookAt, guesses } = seen;
  const of = (name) => reading.row(token, (record) => record.layers[layer][name].written);
  const entry = (name) => reading.row(token, (record) => record.layers[layer][name]);
  const names = { attention: "attention", cross: "cross-attention", feedForward: "feed-forward" };
  const parts = ["attention", ...(stack.cross ? ["cross"] : []), "feedForward"];
  const x = entry("input"), norm = model.norm.kind === "rms" ? "RMSNorm" : "LayerNorm";
  const isPost = stack.placement === "post";
  const branches = { branch: (name) => `${norm}(${name}(x))`, sandwich: (name) => `${norm}(${name}(${norm}(x)))` };
  const branch = branches[stack.placement] ?? ((name) => `${name}(${norm}(x))`);
  const wrapped = (name) => (isPost ? `x ← ${norm}(x + ${name}(x))` : `x ← x + ${branch(name)}`);
  const added = parts.map((name) => ({ attention: "attention", cross: "cross", feedForward: "feed-forward" })[name]);
  const equations = stack.placement.startsWith("parallel") ? [`x ← x + ${added.map(branch).join(" + ")}`] : added.map(wrapped);
  const network = stack.feed_forwards[layer];
  const inner = reading.row(token, (record) => record.layers[layer].feedForward.inner);
  const nameOf = (neuron) => {
    if (!network.experts) return `neuron ${neuron + 1}`;
    const { used } = network.experts, expert = Math.floor(neuron / network.width);
    return expert < used ? `${reading.chosen(token, layer)[expert].expert + 1}: ${(neuron % network.width) + 1}` : `shared: ${neuron - used * network.width + 1}`;
  };
  const neurons = top(inner.map(Math.abs), 6).map(({ token: neuron }) => ({ name: nameOf(neuron), size: inner[neuron], text: decimals(inner[neuron]), tone: "feedForward" }));
  const active = inner.filter((number) => Math.abs(number) > 0.1).length / inner.length;
  const window = stack.windows[layer];
  const act = ACTIVATIONS_IN_WORDS[network.activation], gated = network.limit === null ? `${act}(gate(x)) ⊙ ` : `${act}(min(gate(x), c)) ⊙ `;
  const up = `${network.limit === null ? "up(x)" : "clip(up(x), c)"}${network.up_offset ? ` + ${network.up_offset}` : ""}`;
  return [
    equation(...equations),
    element("h4", {}, "Residual stream"),
    lesson(isPost ? "normed" : "stream"),
    caption("Lengths of the vectors:"),
    bars([
      { name: "x", size: length(x), text: decimals(length(x)), tone: "stream" },
      ...parts.map((name) => ({ name: `+ ${names[name]}`, size: length(of(name)), text: decimals(length(of(name))), tone: name })),
      { name: "x after", size: length(entry("output")), text: decimals(length(entry("output"))), tone: "stream" },
    ], { label: "Lengths of the residual stream and of what is added" }),
    caption(`The stream turns by ${Math.round((Math.acos(Math.min(1, cosine(x, entry("output")))) * 180) / Math.PI)}°.`),
    element("h4", {}, "Attention"),
    lesson("attention"),
    equation(`softmax(${stack.softcap ? "c · tanh(q·k · scale / c)" : "q·k · scale"}${stack.sinks ? ", sink" : ""}) v`),
    caption(`${stack.causal ? "Each token reads those before it and itself" : "Each token reads all others"}${window === null ? "" : `, ${window} of them at most`}; here the token that each of ${stack.heads} heads reads most.${stack.kv_heads < stack.heads ? ` ${stack.heads / stack.kv_heads} heads share keys and values.` : ""}${stack.latent ? ` Keys and values of all heads are made of ${stack.latent.rank + stack.latent.rotary_dim} numbers of each token.` : ""}${stack.sinks ? " What a head's sink takes of the attention reads nothing." : ""}`),
    headsOfToken(seen, "attention", keys, lookAt),
    ...(stack.cross ? [element("h4", {}, "Cross-attention"), lesson("cross"), headsOfToken(seen, "cross", sourceKeys, lookAt)] : []),
    ...(network.experts ? expertsOfToken(seen) : []),
    element("h4", {}, network.experts ? `Feed-forward of the chosen experts${network.experts.shared ? " and the shared one" : ""}` : "Feed-forward"),
    lesson("feedForward"),
    equation(`${network.experts ? "Σ p · " : ""}down(${network.gated ? `${gated}${network.up_offset ? `(${up})` : up}` : `${act}(up(x))`})${network.experts?.shared ? " + shared(x)" : ""}`),
    caption(`${inner.length} neurons, of which ${percent(active)} are beyond ±0.1. The strongest${network.experts ? ", as expert: neuron" : ""}:`),
    bars(neurons, { label: "The strongest neurons" }),
    ...(guesses ? [
      element("h4", {}, "Logit lens"),
      lesson("lens"),
      equation("softmax(head(x after))"),
      caption("What the model would answer if it stopped here:"),
      bars(guesses(reading.state(token, (record) => record.layers[layer].output), 5), { label: "What this layer would answer" }),
    ] : []),
  ];
};
