// A transformer block: attention, cross-attention in a decoder that has an encoder, feed-forward, each added to the
// residual stream.

class FeedForward {
  constructor(weights, activation) {
    this.activation = activation;
    this.up = weights.linear("up");
    this.gate = weights.has("gate.weight") ? weights.linear("gate") : null;
    this.down = weights.linear("down");
  }

  // down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020).
  forward(x) {
    const up = this.up(x);
    const inner = activate(this.gate ? this.gate(x) : up, this.activation);
    if (this.gate) inner.numbers.forEach((number, i) => { inner.numbers[i] = number * up.numbers[i]; });
    return { written: this.down(inner), inner };
  }
}

class Block {
  constructor(weights, model, stack, layer) {
    const { norm } = model, attention = (name) => new Attention(weights.under(name), stack, layer, norm.eps);
    this.preNorm = stack.pre_norm;
    this.parallel = stack.parallel; // both parts read what comes into the block
    this.scale = stack.residual_scale;
    this.attention = attention("attention");
    this.attentionNorm = weights.norm("attention_norm", norm);
    this.cross = stack.cross ? attention("cross_attention") : null;
    this.crossNorm = stack.cross ? weights.norm("cross_attention_norm", norm) : null;
    this.feedForward = new FeedForward(weights.under("feed_forward"), stack.activation);
    this.feedForwardNorm = weights.norm(stack.shares_norm ? "attention_norm" : "feed_forward_norm", norm);
  }

  // `context`: positions, visible, rotation, bias, relative; `own` and `source` are keys and values. What each
  // part reads and writes goes into `record`.
  forward(x, context, own, source, record) {
    // pre: x + f(norm(x)); post: norm(x + f(x)); parallel: x + f(norm(x)) + g(norm(x)).
    const start = x;
    const around = (name, norm, part) => {
      const found = part(this.preNorm ? norm(this.parallel ? start : x) : x);
      if (this.scale !== 1) found.written.numbers.forEach((number, i) => { found.written.numbers[i] = number * this.scale; });
      const sum = add(x, found.written);
      x = this.preNorm ? sum : norm(sum);
      record[name] = found;
    };
    around("attention", this.attentionNorm, (read) => {
      this.attention.offer(read, own, context.rotation);
      return this.attention.attend(read, own, context.positions, context.visible, context.rotation, context.bias, context.relative);
    });
    if (this.cross)
      around("cross", this.crossNorm, (read) => this.cross.attend(read, source, context.positions, (_, length) => [0, length]));
    around("feedForward", this.feedForwardNorm, (read) => this.feedForward.forward(read));
    record.output = x;
    return x;
  }
}
