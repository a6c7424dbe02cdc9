// Kinds of characters, bytes as characters, and what splits a text.

const WHITE_SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const anyOf = (inside) => new RegExp(`[${inside}]`, "gu");

// Byte-level BPE writes each byte as a printable character (Radford et al. 2019, encoder.py).
const BYTE_CHARACTERS = (() => {
  const printable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();
const CHARACTER_BYTES = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));
const utf8 = (text) => new TextEncoder().encode(text);
// Bytes that are no UTF-8 become U+FFFD.
const fromUtf8 = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
const toByteCharacters = (text) => Array.from(utf8(text), (byte) => BYTE_CHARACTERS[byte]).join("");

// A part of a text, and whether the text begins with it.
const piece = (text, first) => ({ text, first });

// The parts of a text that match, and those between them. `behavior` says what becomes of the matches.
const splitAt = ({ text, first }, regex, behavior, invert = false) => {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(regex)) {
    if (match[0] === "") continue;
    if (match.index > end) parts.push({ start: end, end: match.index, matches: false });
    end = match.index + match[0].length;
    parts.push({ start: match.index, end, matches: true });
  }
  if (end < text.length) parts.push({ start: end, end: text.length, matches: false });
  if (invert) for (const part of parts) part.matches = !part.matches;
  const merged = [];
  parts.forEach((part) => {
    const last = merged[merged.length - 1];
    const joins = last && {
      contiguous: part.matches === last.matches,
      mergedwithprevious: part.matches && !last.matches,
      mergedwithnext: last.matches && !part.matches,
    }[behavior];
    // Of two matches in a row neither is merged with the other.
    if (joins) { last.end = part.end; last.matches = behavior === "contiguous" ? last.matches : !last.matches && part.matches; }
    else if (behavior !== "removed" || !part.matches) merged.push({ ...part });
  });
  return merged.map((part) => piece(text.slice(part.start, part.end), first && part.start === 0));
};
