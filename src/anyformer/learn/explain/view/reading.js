// What a stack computed of a text, token by token, from one pass or several.

class Reading {
  constructor(records, spell) {
    this.records = records;
    this.ids = records.flatMap((record) => record.tokens);
    this.tokens = this.ids.map(spell);
    this.layers = records[0].layers.length;
  }

  // The row of a token in a matrix of the record that read it.
  row(token, matrix) {
    const record = this.records.find(({ start, tokens }) => token < start + tokens.length);
    return matrix(record)?.row(token - record.start) ?? null;
  }

  // The experts of a token in a layer: numbers and weights, the best first.
  chosen(token, layer) {
    const record = this.records.find(({ start, tokens }) => token < start + tokens.length);
    return record.layers[layer].feedForward.chosen[token - record.start];
  }

  // A hidden state as a matrix of one row.
  state(token, matrix) {
    const row = this.row(token, matrix);
    return new Matrix(1, row.length, row);
  }

  // The weights that a token puts on others in a head of a layer: `part` is attention or cross.
  weights(layer, part, heads, head, token) {
    const { tokens, start, layers } = this.records.find((record) => token < record.start + record.tokens.length);
    const all = layers[layer][part].weights, keys = all.length / heads / tokens.length;
    return all.subarray((head * tokens.length + token - start) * keys, (head * tokens.length + token - start + 1) * keys);
  }

  // The weights of all layers and heads as the maps show them: bytes, 255 being 1.
  maps(part, heads, keys) {
    const queries = this.tokens.length, bytes = new Uint8Array(this.layers * heads * queries * keys);
    for (let layer = 0; layer < this.layers; layer++)
      for (let head = 0; head < heads; head++)
        for (let token = 0; token < queries; token++)
          this.weights(layer, part, heads, head, token).forEach((weight, key) => {
            bytes[((layer * heads + head) * queries + token) * keys + key] = Math.round(weight * 255);
          });
    return bytes;
  }
}
