// From tokens back to a text: the decoders of Hugging Face's `tokenizers`. Each changes a list of texts.

const byteFallback = () => (tokens) => {
  const found = [];
  let bytes = [];
  const flush = () => {
    if (bytes.length === 0) return;
    try {
      found.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes)));
    } catch {
      found.push(...bytes.map(() => "\ufffd"));
    }
    bytes = [];
  };
  for (const token of tokens) {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(token);
    if (byte) bytes.push(parseInt(byte[1], 16));
    else { flush(); found.push(token); }
  }
  flush();
  return found;
};

// Undo the spaces that splitting at punctuation puts in.
const withoutSpaces = (text) =>
  [[" .", "."], [" ?", "?"], [" !", "!"], [" ,", ","], [" ' ", "'"], [" n't", "n't"], [" 'm", "'m"], [" 's", "'s"], [" 've", "'ve"], [" 're", "'re"]]
    .reduce((cleaned, [spaced, plain]) => cleaned.replaceAll(spaced, plain), text);

const wordPiece = ({ prefix, cleanup }) => (tokens) =>
  tokens.map((token, i) => {
    const text = i === 0 ? token : token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
    return cleanup ? withoutSpaces(text).replaceAll(" do not", " don't") : text;
  });

const stripEnds = ({ content, start, stop }) => (tokens) =>
  tokens.map((token) => {
    const characters = [...token];
    let first = 0, end = characters.length;
    while (first < start && characters[first] === content) first++;
    while (characters.length - end < stop && end > first && characters[end - 1] === content) end--;
    return characters.slice(first, end).join("");
  });

const DECODERS = {
  Sequence: ({ decoders }) => { const all = decoders.map(decoder); return (tokens) => all.reduce((texts, one) => one(texts), tokens); },
  ByteLevel: () => (tokens) => [fromUtf8(tokens.flatMap((token) => {
    const bytes = Array.from(token, (character) => CHARACTER_BYTES.get(character));
    return bytes.includes(undefined) ? [...utf8(token)] : bytes;
  }))],
  WordPiece: wordPiece,
  Metaspace: ({ replacement, prepend_scheme }) => (tokens) =>
    tokens.map((token, i) => token.replaceAll(replacement, i === 0 && prepend_scheme !== "never" ? "" : " ")),
  Fuse: () => (tokens) => [tokens.join("")],
  Replace: ({ regex, content }) => (tokens) => tokens.map((token) => token.replace(new RegExp(regex, "gu"), () => content)),
  ByteFallback: byteFallback,
  Strip: stripEnds,
  BPEDecoder: ({ suffix }) => (tokens) => tokens.map((token, i) => token.replaceAll(suffix, i === tokens.length - 1 ? "" : " ")),
};

const decoder = (settings) => (settings ? DECODERS[settings.type](settings) : (tokens) => [tokens.join(" ")]);
