// A model that reads what is typed, and writes on: without the page.

const MOST_TOKENS = 128;

class Session {
  constructor(data, bytes) {
    this.data = data;
    this.tokenizer = new TextTokenizer(data.tokenizer);
    this.model = new Model(data.model, Weights.unpack(data.weights, bytes));
    const { stacks, head, context } = data.model;
    this.head = head;
    this.limit = Math.min(MOST_TOKENS, context ?? MOST_TOKENS);
    this.hasSource = Boolean(stacks.encoder && stacks.decoder);
    this.readsTwice = this.hasSource && head.kind === "classification";
    this.writes = Boolean(stacks.decoder) && head.kind === "language_model";
    this.fills = !stacks.decoder && head.kind === "language_model";
    this.textStack = stacks.decoder ?? stacks.encoder;
    this.cut = false;
  }

  shorten(tokens) {
    this.cut ||= tokens.length > this.limit;
    return tokens.slice(0, this.limit);
  }

  // Read a text, and of an encoder-decoder a source. Raises Error, in a sentence, for what can't be read.
  read(text, source) {
    const { tokenizer, data, model } = this;
    this.cut = false;
    let from = null, ids;
    if (this.readsTwice) {
      // A classifier's decoder reads the text as well, one place later (Lewis et al. 2020, section 3.2).
      from = this.shorten(tokenizer.encode(text));
      ids = [data.start, ...from.slice(0, -1)];
    } else if (this.hasSource) {
      from = this.shorten(tokenizer.encode(source));
      ids = this.shorten([data.start, ...(text ? tokenizer.plain(text) : [])]);
    } else ids = this.shorten(data.model.stacks.decoder ? tokenizer.encodePrompt(text) : tokenizer.encode(text));
    if (ids.length === 0 || from?.length === 0) throw new Error("There is nothing to read yet: type a few characters.");
    this.ids = ids;
    this.encoded = from && model.encode(from);
    this.begin();
  }

  begin() {
    this.cache = this.model.decoder ? this.model.cache(this.encoded) : undefined;
    this.records = [this.model.read(this.ids, this.cache)];
  }

  // Write a token behind those that were read.
  write(token) {
    this.ids = [...this.ids, token];
    if (this.model.isStale(this.ids.length)) this.begin();
    else this.records.push(this.model.read([token], this.cache));
  }

  get text() { return this.tokenizer.decode(this.ids); }
  get isFull() { return this.ids.length >= this.limit; }
  get hasEnded() { return this.ids.length > 1 && this.data.eos.includes(this.ids[this.ids.length - 1]); }

  // The next token, drawn by a number from 0 to 1.
  next(temperature, topK, chance) {
    const { output } = this.records[this.records.length - 1];
    const logits = this.model.logits(new Matrix(1, output.columns, output.row(output.rows - 1))).numbers;
    return draw(probabilities(logits, temperature, topK), chance);
  }

  name(token) {
    return this.head.labels ? this.head.labels[token] : this.tokenizer.spell(token);
  }

  // What the head makes of a hidden state behind the last norm: scores of tokens, or of labels; null without a head.
  scores(state) {
    if (this.head.kind === "none") return null;
    return (this.head.labels ? this.model.labels(state) : this.model.logits(state)).numbers;
  }

  // The likeliest answers of scores.
  answers(scores, count, temperature = 1, topK = null) {
    const problem = this.head.problem;
    if (problem === "regression") return [...scores].map((score, token) => ({ token, share: score }));
    if (problem === "multi_label_classification") return top(scores.map((score) => 1 / (1 + Math.exp(-score))), count);
    return top(probabilities(scores, temperature, topK), count);
  }

  // What the model would answer if it stopped at this hidden state: the logit lens (nostalgebraist 2020).
  guesses(state, count) {
    const scores = this.scores((this.model.decoder ?? this.model.encoder).finalNorm(state));
    return scores && this.answers(scores, count);
  }
}
