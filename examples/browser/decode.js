// Decodes .q2d files in the browser: q2d.js reads them, onnxruntime-web runs a model's decoder.onnx.

import { readContext } from "./context.js";
import { readMetadata, readQ2d } from "./q2d.js";

let decoder = null; // { session, metadata }
let context = null; // for entropy-coded files

/**
 * Load a decoder that `q2d2 export --onnx` wrote.
 *
 * @param {object} ort The module onnxruntime-web.
 * @param {Uint8Array} bytes The file.
 */
export async function loadDecoder(ort, bytes) {
  const metadata = metadataOf(bytes);
  if (metadata.get("part") !== "decoder") throw new Error("is not the decoder.onnx of a model");
  ort.env.wasm.numThreads = 1; // more need headers that most servers do not send
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  decoder = { ort, session, metadata };
}

/**
 * Load the context model that `q2d2 export --onnx` put beside the decoder.
 *
 * @param {Uint8Array} bytes The file.
 */
export async function loadContext(bytes) {
  context = await readContext(bytes);
}

function metadataOf(bytes) {
  try {
    return readMetadata(bytes);
  } catch {
    return new Map(); // no ONNX file
  }
}

/**
 * Decode a .q2d file, all of it at once.
 *
 * @param {Uint8Array} bytes The file.
 * @returns {Promise<{rate: number, channels: Float32Array[], header: object}>} Audio at the model's rate, as long as the
 *     original was; a player converts the rate.
 */
export async function decodeQ2d(bytes) {
  const { header, channels, frames } = readQ2d(bytes, context);
  if (decoder === null) throw new Error("cannot be decoded yet: choose a model's decoder.onnx first");
  const { ort, session, metadata } = decoder;
  if (metadata.get("fingerprint") !== header.fingerprint) {
    throw new Error(
      `was encoded with ${header.model}, weights ${header.fingerprint}, and the decoder is of ` +
        `${metadata.get("model")}, weights ${metadata.get("fingerprint")}: choose the other one`,
    );
  }
  const length = Math.round((header.numSamples * header.sampleRate) / header.originalRate);
  const audio = [];
  for (const indices of channels) {
    const shape = [frames, header.sizes.length];
    const input = new ort.Tensor("int64", BigInt64Array.from(indices, BigInt), shape);
    const output = frames ? (await session.run({ indices: input })).audio.data : new Float32Array(0);
    audio.push(output.slice(0, length));
  }
  return { rate: header.sampleRate, channels: audio, header };
}

/**
 * A WAV file of 16 bits.
 *
 * @param {Float32Array[]} channels Audio.
 * @param {number} rate Its rate, Hz.
 * @returns {Blob} The file.
 */
export function wav(channels, rate) {
  const [count, length] = [channels.length, channels[0].length];
  const view = new DataView(new ArrayBuffer(44 + 2 * count * length));
  const text = (at, letters) => [...letters].forEach((letter, place) => view.setUint8(at + place, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  [16, 1, count].forEach((value, place) => view.setUint16([16, 20, 22][place], value, true));
  [rate, 2 * count * rate].forEach((value, place) => view.setUint32(24 + 4 * place, value, true));
  [2 * count, 16].forEach((value, place) => view.setUint16(32 + 2 * place, value, true));
  text(36, "data");
  view.setUint32(40, 2 * count * length, true);
  for (let sample = 0; sample < length; sample++) {
    for (let channel = 0; channel < count; channel++) {
      const value = Math.max(-1, Math.min(1, channels[channel][sample]));
      view.setInt16(44 + 2 * (sample * count + channel), Math.round(value * 32767), true);
    }
  }
  return new Blob([view], { type: "audio/wav" });
}
