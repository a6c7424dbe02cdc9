// How the order of the tokens enters: a vector that is added, a rotation of queries and keys, a bias on the scores,
// or vectors that are compared with queries and keys.

const NO_POSITIONS = { embed: () => null, rotation: () => null, bias: () => null, relative: () => null };

// Sines and cosines of the position (Vaswani et al. 2017, section 3.5).
const sinusoidal = ({ layout, offset, skips }, { embedding_width: width }) => {
  const embed = (positions) => {
    const out = new Matrix(positions.length, width), half = Math.ceil(width / 2);
    positions.forEach((position, token) => {
      const row = out.row(token);
      if (skips && position < 0) return;
      for (let i = 0; i < half; i++) {
        const exponent = layout === "fairseq" ? i / (half - 1) : (2 * i) / width;
        const angle = Math.max(position + offset, 0) / 10000 ** exponent;
        const [sine, cosine] = layout === "interleaved" ? [2 * i, 2 * i + 1] : [i, half + i];
        row[sine] = Math.sin(angle);
        if (cosine < width) row[cosine] = Math.cos(angle);
      }
    });
    return out;
  };
  return { ...NO_POSITIONS, embed };
};

// A learned vector for each position (GPT-2, BERT), and for MPNet a bias for each distance as well.
const learned = ({ offset, ...distances }, { table, biases }) => ({
  ...(biases ? relative(distances, { table: biases }) : NO_POSITIONS),
  embed: (positions) => {
    const out = new Matrix(positions.length, table.columns);
    positions.forEach((position, token) => out.row(token).set(table.row(Math.max(position + offset, 0))));
    return out;
  },
});

// Queries and keys turn by an angle that grows with their position (Su et al. 2021).
const rotary = (position, { trained_length }) => {
  const { rotated, width } = position, half = width / 2;
  const frequencies = (length) => {
    if (position.long_frequencies && length > position.original_length) return position.long_frequencies;
    if (position.frequencies) return position.frequencies;
    const factor = position.dynamic_factor, overshoot = (factor * Math.max(length, trained_length)) / trained_length - (factor - 1);
    const theta = position.theta * overshoot ** (rotated / (rotated - 2));
    return Array.from({ length: half }, (_, i) => (2 * i < rotated ? theta ** ((-2 * i) / rotated) : 0));
  };
  const rotation = (positions, length) => {
    const [cosines, sines] = [0, 1].map(() => new Matrix(positions.length, half)), sharpness = position.sharpness ?? 1;
    const radians = frequencies(length);
    positions.forEach((at, token) => {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(at * radians[i]);
        const factor = 2 * i < rotated ? sharpness : 1; // of a pair that doesn't turn the cosine is 1
        cosines.row(token)[i] = Math.cos(angle) * factor;
        sines.row(token)[i] = Math.sin(angle) * factor;
      }
    });
    return { cosines, sines };
  };
  return { ...NO_POSITIONS, rotation };
};

// Turn pair (i, i + half) of every head of each row, in place (RoFormer, equation 34, in halves), behind the first numbers
// of the head that stay as they are.
const rotate = (x, head_dim, { cosines, sines }, still = 0) => {
  const half = (head_dim - still) / 2;
  for (let token = 0; token < x.rows; token++) {
    const row = x.row(token), cosine = cosines.row(token), sine = sines.row(token);
    for (let start = still; start < row.length; start += head_dim)
      for (let i = 0; i < half; i++) {
        const first = row[start + i], second = row[start + half + i];
        row[start + i] = first * cosine[i] - second * sine[i];
        row[start + half + i] = second * cosine[i] + first * sine[i];
      }
  }
};

// A learned bias for each head and (bucketed) distance (Raffel et al. 2020, section 2.1).
const relative = ({ buckets, max_distance }, { table }) => ({
  ...NO_POSITIONS,
  bias: (head, query, key) => {
    const distance = Math.max(-max_distance, Math.min(max_distance, key - query));
    return table.numbers[buckets[distance + max_distance] * table.columns + head];
  },
});

// A vector for each (bucketed) distance, which each layer makes a query and a key of (He et al. 2021, section 3.1).
const disentangled = ({ buckets, max_distance }, { table, relative_norm }) => ({
  ...NO_POSITIONS,
  relative: () => ({
    vectors: relative_norm(table),
    row: (query, key) => buckets[Math.max(-max_distance, Math.min(max_distance, query - key)) + max_distance],
  }),
});

const POSITIONS = { none: () => ({ ...NO_POSITIONS }), sinusoidal, learned, rotary, relative, disentangled };
