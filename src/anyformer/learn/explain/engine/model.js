// Any transformer: embeddings, an encoder or none, a decoder or none, a head.

// The weights of a page by name: matrices in integers, other tensors in float32.
class Weights {
  constructor(tensors, prefix = "") {
    this.tensors = tensors;
    this.prefix = prefix;
  }

  // `listed` has name and shape of each in the order of their bytes: float32 first, then scales, then integers.
  static unpack(listed, bytes) {
    const tensors = new Map(), whole = listed.filter((each) => each.int8), size = (shape) => shape.reduce((a, b) => a * b, 1);
    let place = 0;
    const floats = (count) => {
      const found = new Float32Array(bytes.buffer, bytes.byteOffset + place, count);
      place += 4 * count;
      return found;
    };
    for (const { name, shape, int8 } of listed)
      if (!int8) tensors.set(name, shape.length === 2 ? new Matrix(...shape, floats(size(shape))) : floats(size(shape)));
    const scales = whole.map(({ shape }) => floats(shape[0]));
    whole.forEach(({ name, shape }, i) => {
      tensors.set(name, new QuantizedMatrix(...shape, new Int8Array(bytes.buffer, bytes.byteOffset + place, size(shape)), scales[i]));
      place += size(shape);
    });
    return new Weights(tensors);
  }

  under(name) { return new Weights(this.tensors, `${this.prefix}${name}.`); }
  has(name) { return this.tensors.has(this.prefix + name); }
  matrix(name) { return this.tensors.get(this.prefix + name); }
  vector(name) { return this.tensors.get(this.prefix + name); }

  linear(name) {
    const weight = this.matrix(`${name}.weight`), bias = this.vector(`${name}.bias`);
    return (x) => linear(x, weight, bias);
  }

  norm(name, { kind, eps }) {
    if (!this.has(`${name}.weight`)) return (x) => x;
    const parts = { weight: this.vector(`${name}.weight`), bias: this.vector(`${name}.bias`), eps };
    return (x) => NORMS[kind](x, parts);
  }
}

// The row of each n-gram of 2, 3, ... tokens up to a token, by a hash in 64 bits (see blocks/ngrams.py).
const ngramRows = (window, rows) => {
  const factor = -7046029254386353131n, wrap = (number) => BigInt.asIntN(64, number), count = BigInt(rows);
  let hashed = BigInt(window[0]);
  return window.slice(1).map((earlier) => {
    hashed = wrap(hashed * factor + BigInt(earlier));
    const found = (wrap(hashed * factor) >> 24n) % count;
    return Number(found < 0n ? found + count : found);
  });
};

class Stack {
  constructor(weights, model, stack) {
    this.model = model;
    this.stack = stack;
    this.segment = weights.has("embedding.segments.weight") ? weights.matrix("embedding.segments.weight").row(0) : null;
    this.ngrams = weights.has("embedding.ngrams.table") ? weights.matrix("embedding.ngrams.table") : null;
    this.norm = weights.norm("embedding.norm", model.norm);
    this.projection = weights.has("embedding.projection.weight") ? weights.linear("embedding.projection") : null;
    const sizes = { ...model, ...stack, table: weights.matrix("position.table.weight"), biases: weights.matrix("position.relative.table.weight"), relative_norm: weights.norm("position.norm", model.norm) };
    [this.position, this.otherPosition] = [stack.position, stack.other_position].map((each) => each && POSITIONS[each.kind](each, sizes));
    const block = (layer) => Math.floor((layer * stack.distinct) / stack.layers); // layers may share their weights
    this.blocks = Array.from({ length: stack.layers }, (_, layer) => new Block(weights.under(`blocks.${block(layer)}`), model, stack, layer));
    this.finalNorm = weights.norm("final_norm", model.norm);
  }

  // An empty cache: the tokens read so far, and their keys and values in each layer.
  cache(sourceKeysValues = []) {
    return { tokens: [], own: this.blocks.map(() => new KeysValues(this.stack)), source: sourceKeysValues };
  }

  // Keys and values that every layer's cross-attention reads from the encoder's output.
  readSource(states) {
    return this.blocks.map((block) => block.cross.offer(states, new KeysValues(this.stack)));
  }

