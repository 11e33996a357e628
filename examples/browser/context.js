// Entropy-coded blocks of .q2d files (docs/entropy-coding.md): range decoder and context models in whole numbers.

const FORMAT = "q2d2 context model 1";
const TYPES = { I8: Int8Array, I32: Int32Array, U16: Uint16Array };
const [WORD, FULL] = [1n << 32n, (1n << 64n) - 1n];

// counts[k]: the largest whole number whose 64th power is not above 2 ** (1024 - k).
const COUNTS = Float64Array.from({ length: 1025 }, (_, k) => {
  let count = Math.floor(2 ** (16 - k / 64)) + 2;
  while (BigInt(count) ** 64n > 1n << BigInt(1024 - k)) count--;
  return count;
});

/**
 * Read a context model.
 *
 * @param {Uint8Array} bytes The file: a model's context.safetensors.
 * @returns {Promise<{fingerprint: string, sizes: number[], begin: function(): object}>} What `readQ2d` wants of it.
 * @throws {Error} If it is none; the message goes on behind the file's name.
 */
export async function readContext(bytes) {
  if (!globalThis.crypto?.subtle) throw new Error("cannot be checked: open this page by https or from localhost");
  const { tensors, metadata } = readSafetensors(bytes);
  if (metadata.format !== FORMAT) throw new Error(`is not a ${FORMAT}`);
  const Model = metadata.kind === "recurrent" ? Recurrent : Tables;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const fingerprint = [...digest.subarray(0, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const names = [...tensors.keys()].filter((name) => /^(out|table)\.\d+$/.test(name));
  const sizes = names.map((_, pair) => (tensors.get(`out.${pair}`) ?? tensors.get(`table.${pair}`)).columns);
  return { fingerprint, sizes, begin: () => new Model(tensors, sizes) };
}

function readSafetensors(bytes) {
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = 8 + Number(view.getBigUint64(0, true));
    const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    const tensors = new Map();
    for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
      const [begin, end] = offsets.map((offset) => start + offset);
      const values = Int32Array.from(new TYPES[dtype](bytes.slice(begin, end).buffer));
      if (values.length !== shape.reduce((product, size) => product * size, 1)) throw new Error("shape");
      tensors.set(name, { values, columns: shape[shape.length - 1], rows: shape.length > 1 ? shape[0] : 1 });
    }
    return { tensors, metadata };
  } catch {
    throw new Error("is damaged, or not safetensors");
  }
}

// sums += factor * (row @ matrix)
function addProduct(sums, row, matrix, factor = 1) {
  const { values, columns } = matrix;
  for (let i = 0; i < row.length; i++) {
    const value = factor * row[i];
    if (value === 0) continue;
    for (let j = 0, at = i * columns; j < columns; j++, at++) sums[j] += value * values[at];
  }
}

function clip(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// The recurrent network's state for one channel of a block.
class Recurrent {
  constructor(tensors, sizes) {
    this.tensors = tensors;
    this.sizes = sizes;
    this.state = new Int32Array(tensors.get("recurrent").rows);
    this.before = [...sizes];
    this.now = [];
  }

  embedding(pair, index) {
    const { values, columns } = this.tensors.get(`embedding.${pair}`);
    return values.subarray(index * columns, (index + 1) * columns);
  }

  step() {
    const { tensors, state } = this;
    const sums = Float64Array.from(tensors.get("recurrent_bias").values);
    addProduct(sums, state, tensors.get("recurrent"));
    this.before.forEach((index, j) => addProduct(sums, this.embedding(j, index), tensors.get(`input.${j}`), 32));
    for (let i = 0; i < state.length; i++) {
      const gate = clip((sums[i] >> 11) + 128, 0, 256);
      const change = clip(sums[state.length + i] >> 7, -1024, 1024);
      state[i] += (gate * (change - state[i]) + 128) >> 8;
    }
  }

  counts(pair) {
    if (pair === 0) this.step();
    const { tensors } = this;
    const hidden = Float64Array.from(tensors.get(`hidden_bias.${pair}`).values);
    addProduct(hidden, this.state, tensors.get(`hidden.${pair}`));
    this.now.forEach((index, k) => addProduct(hidden, this.embedding(k, index), tensors.get(`within.${pair}.${k}`), 32));
    const logits = Float64Array.from(tensors.get(`out_bias.${pair}`).values);
    addProduct(logits, hidden.map((value) => clip(value >> 9, 0, 256)), tensors.get(`out.${pair}`));
    const largest = logits.reduce((a, b) => Math.max(a, b));
    return logits.map((logit) => COUNTS[Math.min((largest - logit) >> 6, 1024)]);
  }

  take(index) {
    this.now.push(index);
    if (this.now.length === this.sizes.length) [this.before, this.now] = [this.now, []];
  }
}

// The state of static or adaptive tables for one channel of a block.
class Tables {
  constructor(tensors, sizes) {
    this.tensors = tensors;
    this.step = tensors.get("step").values[0];
    this.before = [...sizes];
    this.added = sizes.map((size) => new Int32Array(size));
    this.pair = 0;
  }

  counts(pair) {
    const { values, columns } = this.tensors.get(`table.${pair}`);
    return Float64Array.from(this.added[pair], (added, i) => added + values[this.before[pair] * columns + i]);
  }

  take(index) {
    const added = this.added[this.pair];
    added[index] += this.step;
    if (added.reduce((a, b) => a + b) > 2 ** 15) added.forEach((count, i) => (added[i] = count >> 1));
    this.before[this.pair] = index;
    this.pair = (this.pair + 1) % this.before.length;
  }
}

/**
 * Decode a block.
 *
 * @param {Uint8Array} bytes What the coder wrote.
 * @param {number} frames How many there are.
 * @param {number} channels Which take turns after each index.
 * @param {object} context What `readContext` gave.
 * @returns {Int32Array[]} For each channel `frames * pairs` indices.
 * @throws {Error} If the bytes are none that a coder writes.
 */
export function decodeBlock(bytes, frames, channels, context) {
  let at = 0;
  const word = () => {
    at += 4;
    return BigInt([4, 3, 2, 1].reduce((number, back) => number * 256 + (bytes[at - back] ?? 0), 0));
  };
  let code = (word() << 32n) | word();
  let range = FULL;
  const pairs = context.sizes.length;
  const states = Array.from({ length: channels }, context.begin);
  const found = states.map(() => new Int32Array(frames * pairs));
  for (let place = 0; place < frames * pairs; place++) {
    for (let channel = 0; channel < channels; channel++) {
      const counts = states[channel].counts(place % pairs);
      const total = BigInt(counts.reduce((a, b) => a + b));
      const unit = range / total;
      const wanted = code / unit < total ? Number(code / unit) : Number(total) - 1;
      let [index, start] = [0, 0];
      while (wanted >= start + counts[index]) start += counts[index++];
      code -= BigInt(start) * unit;
      range = BigInt(counts[index]) * unit;
      if (range < WORD) {
        code = (code << 32n) | word();
        range <<= 32n;
      }
      found[channel][place] = index;
      states[channel].take(index);
    }
  }
  if (bytes.length > at || bytes[bytes.length - 1] === 0) {
    throw new Error("is damaged: an entropy-coded block has more bytes than it needs");
  }
  return found;
}
