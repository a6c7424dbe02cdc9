// Multi-head attention: softmax(scale q k^T + bias) v (Vaswani et al. 2017, equation 1).

// Keys and values of all tokens read so far, a row for each.
class KeysValues {
  constructor(width) {
    this.length = 0;
    this.keys = new Matrix(16, width);
    this.values = new Matrix(16, width);
  }

  append(keys, values) {
    const rows = this.length + keys.rows;
    if (rows > this.keys.rows) {
      const room = Math.max(rows, 2 * this.keys.rows);
      for (const name of ["keys", "values"]) {
        const larger = new Matrix(room, keys.columns);
        larger.numbers.set(this[name].numbers);
        this[name] = larger;
      }
    }
    this.keys.numbers.set(keys.numbers, this.length * keys.columns);
    this.values.numbers.set(values.numbers, this.length * keys.columns);
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
    const { heads, kv_heads, head_dim, softcap } = this.size, wide = kv_heads * head_dim;
    let queries = this.query(x);
    if (this.queryNorm) queries = rmsNorm(queries, this.queryNorm);
    if (rotation) rotate(queries, head_dim, rotation);
    const places = relative && { queries: this.query(relative.vectors), keys: this.key(relative.vectors) };
    const read = new Matrix(x.rows, heads * head_dim), weights = new Float32Array(heads * x.rows * length);
    for (let head = 0; head < heads; head++) {
      const shared = Math.floor((head * kv_heads) / heads) * head_dim, own = head * head_dim;
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
        const shares = softmax(scores), row = read.row(token);
        weights.set(shares, (head * x.rows + token) * length + first);
        for (let key = first; key < end; key++) {
          const share = shares[key - first];
          for (let i = 0; i < head_dim; i++) row[own + i] += share * values.numbers[key * wide + shared + i];
        }
      }
    }
    return { written: this.output(read), weights };
  }
}
