// Make the person in JPEGs speak a WAV file: node main.js FRAMES SPEECH.wav --out FOLDER, where FRAMES is a folder or one JPEG.
//
// Plain gRPC to a Triton Inference Server, with stubs that `npm run build` makes from open_inference_grpc.proto.

import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { GRPCInferenceService } from "./generated/open_inference_grpc_pb.js";

const RATE_HZ = 16_000;
const WINDOW = 6_400; // samples in a frame's audio window: 280 ms before its time, 120 ms after
const BEFORE = 4_480;
const REGISTRATION_FRAMES = 16;
const RESPONSE_TIMEOUT_MS = 30_000; // without any response for so long, the server counts as dead
const USAGE = `usage: node main.js FRAMES SPEECH.wav --out FOLDER [--server HOST:PORT] [--twin ID] [--fps 25] [--in-flight 4]

FRAMES: a folder of JPEGs, one per frame in the order of their names, or one JPEG that is repeated for the whole speech
SPEECH.wav: 16,000 Hz, mono, 16 bits
--twin: id from an earlier run; without it, the person in FRAMES is registered first`;

class UserError extends Error {} // an error that the user can fix

// Read the samples of a WAV file, in [-1, 1].
function readWav(file, name) {
  const wanted = "it must be a WAV file of 16,000 Hz, mono, 16 bits; convert it with ffmpeg -i IN -ar 16000 -ac 1 -c:a pcm_s16le OUT.wav";
  if (file.length < 12 || file.toString("latin1", 0, 4) !== "RIFF" || file.toString("latin1", 8, 12) !== "WAVE") {
    throw new UserError(`${name} is not a WAV file; ${wanted}`);
  }
  let format = "of an unknown format";
  for (let at = 12; at + 8 <= file.length; ) {
    const [kind, size, start] = [file.toString("latin1", at, at + 4), file.readUInt32LE(at + 4), at + 8];
    if (kind === "fmt ") {
      const [code, channels, rate] = [file.readUInt16LE(start), file.readUInt16LE(start + 2), file.readUInt32LE(start + 4)];
      format = `${rate} Hz, ${channels} channels, ${file.readUInt16LE(start + 14)} bits, format ${code}`;
    } else if (kind === "data") {
      if (format !== `${RATE_HZ} Hz, 1 channels, 16 bits, format 1`) throw new UserError(`${name} is ${format}; ${wanted}`);
      const count = Math.floor(Math.min(size, file.length - start) / 2);
      return Float32Array.from({ length: count }, (_, k) => file.readInt16LE(start + 2 * k) / 32_768);
    }
    at = start + size + (size % 2);
  }
  throw new UserError(`${name} has no samples; ${wanted}`);
}

// List the paths of the frames, one per frame.
async function listFrames(source, seconds, fps) {
  if ((await stat(source)).isFile()) return Array(Math.max(1, Math.round(seconds * fps))).fill(source);
  const names = (await readdir(source)).filter((name) => /\.jpe?g$/i.test(name)).sort();
  if (!names.length) throw new UserError(`${source} has no .jpg; it must be a folder of JPEGs, or one JPEG`);
  return names.map((name) => path.join(source, name));
}

// Return the audio window of the frame at this time, with silence before the speech and after it.
function windowAt(speech, seconds) {
  const first = Math.round(seconds * RATE_HZ) - BEFORE;
  const window = new Float32Array(WINDOW);
  window.set(speech.subarray(Math.max(0, first), Math.max(0, first + WINDOW)), Math.max(0, -first));
  return window;
}

const floats = (values) => Buffer.from(Float32Array.from(values).buffer); // little-endian, like all common machines

// Encode a tensor of strings: each is preceded by its length.
function strings(values) {
  const length = (value) => Buffer.from(Uint32Array.of(value.length).buffer);
  return Buffer.concat(values.flatMap((value) => [length(value), value]));
}

// Make a request, from [name, type, shape, bytes] of each input.
function request(modelName, tensors, outputs, id = "") {
  return {
    modelName,
    id,
    inputs: tensors.map(([name, datatype, shape]) => ({ name, datatype, shape: shape.map(BigInt) })),
    rawInputContents: tensors.map(([, , , bytes]) => bytes),
    outputs: outputs.map((name) => ({ name })),
  };
}

// Return a response's bytes by the name of the output.
function outputsOf(response) {
  return Object.fromEntries(response.outputs.map((output, k) => [output.name, Buffer.from(response.rawOutputContents[k])]));
}

