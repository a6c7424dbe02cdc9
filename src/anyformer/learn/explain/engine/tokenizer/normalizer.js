// What is done to a text before it is split: the normalizers of Hugging Face's `tokenizers`.

const each = (text, change) => Array.from(text, change).join("");

// BERT's cleaning (its code, BasicTokenizer): no control characters, spaces around Chinese characters, no accents or case.
const bertNormalizer = ({ clean_text, handle_chinese_chars, strip_accents, lowercase, controls, accents }) => (text) => {
  if (clean_text) text = text.replace(anyOf(controls), "").replace(anyOf(WHITE_SPACE), " ");
  if (handle_chinese_chars)
    text = text.replace(/[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu, " $& ");
  if (strip_accents ?? lowercase) text = text.normalize("NFD").replace(anyOf(accents), "");
  return lowercase ? each(text, (c) => c.toLowerCase()) : text;
};

// SentencePiece's table of characters: a trie as a double array (Yata et al. 2007), and the texts that its leaves name.
const precompiled = ({ table }) => {
  const bytes = Uint8Array.from(atob(table), (c) => c.charCodeAt(0)), size = new DataView(bytes.buffer).getUint32(0, true);
  const units = new Uint32Array(bytes.slice(4, 4 + size).buffer), texts = bytes.subarray(4 + size);
  const offset = (unit) => (unit >>> 10) << ((unit & 512) >>> 6);
  // What stands for the shortest beginning of a text that is in the table.
  const lookup = (text) => {
    let node = offset(units[0]);
    for (const byte of utf8(text)) {
      if (byte === 0) return null;
      node ^= byte;
      const unit = units[node];
      if ((unit & 0x800000ff) >>> 0 !== byte) return null;
      node ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const start = units[node] & 0x7fffffff;
        return fromUtf8(texts.subarray(start, texts.indexOf(0, start)));
      }
    }
    return null;
  };
  const segmenter = new Intl.Segmenter("en", { granularity: "grapheme" });
  return (text) =>
    Array.from(segmenter.segment(text), ({ segment }) => {
      const whole = utf8(segment).length < 6 ? lookup(segment) : null;
      return whole ?? each(segment, (c) => lookup(c) ?? c);
    }).join("");
};

const NORMALIZERS = {
  Sequence: ({ normalizers }) => { const all = normalizers.map(normalizer); return (text) => all.reduce((changed, one) => one(changed), text); },
  NFC: () => (text) => text.normalize("NFC"),
  NFD: () => (text) => text.normalize("NFD"),
  NFKC: () => (text) => text.normalize("NFKC"),
  NFKD: () => (text) => text.normalize("NFKD"),
  Lowercase: () => (text) => each(text, (c) => c.toLowerCase()),
  StripAccents: ({ accents }) => (text) => text.replace(anyOf(accents), ""),
  Strip: ({ strip_left, strip_right }) => (text) => {
    const space = `[${WHITE_SPACE}]+`, ends = [strip_left && `^${space}`, strip_right && `${space}$`].filter(Boolean).join("|");
    return ends ? text.replace(new RegExp(ends, "gu"), "") : text;
  },
  Replace: ({ regex, content }) => (text) => text.replace(new RegExp(regex, "gu"), () => content),
  Prepend: ({ prepend }) => (text) => (text ? prepend + text : text),
  ByteLevel: () => toByteCharacters,
  BertNormalizer: bertNormalizer,
  Precompiled: precompiled,
};

const normalizer = (settings) => (settings ? NORMALIZERS[settings.type](settings) : (text) => text);
