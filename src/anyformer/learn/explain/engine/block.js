// A transformer block: attention, cross-attention in a decoder that has an encoder, feed-forward, each added to the
// residual stream.

class FeedForward {
  constructor(weights, config) {
    this.config = config;
    this.up = weights.linear("up");
    this.gate = weights.has("gate.weight") ? weights.linear("gate") : null;
    this.down = weights.linear("down");
  }

  // down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020), where both may be bounded and the second moved
  // (gpt-oss).
  forward(x) {
    const up = this.up(x), gate = this.gate ? this.gate(x) : up, { activation, up_offset: offset } = this.config;
    const limit = this.config.limit ?? Infinity, bounded = limit < Infinity;
    if (bounded) gate.numbers.forEach((number, i) => { gate.numbers[i] = Math.min(number, limit); });
    const inner = activate(gate, activation);
    if (this.gate) inner.numbers.forEach((number, i) => { inner.numbers[i] = number * (Math.max(-limit, Math.min(limit, up.numbers[i])) + offset); });
    return { written: this.down(inner), inner };
  }
}

// Networks of which a router chooses some for each token: the sum of p[e] network[e](x) over the largest
// p = softmax(router(x)) (Shazeer et al. 2017), or those of the sigmoid. Experts may be chosen from the best groups, by
// p and a correction, beside one for every token (DeepSeek-AI 2024). `inner` has the neurons of the chosen ones, side
// by side, and those of the shared one.
class Experts {
  constructor(weights, config) {
    Object.assign(this, { config: config.experts, router: weights.linear("router"), correction: weights.vector("correction") });
    const { count } = config.experts, names = ["up", "gate", "down"].filter((name) => weights.has(`${name}.weight`));
    const part = (expert) => new Map(names.flatMap((name) => {
      const matrix = weights.matrix(`${name}.weight`).part(expert, count), bias = weights.vector(`${name}.bias`);
      return [[`${name}.weight`, matrix], ...(bias ? [[`${name}.bias`, bias.subarray(expert * matrix.rows, (expert + 1) * matrix.rows)]] : [])];
    }));
    this.networks = Array.from({ length: count }, (_, expert) => new FeedForward(new Weights(part(expert)), config));
    this.shared = weights.has("shared.up.weight") ? new FeedForward(weights.under("shared"), config) : null;
  }

  // The best networks by these shares: of the best groups alone, if there are groups.
  choose(shares) {
    const { groups, used_groups, group_best, used } = this.config;
    let scores = this.correction ? shares.map((share, i) => share + this.correction[i]) : shares;
    if (used_groups < groups) {
      const size = scores.length / groups;
      const best = Array.from({ length: groups }, (_, i) => top(scores.subarray(i * size, (i + 1) * size), group_best).reduce((total, { share }) => total + share, 0));
      const kept = new Set(top(Float32Array.from(best), used_groups).map(({ token }) => token));
      scores = scores.map((score, i) => (kept.has(Math.floor(i / size)) ? score : -Infinity));
    }
    return top(scores, used).map(({ token }) => token);
  }

  forward(x) {
    const logits = this.router(x), probabilities = new Matrix(x.rows, this.networks.length);
    const { normalized, scale, used } = this.config, shared = this.shared?.forward(x);
    const written = shared?.written ?? new Matrix(x.rows, x.columns);
    const chosen = Array.from({ length: x.rows }, (_, token) => {
      const row = logits.row(token), shares = this.config.scores === "sigmoid" ? row.map((logit) => 1 / (1 + Math.exp(-logit))) : softmax(row);
      probabilities.row(token).set(shares);
      const best = this.choose(shares), sum = normalized ? best.reduce((total, expert) => total + shares[expert], 0) : 1;
      return best.map((expert) => ({ expert, weight: (scale * shares[expert]) / sum }));
    });
    let inner = null;
    this.networks.forEach((network, expert) => {
      const rows = chosen.flatMap((choice, token) => choice.flatMap((each, place) => (each.expert === expert ? [{ token, place, weight: each.weight }] : [])));
      if (rows.length === 0) return;
      const read = new Matrix(rows.length, x.columns);
      rows.forEach(({ token }, i) => read.row(i).set(x.row(token)));
      const found = network.forward(read), width = found.inner.columns;
      inner ??= new Matrix(x.rows, used * width + (shared?.inner.columns ?? 0));
      rows.forEach(({ token, place, weight }, i) => {
        inner.row(token).set(found.inner.row(i), place * width);
        shared && inner.row(token).set(shared.inner.row(token), used * width);
        const out = written.row(token);
        found.written.row(i).forEach((number, j) => { out[j] += weight * number; });
      });
    });
    return { written, inner, probabilities, chosen };
  }
}

class Block {
  constructor(weights, model, stack, layer) {
    const { norm } = model, attention = (name) => new (stack.latent ? LatentAttention : Attention)(weights.under(name), stack, layer, norm.eps);
    this.postNorm = stack.placement === "post";
    this.parallel = stack.placement.startsWith("parallel"); // both parts read what comes into the block
    this.scale = stack.residual_scale;
    this.attention = attention("attention");
    const norms = (name) => [weights.norm(`${name}_norm`, norm), weights.norm(`${name}_output_norm`, norm)];
    this.attentionNorms = norms("attention");
    this.cross = stack.cross ? attention("cross_attention") : null;
    this.crossNorms = norms("cross_attention");
    const network = stack.feed_forwards[layer];
    this.feedForward = new (network.experts ? Experts : FeedForward)(weights.under("feed_forward"), network);
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
