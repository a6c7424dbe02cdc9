// Matrices and the operations on them. A vector for each token is a row.

class Matrix {
  constructor(rows, columns, numbers = new Float32Array(rows * columns)) {
    this.rows = rows;
    this.columns = columns;
    this.numbers = numbers;
  }

  row(index) {
    return this.numbers.subarray(index * this.columns, (index + 1) * this.columns);
  }
}

// A matrix in 8-bit integers: weight[i][j] = scales[i] * integers[i][j].
class QuantizedMatrix {
  constructor(rows, columns, integers, scales) {
    this.rows = rows;
    this.columns = columns;
    this.integers = integers;
    this.scales = scales;
  }

  row(index) {
    const start = index * this.columns, scale = this.scales[index];
    return Float32Array.from(this.integers.subarray(start, start + this.columns), (integer) => integer * scale);
  }

  // One of several matrices that lie one below another.
  part(index, count) {
    const rows = this.rows / count, start = index * rows, place = start * this.columns;
    const integers = this.integers.subarray(place, place + rows * this.columns);
    return new QuantizedMatrix(rows, this.columns, integers, this.scales.subarray(start, start + rows));
  }
}

// x @ weight.T + bias.
const linear = (x, weight, bias) => {
  const { rows: outputs, columns: inputs, integers, scales } = weight, { rows, numbers } = x;
  const out = new Matrix(rows, outputs), result = out.numbers;
  let token = 0;
  // Four tokens at a time, so that a weight is read once for all of them.
  for (; token + 4 <= rows; token += 4) {
    const first = token * inputs, second = first + inputs, third = second + inputs, fourth = third + inputs;
    for (let output = 0; output < outputs; output++) {
      const start = output * inputs, added = bias ? bias[output] : 0, scale = scales[output];
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < inputs; i++) {
        const integer = integers[start + i];
        a += integer * numbers[first + i];
        b += integer * numbers[second + i];
        c += integer * numbers[third + i];
        d += integer * numbers[fourth + i];
      }
      const place = token * outputs + output;
      result[place] = a * scale + added;
      result[place + outputs] = b * scale + added;
      result[place + 2 * outputs] = c * scale + added;
      result[place + 3 * outputs] = d * scale + added;
    }
  }
  for (; token < rows; token++) {
    const first = token * inputs;
    for (let output = 0; output < outputs; output++) {
      const start = output * inputs, end = inputs - (inputs % 4);
      let a = 0, b = 0, c = 0, d = 0, i = 0;
      for (; i < end; i += 4) {
        a += integers[start + i] * numbers[first + i];
        b += integers[start + i + 1] * numbers[first + i + 1];
        c += integers[start + i + 2] * numbers[first + i + 2];
        d += integers[start + i + 3] * numbers[first + i + 3];
      }
      for (; i < inputs; i++) a += integers[start + i] * numbers[first + i];
      result[token * outputs + output] = (a + b + c + d) * scales[output] + (bias ? bias[output] : 0);
    }
  }
  return out;
};

const add = (a, b) => new Matrix(a.rows, a.columns, a.numbers.map((number, i) => number + b.numbers[i]));

// (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016, equation 4).
const layerNorm = (x, { weight, bias, eps }) => {
  const { rows, columns, numbers } = x, out = new Matrix(rows, columns);
  for (let start = 0; start < numbers.length; start += columns) {
    let mean = 0, variance = 0;
    for (let i = 0; i < columns; i++) mean += numbers[start + i];
    mean /= columns;
    for (let i = 0; i < columns; i++) variance += (numbers[start + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / columns + eps);
    for (let i = 0; i < columns; i++) out.numbers[start + i] = (numbers[start + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
  return out;
};

// x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, equation 4).
const rmsNorm = (x, { weight, eps }) => {
  const { rows, numbers } = x, columns = weight.length, out = new Matrix(rows, x.columns);
  for (let start = 0; start < numbers.length; start += columns) {
    let square = 0;
    for (let i = 0; i < columns; i++) square += numbers[start + i] ** 2;
    const scale = 1 / Math.sqrt(square / columns + eps);
    for (let i = 0; i < columns; i++) out.numbers[start + i] = numbers[start + i] * scale * weight[i];
  }
  return out;
};

const NORMS = { layer: layerNorm, rms: rmsNorm };

// The error function, by a rational approximation within 1.2e-7 (Press et al. 1992, Numerical Recipes, section 6.2).
const erf = (x) => {
  const z = Math.abs(x), t = 1 / (1 + 0.5 * z);
  const coefficients = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223];
  const rest = t * Math.exp(-z * z + coefficients.reduce((sum, coefficient) => sum * t + coefficient, 0));
  return x >= 0 ? 1 - rest : rest - 1;
};

const ACTIVATIONS = {
  relu: (x) => Math.max(x, 0),
  quick_gelu: (x) => x / (1 + Math.exp(-1.702 * x)),
  relu_squared: (x) => Math.max(x, 0) ** 2,
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  silu: (x) => x / (1 + Math.exp(-x)),
  tanh: Math.tanh,
};

const activate = (x, name) => new Matrix(x.rows, x.columns, x.numbers.map(ACTIVATIONS[name]));

// Probabilities of scores, which may be -Infinity; their largest is subtracted so that nothing overflows.
const softmax = (scores) => {
  const largest = scores.reduce((best, score) => Math.max(best, score), -Infinity);
  const powers = Float32Array.from(scores, (score) => Math.exp(score - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
};
