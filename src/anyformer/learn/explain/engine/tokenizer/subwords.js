// From a word to tokens: the models of Hugging Face's `tokenizers`. Each returns ids.

// The bytes of a character as tokens such as <0xE2>, if the vocabulary has all of them.
const byteTokens = (text, ids) => {
  const found = Array.from(utf8(text), (byte) => ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
  return found.includes(undefined) ? null : found;
};

// Byte-pair encoding (Sennrich et al. 2016): the pair that was merged first in training is merged first.
const bytePairs = ({ merges, unk, fuse_unk, byte_fallback, prefix, suffix, ignore_merges }, ids) => {
  // The rank of each pair, and what it becomes. Merges are triples of ids: left, right, both.
  const ranks = new Map(), size = Math.max(0, ...ids.values()) + 1, key = (left, right) => left * size + right;
  for (let i = 0; i < merges.length; i += 3) ranks.set(key(merges[i], merges[i + 1]), { rank: i / 3, both: merges[i + 2] });
  const known = new Map();
  const begin = (word) => {
    const characters = [...word], found = [];
    let unknown = false;
    characters.forEach((character, i) => {
      const token = (i > 0 ? prefix : "") + character + (i === characters.length - 1 ? suffix : "");
      if (ids.has(token)) { found.push(ids.get(token)); unknown = false; return; }
      const bytes = byte_fallback ? byteTokens(token, ids) : null;
      if (bytes) { found.push(...bytes); return; }
      if (unk === null) return;
      if (!(fuse_unk && unknown)) found.push(unk);
      unknown = true;
    });
    return found;
  };
  const merge = (word) => {
    for (;;) {
      let best = null, place = -1;
      for (let i = 0; i + 1 < word.length; i++) {
        const pair = ranks.get(key(word[i], word[i + 1]));
        if (pair && (!best || pair.rank < best.rank)) { best = pair; place = i; }
      }
      if (!best) return word;
      word.splice(place, 2, best.both);
    }
  };
  return (word) => {
    if (ignore_merges && ids.has(word)) return [ids.get(word)];
    if (!known.has(word)) known.set(word, merge(begin(word)));
    return known.get(word);
  };
};

// WordPiece (Schuster & Nakajima 2012): the longest token that a word begins with, then the longest of the rest.
const wordPieces = ({ unk, prefix, longest }, ids) => (word) => {
  const characters = [...word], found = [];
  if (characters.length > longest) return [unk];
  for (let start = 0; start < characters.length; ) {
    let end = characters.length, token;
    for (; end > start; end--) {
      token = ids.get((start > 0 ? prefix : "") + characters.slice(start, end).join(""));
      if (token !== undefined) break;
    }
    if (token === undefined) return [unk];
    found.push(token);
    start = end;
  }
  return found;
};

// Unigram (Kudo 2018): the likeliest pieces, by the Viterbi algorithm. Unknown characters in a row are one token.
const unigram = ({ pieces, scores, unk, byte_fallback }, ids) => {
  const UNKNOWN_PENALTY = 10, least = scores.reduce((low, score) => Math.min(low, score), Infinity) - UNKNOWN_PENALTY;
  // The pieces as a trie: a node's children by character, and the piece that ends at it.
  const root = { next: new Map(), id: -1 };
  const places = new Map(pieces.map((text, i) => [text, i]));
  for (const [text, id] of places) {
    let node = root;
    for (const character of text) {
      if (!node.next.has(character)) node.next.set(character, { next: new Map(), id: -1 });
      node = node.next.get(character);
    }
    node.id = id;
  }
  const spelled = (text) => {
    const id = places.get(text);
    if (id !== undefined) return [id];
    return (byte_fallback ? byteTokens(text, ids) : null) ?? [unk];
  };
  return (word) => {
    const characters = [...word], best = characters.map(() => null);
    best.unshift({ score: 0, start: -1, id: -1 });
    best.length = characters.length + 1;
    characters.forEach((_, start) => {
      const offer = (end, score, id) => {
        const sum = score + best[start].score;
        if (!best[end] || sum > best[end].score) best[end] = { score: sum, start, id };
      };
      let node = root, single = false;
      for (let end = start; end < characters.length; end++) {
        node = node.next.get(characters[end]);
        if (!node) break;
        if (node.id >= 0) { offer(end + 1, scores[node.id], node.id); single ||= end === start; }
      }
      if (!single) offer(start + 1, least, unk);
    });
    const texts = [];
    let unknown = false;
    for (let end = characters.length; end > 0; end = best[end].start) {
      const { start, id } = best[end], text = characters.slice(start, end).join("");
      if (id === unk && unknown) texts[0] = text + texts[0];
      else texts.unshift(text);
      unknown = id === unk;
    }
    return texts.flatMap(spelled);
  };
};

const wholeWords = ({ unk }, ids) => (word) => (ids.has(word) ? [ids.get(word)] : unk === null ? [] : [unk]);

const SUBWORDS = { BPE: bytePairs, WordPiece: wordPieces, Unigram: unigram, WordLevel: wholeWords };