  // Read tokens that go on from those in the cache. Returns a record of what happened, whose matrices have a row for
  // each of them: what was looked up, each layer's input, parts and output, and the output of all.
  forward(tokens, vectors, cache = this.cache()) {
    const start = cache.tokens.length, all = [...cache.tokens, ...tokens];
    const positions = tokens.map((_, i) => start + i), { skipped, causal, windows, position } = this.stack;
    let encoded = positions;
    if (skipped !== null) {
      let count = 0;
      encoded = all.map((token) => (token === skipped ? -1 : count++)).slice(start);
    }
    const record = { tokens, start, token: vectors, ngrams: null, segment: this.segment, position: null, layers: [] };
    let x = vectors;
    if (this.ngrams) {
      record.ngrams = new Matrix(tokens.length, x.columns);
      tokens.forEach((_, i) => {
        const window = Array.from({ length: this.model.ngrams }, (_, back) => (encoded[i] < back ? -1 : all[Math.max(0, start + i - back)]));
        const row = record.ngrams.row(i);
        for (const found of ngramRows(window, this.ngrams.rows)) this.ngrams.row(found).forEach((number, j) => { row[j] += number; });
      });
      x = add(x, record.ngrams);
    }
    if (this.segment) x = new Matrix(x.rows, x.columns, x.numbers.map((number, i) => number + this.segment[i % x.columns]));
    record.position = this.position.embed(encoded);
    if (record.position) x = add(x, record.position);
    x = this.norm(x);
    if (this.projection) x = this.projection(x);
    record.embedded = x;
    const [usual, other] = [this.position, this.otherPosition].map((each) => each && each.rotation(encoded, all.length));
    const bias = position.buckets ? this.position.bias : null;
    const relative = this.position.relative();
    this.blocks.forEach((block, layer) => {
      const reach = windows[layer] ?? Infinity;
      const visible = (query, length) => [Math.max(0, query - reach + 1), causal ? query + 1 : Math.min(length, query + reach)];
      const entry = { input: x }, rotation = this.stack.other_positions[layer] ? other : usual;
      x = block.forward(x, { positions, visible, rotation, bias, relative }, cache.own[layer], cache.source[layer], entry);
      record.layers.push(entry);
    });
    record.output = this.finalNorm(x);
    cache.tokens = all;
    return record;
  }
}

class Model {
  constructor(description, weights) {
    this.description = description;
    const stack = (name) => (description.stacks[name] ? new Stack(weights.under(name), description, description.stacks[name]) : null);
    this.encoder = stack("encoder");
    this.decoder = stack("decoder");
    this.tokenTable = weights.matrix("token_embedding.table.weight");
    this.sourceTable = weights.has("source_embedding.table.weight") ? weights.matrix("source_embedding.table.weight") : this.tokenTable;
    const head = weights.under("head");
    this.transform = head.has("transform.dense.weight") ? head.linear("transform.dense") : null;
    this.transformNorm = head.norm("transform.norm", description.norm);
    this.projection = head.has("projection.weight") ? head.matrix("projection.weight") : this.tokenTable;
    this.bias = head.vector("bias");
    this.pooler = weights.has("pooler.dense.weight") ? weights.linear("pooler.dense") : null;
    this.classifier = head.has("labels.weight") ? head.linear("labels") : null;
  }

  embed(tokens, table) {
    const out = new Matrix(tokens.length, table.columns), { embedding_scale: scale } = this.description;
    tokens.forEach((token, i) => out.row(i).set(scale === 1 ? table.row(token) : table.row(token).map((number) => number * scale)));
    return out;
  }

  // What the encoder of an encoder-decoder reads.
  encode(source) {
    return this.encoder.forward(source, this.embed(source, this.sourceTable));
  }

  // What the decoder reads, or an encoder that stands alone.
  read(tokens, cache) {
    return (this.decoder ?? this.encoder).forward(tokens, this.embed(tokens, this.tokenTable), cache);
  }

  // A cache of the decoder, which has read a source if there is an encoder.
  cache(encoded) {
    return this.decoder.cache(encoded ? this.decoder.readSource(encoded.output) : []);
  }

  // Whether the latest tokens change what earlier ones mean, so that all must be read again: the rotation of a text that
  // is longer than some length, under dynamic scaling and LongRoPE.
  isStale(length) {
    const { settled_length: settled } = this.description;
    return settled !== null && length > settled;
  }

  // Logits over the vocabulary, a row for each hidden state.
  logits(hidden) {
    const { transform, scale, softcap } = this.description.head;
    if (this.transform) hidden = this.transformNorm(activate(this.transform(hidden), transform));
    if (scale !== 1) hidden = new Matrix(hidden.rows, hidden.columns, hidden.numbers.map((number) => number * scale));
    const logits = linear(hidden, this.projection, this.bias);
    if (softcap) logits.numbers.forEach((number, i) => { logits.numbers[i] = softcap * Math.tanh(number / softcap); });
    return logits;
  }

  // The logits that a layer's output would give: the logit lens (nostalgebraist 2020).
  lens(state) {
    return this.logits((this.decoder ?? this.encoder).finalNorm(state));
  }

  // Logits over labels: of the pooled vector of a text, or of every token.
  labels(hidden) {
    const { kind, pooler, transform } = this.description.head;
    let vectors = kind === "token_classification" ? hidden : this.pool(hidden);
    if (this.pooler) vectors = activate(this.pooler(vectors), pooler);
    if (this.transform) vectors = this.transformNorm(activate(this.transform(vectors), transform));
    return this.classifier(vectors);
  }

  // The hidden state of a text's first or last token, or the mean of all.
  pool(hidden) {
    const { pooling } = this.description.head, { rows, columns, numbers } = hidden;
    if (pooling !== "mean") return new Matrix(1, columns, hidden.row(pooling === "first" ? 0 : rows - 1));
    const mean = new Matrix(1, columns);
    numbers.forEach((number, i) => { mean.numbers[i % columns] += number / rows; });
    return mean;
  }
}