async function register(client, paths) {
  const count = Math.min(REGISTRATION_FRAMES, new Set(paths).size);
  const chosen = Array.from({ length: count }, (_, k) => paths[Math.floor((k * paths.length) / count)]);
  const frames = strings(await Promise.all(chosen.map((name) => readFile(name))));
  const message = request("lipsync_twin", [["FRAMES", "BYTES", [count], frames]], ["TWIN"]);
  return outputsOf(await client.modelInfer(message, { timeoutMs: 120_000 })).TWIN.toString();
}

// Stream every frame, and write the synced frames as they arrive. At most `inFlight` frames are in flight.
async function sync(client, twin, paths, speech, fps, inFlight, out) {
  let sent = 0;
  let received = 0;
  let failure;
  let hint = [0, 0, 0, 0]; // box of the last face found, so that the server need not search for it
  let wake = () => {};

  async function* requests() {
    for (; sent < paths.length && !failure; sent++) {
      // The first frame is sent alone, because its response is the hint for the others.
      while (sent - received >= (received ? inFlight : 1)) await new Promise((resolve) => (wake = resolve));
      if (failure) return;
      const frame = await readFile(paths[sent]);
      const tensors = [
        ["FRAME", "UINT8", [1, frame.length], frame],
        ["AUDIO", "FP32", [1, WINDOW], floats(windowAt(speech, sent / fps))],
        ["TWIN", "BYTES", [1, 1], strings([Buffer.from(twin)])],
        ["FACE_HINT", "FP32", [1, 4], floats(hint)],
      ];
      yield request("lipsync", tensors, ["SYNCED", "FACE"], String(sent));
    }
  }

  const timeout = new AbortController();
  const limit = setTimeout(() => timeout.abort(new UserError(`no response within ${RESPONSE_TIMEOUT_MS / 1000} s`)), RESPONSE_TIMEOUT_MS);
  for await (const { errorMessage, inferResponse } of client.modelStreamInfer(requests(), { signal: timeout.signal })) {
    limit.refresh();
    received++;
    if (errorMessage) {
      failure ??= new UserError(errorMessage); // wait for the frames in flight, then end the stream
    } else {
      const { SYNCED, FACE } = outputsOf(inferResponse);
      hint = [0, 4, 8, 12].map((at) => FACE.readFloatLE(at));
      await writeFile(path.join(out, `${inferResponse.id.padStart(5, "0")}.jpg`), SYNCED);
    }
    wake();
  }
  if (failure) throw failure;
  if (received < paths.length) throw new UserError(`the stream ended after ${received} of ${paths.length} frames`);
}

async function main() {
  const text = { type: "string" };
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      out: text,
      server: { ...text, default: "127.0.0.1:8001" },
      twin: text,
      fps: { ...text, default: "25" },
      "in-flight": { ...text, default: "4" },
    },
  });
  const [fps, inFlight] = [Number(values.fps), Number(values["in-flight"])];
  if (positionals.length !== 2 || !values.out) throw new UserError(USAGE);
  if (!(fps > 0)) throw new UserError(`--fps is ${values.fps}; it must be a number above 0`);
  if (!(inFlight >= 1)) throw new UserError(`--in-flight is ${values["in-flight"]}; it must be 1 or more`);
  const speech = readWav(await readFile(positionals[1]), positionals[1]);
  const paths = await listFrames(positionals[0], speech.length / RATE_HZ, fps);
  await mkdir(values.out, { recursive: true });

  const client = createClient(GRPCInferenceService, createGrpcTransport({ baseUrl: `http://${values.server}` })); // https:// for TLS
  const limit = { timeoutMs: 5_000 };
  const { ready } = await client.serverReady({}, limit);
  for (const name of ["lipsync_twin", "lipsync"]) {
    if (!ready || !(await client.modelReady({ name }, limit)).ready) {
      throw new UserError(`${values.server} responds, but its model ${name} is not ready; try again later, or use another server`);
    }
  }
  const twin = values.twin ?? (await register(client, paths));
  console.log(`twin ${twin}`);
  await sync(client, twin, paths, speech, fps, inFlight, values.out);
  console.log(`${paths.length} frames in ${values.out}`);
}

main().then(
  () => process.exit(0),
  (error) => {
    const text = error instanceof ConnectError ? `${error.rawMessage} (gRPC: ${Code[error.code]})` : error.message;
    console.error(`main.js: ${text}`);
    process.exit(1);
  },
);
