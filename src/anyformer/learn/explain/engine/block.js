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
    this.postNorm = stack.placement === "post";
    this.parallel = stack.placement.startsWith("parallel"); // both parts read what comes into the block
    this.scale = stack.residual_scale;
    this.attention = attention("attention");
    const norms = (name) => [weights.norm(`${name}_norm`, norm), weights.norm(`${name}_output_norm`, norm)];
    this.attentionNorms = norms("attention");
    this.cross = stack.cross ? attention("cross_attention") : null;
    this.crossNorms = norms("cross_attention");
    this.feedForward = new FeedForward(weights.under("feed_forward"), stack.activation);
    this.feedForwardNorms = norms("feed_forward");
    if (stack.placement === "parallel_shared") [this.feedForwardNorms[0]] = this.attentionNorms;
  }

  // `context`: positions, visible, rotation, bias; `own` and `source` are keys and values. What each part reads and
  // writes goes into `record`.
  forward(x, context, own, source, record) {
    // x + outputNorm(f(norm(x))), where either norm may be missing; post: norm(x + f(x)); parallel: f and g read the
    // same x.
    const start = x;
    const around = (name, [norm, outputNorm], part) => {
      const found = part(this.postNorm ? x : norm(this.parallel ? start : x));
      found.written = outputNorm(found.written);
      if (this.scale !== 1) found.written.numbers.forEach((number, i) => { found.written.numbers[i] = number * this.scale; });
      const sum = add(x, found.written);
      x = this.postNorm ? norm(sum) : sum;
      record[name] = found;
    };
    around("attention", this.attentionNorms, (read) => {
      this.attention.offer(read, own, context.rotation);
      return this.attention.attend(read, own, context.positions, context.visible, context.rotation, context.bias);
    });
    if (this.cross)
      around("cross", this.crossNorms, (read) => this.cross.attend(read, source, context.positions, (_, length) => [0, length]));
    around("feedForward", this.feedForwardNorms, (read) => this.feedForward.forward(read));
    record.output = x;
    return x;
  }
}
