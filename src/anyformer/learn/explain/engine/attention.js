// Multi-head attention: softmax(scale q k^T + bias) v (Vaswani et al. 2017, equation 1).

// Keys and values of all tokens read so far, a row for each.
class KeysValues {
  constructor({ kv_heads, head_dim, value_dim }) {
    this.length = 0;
    this.keys = new Matrix(16, kv_heads * head_dim);
    this.values = new Matrix(16, kv_heads * value_dim);
  }

  append(keys, values) {
    const rows = this.length + keys.rows;
    if (rows > this.keys.rows) {
      const room = Math.max(rows, 2 * this.keys.rows);
      for (const name of ["keys", "values"]) {
        const larger = new Matrix(room, this[name].columns);
        larger.numbers.set(this[name].numbers);
        this[name] = larger;
      }
    }
    this.keys.numbers.set(keys.numbers, this.length * keys.columns);
    this.values.numbers.set(values.numbers, this.length * values.columns);
    this.length = rows;
    return this;
  }
}

class Attention {
  constructor(weights, size, layer, eps) {
    const part = (name) => (weights.has(`${name}.weight`) ? weights.linear(name) : null);
    this.query = part("query"); this.key = part("key"); this.value = part("value"); this.output = part("output");
    const norm = (name) => (weights.has(`${name}.weight`) ? { weight: weights.vector(`${name}.weight`), eps } : null);
    this.queryNorm = norm("query_norm"); this.keyNorm = norm("key_norm");
    this.size = size;
    this.scale = size.scales[layer];
    this.sinks = weights.vector("sinks");
  }

  ask(x, rotation) {
    let queries = this.query(x);
    if (this.queryNorm) queries = rmsNorm(queries, this.queryNorm);
    if (rotation) rotate(queries, this.size.head_dim, rotation);
    return queries;
  }

  // Keys and values that these states offer, added to those of earlier ones.
  offer(states, kept, rotation) {
    let keys = this.key(states);
    if (this.keyNorm) keys = rmsNorm(keys, this.keyNorm);
    if (rotation) rotate(keys, this.size.head_dim, rotation);
    return kept.append(keys, this.value(states));
  }

  // Attend from x to what is offered. `visible(query)` is the range of keys that the token at that position sees;
  // `bias(head, query, key)` is added to scores, and `relative` has a vector for each query and key whose own key and
  // query are scored as well. Returns what is written to the stream, and the weights of every head:
  // heads x queries x keys.
  attend(x, { keys, values, length }, positions, visible, rotation, bias, relative) {
    const { heads, kv_heads, head_dim, value_dim, softcap } = this.size, wide = kv_heads * head_dim, wideValue = kv_heads * value_dim;
    const queries = this.ask(x, rotation);
    const places = relative && { queries: this.query(relative.vectors), keys: this.key(relative.vectors) };
    const read = new Matrix(x.rows, heads * value_dim), weights = new Float32Array(heads * x.rows * length);
    for (let head = 0; head < heads; head++) {
      const group = Math.floor((head * kv_heads) / heads), shared = group * head_dim, own = head * head_dim;
      for (let token = 0; token < x.rows; token++) {
        const position = positions[token], [first, end] = visible(position, length), query = queries.row(token);
        const scores = new Float32Array(end - first);
        for (let key = first; key < end; key++) {
          let score = 0;
          for (let i = 0; i < head_dim; i++) score += query[own + i] * keys.numbers[key * wide + shared + i];
          if (places) {
            const row = relative.row(position, key), placeQuery = places.queries.row(row), placeKey = places.keys.row(row);
            for (let i = own; i < own + head_dim; i++) score += query[i] * placeKey[i] + placeQuery[i] * keys.numbers[key * wide + i];
          }
          score *= this.scale;
          if (softcap) score = softcap * Math.tanh(score / softcap); // Gemma 2
          scores[key - first] = score + (bias ? bias(head, position, key) : 0);
        }
        // A sink is one more score, whose share adds nothing (gpt-oss).
        const shares = this.sinks ? softmax([...scores, this.sinks[head]]).subarray(0, -1) : softmax(scores), row = read.row(token);
        weights.set(shares, (head * x.rows + token) * length + first);
        for (let key = first; key < end; key++) {
          const share = shares[key - first];
          for (let i = 0; i < value_dim; i++) row[head * value_dim + i] += share * values.numbers[key * wideValue + group * value_dim + i];
        }
      }
    }
    return { written: this.output(read), weights };
  }
}

// Keys and values made of one narrow vector for each token, but for a part of the keys that is rotated and the same
// in all heads (DeepSeek-AI 2024, section 2.1).
class LatentAttention extends Attention {
  constructor(weights, size, layer) {
    super(weights, size, layer, size.latent.eps);
    for (const [name, part] of Object.entries({ queryDown: "query_down", down: "latent_down", up: "latent_up" }))
      this[name] = weights.has(`${part}.weight`) ? weights.linear(part) : null;
    this.norm = { weight: weights.vector("latent_norm.weight"), eps: size.latent.eps };
  }

  ask(x, rotation) {
    const { head_dim, latent } = this.size;
    const queries = this.query(this.queryDown ? rmsNorm(this.queryDown(x), this.queryNorm) : x);
    if (rotation) rotate(queries, head_dim, rotation, head_dim - latent.rotary_dim);
    return queries;
  }

  offer(states, kept, rotation) {
    const { heads, head_dim, value_dim, latent } = this.size, plain = head_dim - latent.rotary_dim;
    const down = this.down(states), narrow = new Matrix(down.rows, latent.rank), turned = new Matrix(down.rows, latent.rotary_dim);
    for (let token = 0; token < down.rows; token++) {
      narrow.row(token).set(down.row(token).subarray(0, latent.rank));
      turned.row(token).set(down.row(token).subarray(latent.rank));
    }
    if (rotation) rotate(turned, latent.rotary_dim, rotation);
    const made = this.up(rmsNorm(narrow, this.norm)), both = plain + value_dim;
    const keys = new Matrix(made.rows, heads * head_dim), values = new Matrix(made.rows, heads * value_dim);
    for (let token = 0; token < made.rows; token++)
      for (let head = 0; head < heads; head++) {
        const of = made.row(token).subarray(head * both, (head + 1) * both);
        keys.row(token).set(of.subarray(0, plain), head * head_dim);
        keys.row(token).set(turned.row(token), head * head_dim + plain);
        values.row(token).set(of.subarray(plain), head * value_dim);
      }
    return kept.append(keys, values);
  }
}
