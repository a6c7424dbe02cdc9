// Text to ids and back, as `tokenizers` does it: added tokens, normalizer, pre-tokenizer, model, and what is put around.

class TextTokenizer {
  constructor(description) {
    const { vocabulary, added, model, around, closed, clean_up } = description;
    this.description = description;
    this.vocabulary = vocabulary;
    this.ids = new Map();
    vocabulary.forEach((token, id) => { if (token !== null) this.ids.set(token, id); });
    this.added = new Map(added.map((token) => [token.id, token]));
    this.special = new Set(description.special);
    this.normalize = normalizer(description.normalizer);
    this.split = preTokenizer(description.pre_tokenizer);
    this.words = SUBWORDS[model.type](model, this.ids);
    this.join = decoder(description.decoder);
    this.around = around;
    this.closed = closed;
    this.cleansUp = clean_up;
    // The longest of those that begin first is found.
    const finder = (tokens, spell) => {
      const spelled = new Map(tokens.map((token) => [spell(token.content), token]).filter(([text]) => text));
      const sorted = [...spelled.keys()].sort((a, b) => b.length - a.length);
      const escaped = sorted.map((text) => text.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&"));
      return sorted.length ? { regex: new RegExp(escaped.join("|"), "gu"), spelled } : null;
    };
    this.verbatim = finder(added.filter((token) => !token.normalized), (text) => text);
    this.normalized = finder(added.filter((token) => token.normalized), this.normalize);
  }

  // A text cut at added tokens: parts of it, and the tokens.
  cut({ text, first }, finder) {
    if (!finder) return text ? [piece(text, first)] : [];
    const parts = [], space = `[${WHITE_SPACE}]*`, word = new RegExp(`[${WORD}]`, "u");
    let done = 0;
    for (const match of text.matchAll(finder.regex)) {
      const token = finder.spelled.get(match[0]);
      let start = match.index, end = start + match[0].length;
      const before = [...text.slice(0, start)].pop() ?? "", after = [...text.slice(end, end + 2)][0] ?? "";
      if (token.single_word && (word.test(before) || word.test(after))) continue;
      if (token.lstrip) start = Math.max(done, start - new RegExp(`${space}$`, "u").exec(text.slice(0, start))[0].length);
      if (token.rstrip) end += new RegExp(`^${space}`, "u").exec(text.slice(end))[0].length;
      if (start > done) parts.push(piece(text.slice(done, start), first && done === 0));
      parts.push({ id: token.id });
      done = end;
    }
    if (done < text.length) parts.push(piece(text.slice(done), first && done === 0));
    return parts;
  }

  // The ids of a text alone.
  plain(text) {
    const apart = (part, action) => (part.id === undefined ? action(part) : [part]);
    const parts = this.cut(piece(text.toWellFormed?.() ?? text, true), this.verbatim)
      .flatMap((part) => apart(part, ({ text: found, first }) => this.cut(piece(this.normalize(found), first), this.normalized)))
      .flatMap((part) => apart(part, this.split));
    return parts.flatMap((part) => {
      if (part.id !== undefined) return [part.id];
      if (this.closed)
        for (const character of part.text)
          if (!this.ids.has(character)) throw new Error(`The character “${character}” is not in the model's vocabulary of characters.`);
      return this.words(part.text);
    });
  }

  // The ids of a text with what the tokenizer puts before and after it.
  encode(text) {
    return [...this.around.before, ...this.plain(text), ...this.around.after];
  }

  // The ids of a text that is to be continued: nothing is put after it.
  encodePrompt(text) {
    const plain = this.plain(text);
    return plain.length ? [...this.around.before, ...plain] : [...this.description.empty];
  }

  decode(ids, skipSpecial = true) {
    const tokens = ids.filter((id) => !(skipSpecial && this.special.has(id))).map((id) => this.added.get(id)?.content ?? this.vocabulary[id]);
    const text = this.join(tokens.filter((token) => token !== null && token !== undefined)).join("");
    return this.cleansUp ? withoutSpaces(text).replaceAll(" do not", " do not") : text;
  }

  // A token as it is shown: its text, or where that is no whole character, its spelling in the vocabulary.
  spell(id) {
    const spelled = this.vocabulary[id] ?? this.added.get(id)?.content ?? `<${id}>`, text = this.decode([id], false);
    if (text === "" || text.includes("\ufffd")) return spelled;
    return spelled.startsWith("\u2581") && !text.startsWith(" ") ? ` ${text}` : text;
  }
}
