// From logits to the next token.

const likeliest = (scores) => scores.reduce((best, score, i) => (score > scores[best] ? i : best), 0);

// The probabilities of logits divided by the temperature, of the k likeliest tokens alone. Temperature 0 leaves the
// likeliest one.
const probabilities = (logits, temperature = 1, topK = null) => {
  if (temperature === 0) {
    const best = likeliest(logits);
    return logits.map((_, i) => Number(i === best));
  }
  let scores = logits.map((logit) => logit / temperature);
  if (topK !== null && topK < scores.length) {
    const least = Float32Array.from(scores).sort()[scores.length - topK];
    scores = scores.map((score) => (score >= least ? score : -Infinity));
  }
  return softmax(scores);
};

// A token drawn with these probabilities, by a number from 0 up to 1.
const draw = (shares, chance) => {
  let rest = chance;
  for (let token = 0; token < shares.length; token++) {
    rest -= shares[token];
    if (rest < 0) return token;
  }
  return likeliest(shares);
};

// The likeliest tokens and their probabilities.
const top = (shares, count) => {
  const best = [];
  for (let token = 0; token < shares.length; token++) {
    if (best.length === count && shares[token] <= best[count - 1].share) continue;
    const place = best.findIndex((each) => each.share < shares[token]);
    best.splice(place < 0 ? best.length : place, 0, { token, share: shares[token] });
    if (best.length > count) best.pop();
  }
  return best;
};

// Writes one token after the other behind a prompt, of an encoder-decoder behind the token that starts its decoder.
class Writer {
  constructor(model, { prompt, source = null }) {
    this.model = model;
    this.encoded = source ? model.encode(source) : null;
    this.cache = model.cache(this.encoded);
    this.tokens = [];
    this.records = [];
    this.read(prompt);
  }

  read(tokens) {
    this.tokens = [...this.tokens, ...tokens];
    if (this.records.length > 0 && this.model.isStale(this.tokens.length)) {
      this.cache = this.model.cache(this.encoded);
      this.records = [];
      tokens = this.tokens;
    }
    const record = this.model.read(tokens, this.cache);
    this.records.push(record);
    this.logits = this.model.logits(new Matrix(1, record.output.columns, record.output.row(record.output.rows - 1))).numbers;
  }
}
