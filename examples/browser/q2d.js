// Reads .q2d files (docs/format.md, version 2) with packed or entropy-coded payloads: bytes in, pair indices out.

import { decodeBlock } from "./context.js";

const MAGIC = [0x89, 0x51, 0x32, 0x44, 0x0d, 0x0a, 0x1a, 0x0a];
const KINDS = ["rectangular", "rhombic", "hexagonal", "fsq", "vq", "rvq", "body-centred", "d4", "e8"];
const RATES = [0, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000];
const [ROBUST, CODED] = [1, 2];
const MAX_PAYLOAD = 2 ** 24 - 1; // bytes of a block

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

class Bytes {
  // A position in bytes; what is behind their end is an error.
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.at = at;
  }

  take(count) {
    if (this.at + count > this.bytes.length) throw new Error("is truncated");
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  u8() {
    return this.take(1)[0];
  }

  u32() {
    const [a, b, c, d] = this.take(4);
    return (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
  }

  varint() {
    let value = 0n;
    for (let place = 0n; place < 70n; place += 7n) {
      const byte = this.u8();
      value |= BigInt(byte & 127) << place;
      if (byte < 128) {
        if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error("holds a number that is too large for this reader");
        return Number(value);
      }
    }
    throw new Error("is damaged: a number does not end");
  }
}

function check(sound, fault) {
  if (!sound) throw new Error(fault);
}

function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function readHeader(file) {
  check(MAGIC.every((byte, place) => file.bytes[place] === byte), "is not a .q2d file");
  file.at = MAGIC.length;
  const major = file.u8();
  check(major === 2, `has version ${major} of the format: this reader knows version 2`);
  file.u8();
  const length = file.varint();
  const end = file.at + length;
  const crc = new Bytes(file.bytes, end).u32();
  check(crc32(file.bytes.subarray(0, end)) === crc, "is damaged: the header's checksum does not match");
  const kinds = file.u8();
  const header = { kind: KINDS[kinds & 15], payload: (kinds >> 4) & 7, levels: [] };
  check(header.kind && header.payload <= CODED, "has a quantizer or payload that this reader does not know");
  const count = file.varint();
  while (header.levels.length < count) {
    const level = file.varint();
    for (let times = file.varint(); times > 0; times--) header.levels.push(level);
    check(header.levels.length <= 255, "is damaged: too many levels");
  }
  header.hop = file.varint();
  header.channels = file.varint();
  const codes = file.u8();
  [header.sampleRate, header.originalRate] = [codes & 15, codes >> 4].map((code) => RATES[code] || file.varint());
  header.framesPerBlock = file.varint();
  const samples = file.varint();
  header.numSamples = samples ? samples - 1 : null;
  header.fingerprint = hex(file.take(8));
  header.model = new TextDecoder().decode(file.take(file.varint()));
  header.context = header.payload === CODED ? hex(file.take(8)) : null;
  header.sizes = sizes(header.kind, header.levels);
  file.at = end + 4;
  return header;
}

// How many values each of a frame's indices has.
function sizes(kind, levels) {
  check(["rectangular", "rhombic", "hexagonal"].includes(kind), `has the quantizer ${kind}: this reader knows grids`);
  const found = [];
  for (let j = 0; j < levels.length; j += 2) {
    const [a, b] = levels.slice(j, j + 2);
    found.push(kind === "hexagonal" ? a * a : a * b + (kind === "rhombic" ? (a - 1) * (b - 1) : 0));
  }
  return found;
}

function bits(numbers) {
  return numbers > 1n ? (numbers - 1n).toString(2).length : 0;
}

// Frames that share one number: as many as cost the fewest bits each.
function groupSize(codebook) {
  let [best, width] = [1, bits(codebook)];
  for (let k = 2; bits(codebook ** BigInt(k)) <= 128; k++) {
    const wider = bits(codebook ** BigInt(k));
    if (wider * best < width * k) [best, width] = [k, wider];
  }
  return best;
}

// `bytes` of one channel to `frames * pairs` indices.
function unpack(bytes, frames, sizes, group) {
  const found = new Int32Array(frames * sizes.length);
  const codebook = sizes.reduce((product, size) => product * BigInt(size), 1n);
  let [bit, place] = [0, 0];
  for (let frame = 0; frame < frames; frame += group) {
    const count = Math.min(group, frames - frame);
    const width = bits(codebook ** BigInt(count));
    let number = 0n;
    for (let byte = (bit + width - 1) >> 3; byte >= bit >> 3; byte--) number = (number << 8n) | BigInt(bytes[byte]);
    number = (number >> BigInt(bit & 7)) & ((1n << BigInt(width)) - 1n);
    bit += width;
    for (let one = 0; one < count; one++) {
      for (const size of sizes) {
        found[place++] = Number(number % BigInt(size));
        number /= BigInt(size);
      }
    }
    check(number === 0n, "is damaged: a number lies outside the codebook");
  }
  return found;
}

function checkContext(header, context) {
  check(
    context?.fingerprint === header.context,
    `is entropy coded with the context model ${header.context} of ${header.model}: choose that model's ` +
      `context.safetensors${context ? `; the one chosen is ${context.fingerprint}` : ""}`,
  );
  check(String(context.sizes) === String(header.sizes), "has a header that contradicts its context model");
}

/**
 * Read a .q2d file.
 *
 * @param {Uint8Array} bytes The whole file.
 * @param {object} [context] The context model that an entropy-coded file names, as `readContext` gives it.
 * @returns {{header: object, channels: Int32Array[], frames: number}} For each channel `frames * pairs` indices, frame
 *     by frame; `header.numSamples` is never null.
 * @throws {Error} If it is damaged, or of a kind that is not read here; the message goes on behind the file's name.
 */
export function readQ2d(bytes, context = null) {
  const file = new Bytes(bytes);
  const header = readHeader(file);
  check(header.payload !== ROBUST, "has a robust payload: this page reads the others (q2d2 encode without --robust)");
  const codebook = header.sizes.reduce((product, size) => product * BigInt(size), 1n);
  const group = groupSize(codebook);
  const pieces = Array.from({ length: header.channels }, () => []);
  let [blocks, frames, short] = [0, 0, false];
  for (;;) {
    const start = file.at;
    const type = file.u8();
    const number = file.varint();
    const payload = new Bytes(file.take(file.varint()));
    const sound = crc32(bytes.subarray(start, file.at)) === file.u32();
    check(sound, `is damaged: block ${number} has a wrong checksum`);
    if (type === 0x20) {
      check(number === blocks, "is damaged: blocks are missing");
      if (payload.bytes.length) header.numSamples = payload.varint();
      break;
    }
    if (type >= 0x80) continue; // parity, tags, and what may come
    check(type >= 0x10 && type <= 0x13, "has a block that this reader does not know");
    check(number === blocks++ && !short, "is damaged: blocks are missing");
    const coded = header.payload === CODED && !(type & 2);
    if (coded) checkContext(header, context);
    short = Boolean(type & 1);
    const count = short ? payload.varint() : header.framesPerBlock;
    const rest = bits(codebook ** BigInt(count % group));
    const size = Math.ceil((Math.floor(count / group) * bits(codebook ** BigInt(group)) + rest) / 8);
    check(size * header.channels <= MAX_PAYLOAD, "is damaged: a block is larger than a block can be");
    if (coded) {
      const rest = payload.take(payload.bytes.length - payload.at);
      check(rest.length <= size * header.channels, "is damaged: a block is too long");
      decodeBlock(rest, count, header.channels, context).forEach((found, channel) => pieces[channel].push(found));
    } else {
      for (const channel of pieces) channel.push(unpack(payload.take(size), count, header.sizes, group));
    }
    check(payload.at === payload.bytes.length, "is damaged: a block is too long");
    frames += count;
  }
  check(file.at === bytes.length, "is damaged: something follows its end");
  check(header.numSamples !== null, "is damaged: it does not say how long it is");
  const wanted = Math.ceil((header.numSamples * header.sampleRate) / (header.originalRate * header.hop));
  check(wanted === frames, "is damaged: its length is not that of its frames");
  const channels = pieces.map((parts) => {
    const joined = new Int32Array(frames * header.sizes.length);
    let place = 0;
    for (const part of parts) {
      joined.set(part, place);
      place += part.length;
    }
    return joined;
  });
  return { header, channels, frames };
}

/**
 * What an ONNX file says of itself.
 *
 * @param {Uint8Array} bytes The whole file.
 * @returns {Map<string, string>} Its metadata.
 */
export function readMetadata(bytes) {
  const found = new Map();
  for (const [field, value] of fields(bytes)) {
    if (field !== 14) continue;
    const [key, text] = [...fields(value)].map(([, part]) => new TextDecoder().decode(part));
    found.set(key, text);
  }
  return found;
}

// The fields of a message of Protocol Buffers, those that are numbers left out.
function* fields(bytes) {
  const message = new Bytes(bytes);
  while (message.at < bytes.length) {
    const tag = message.varint();
    const kind = tag & 7;
    if (kind === 0) message.varint();
    else if (kind === 2) yield [tag >> 3, message.take(message.varint())];
    else message.take(kind === 1 ? 8 : 4);
  }
}
