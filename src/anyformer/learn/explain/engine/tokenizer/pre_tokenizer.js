// How a text is split before its tokens are sought: the pre-tokenizers of Hugging Face's `tokenizers`.

const byteLevel = ({ add_prefix_space, regex }) => (part) => {
  const text = add_prefix_space && !part.text.startsWith(" ") ? ` ${part.text}` : part.text;
  const parts = regex ? splitAt(piece(text, part.first), new RegExp(regex, "gu"), "isolated") : [piece(text, part.first)];
  return parts.map(({ text: found, first }) => piece(toByteCharacters(found), first));
};

// Spaces become a visible mark, with which each word begins (Kudo & Richardson 2018).
const metaspace = ({ replacement, prepend_scheme, split }) => (part) => {
  let text = part.text.replaceAll(" ", replacement);
  if (!text.startsWith(replacement) && (prepend_scheme === "always" || (prepend_scheme === "first" && part.first))) text = replacement + text;
  const mark = new RegExp(replacement.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&"), "gu");
  return split ? splitAt(piece(text, part.first), mark, "mergedwithnext") : [piece(text, part.first)];
};

const PRE_TOKENIZERS = {
  Sequence: ({ pretokenizers }) => { const all = pretokenizers.map(preTokenizer); return (part) => all.reduce((parts, one) => parts.flatMap(one), [part]); },
  ByteLevel: byteLevel,
  Metaspace: metaspace,
  Split: ({ regex, behavior, invert }) => (part) => splitAt(part, new RegExp(regex, "gu"), behavior.toLowerCase(), invert),
  BertPreTokenizer: ({ punctuation }) => (part) =>
    splitAt(part, anyOf(WHITE_SPACE), "removed").flatMap((word) => splitAt(word, anyOf(punctuation), "isolated")),
  Whitespace: () => (part) => splitAt(part, new RegExp(`[${WORD}]+|[^${WORD}${WHITE_SPACE}]+`, "gu"), "removed", true),
  WhitespaceSplit: () => (part) => splitAt(part, anyOf(WHITE_SPACE), "removed"),
  Punctuation: ({ behavior, punctuation }) => (part) => splitAt(part, anyOf(punctuation), behavior.toLowerCase()),
  Digits: ({ individual_digits }) => (part) => splitAt(part, /\p{N}/gu, individual_digits ? "isolated" : "contiguous"),
};

const preTokenizer = (settings) => (settings ? PRE_TOKENIZERS[settings.type](settings) : (part) => [part]);
