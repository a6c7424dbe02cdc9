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

// Networks of which a router chooses some for each token: the sum of p[e] network[e](x) over the largest
// p = softmax(router(x)) (Shazeer et al. 2017). `inner` has the neurons of the chosen ones, side by side.
class Experts {
  constructor(weights, activation, { count, used, normalized }) {
    Object.assign(this, { used, normalized, router: weights.linear("router") });
    const names = ["up", "gate", "down"].map((name) => `${name}.weight`).filter((name) => weights.has(name));
    this.networks = Array.from({ length: count }, (_, expert) =>
      new FeedForward(new Weights(new Map(names.map((name) => [name, weights.matrix(name).part(expert, count)]))), activation));
  }

  forward(x) {
    const logits = this.router(x), probabilities = new Matrix(x.rows, this.networks.length), written = new Matrix(x.rows, x.columns);
    const chosen = Array.from({ length: x.rows }, (_, token) => {
      const shares = softmax(logits.row(token)), best = top(shares, this.used);
      probabilities.row(token).set(shares);
      const sum = this.normalized ? best.reduce((total, { share }) => total + share, 0) : 1;
      return best.map(({ token: expert, share }) => ({ expert, weight: share / sum }));
    });
    let inner = null;
    this.networks.forEach((network, expert) => {
      const rows = chosen.flatMap((choice, token) => choice.flatMap((each, place) => (each.expert === expert ? [{ token, place, weight: each.weight }] : [])));
      if (rows.length === 0) return;
      const read = new Matrix(rows.length, x.columns);
      rows.forEach(({ token }, i) => read.row(i).set(x.row(token)));
      const found = network.forward(read), width = found.inner.columns;
      inner ??= new Matrix(x.rows, this.used * width);
      rows.forEach(({ token, place, weight }, i) => {
        inner.row(token).set(found.inner.row(i), place * width);
        const out = written.row(token);
        found.written.row(i).forEach((number, j) => { out[j] += weight * number; });
      });
    });
    return { written, inner, probabilities, chosen };
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
    const network = weights.under("feed_forward");
    this.feedForward = stack.experts ? new Experts(network, stack.activation, stack.experts) : new FeedForward(network, stack.activation);
    this.feedForwardNorms = norms("feed_forward");
    if (stack.placement === "parallel_shared") [this.feedForwardNorms[0]] = this.attentionNorms;
  }

  // `context`: positions, visible, rotation, bias, relative; `own` and `source` are keys and values. What each
  // part reads and writes goes into `record`.
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
      return this.attention.attend(read, own, context.positions, context.visible, context.rotation, context.bias, context.relative);
    });
    if (this.cross)
      around("cross", this.crossNorms, (read) => this.cross.attend(read, source, context.positions, (_, length) => [0, length]));
    around("feedForward", this.feedForwardNorms, (read) => this.feedForward.forward(read));
    record.output = x;
    return x;
  }
}
