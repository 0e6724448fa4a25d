// Classifies the digits images with a converted and exported model in Node.
//
//   node classify_digits.mjs MODEL IMAGES LABELS
//
// IMAGES holds float32 rows of 64 pixels, LABELS an int64 for each.
import { readFileSync } from "node:fs";
import { InferenceSession, Tensor } from "onnxruntime-node";

const PIXELS = 64;
const CLASSES = 10;

const [model, imagesPath, labelsPath] = process.argv.slice(2);
const values = (path) => Uint8Array.from(readFileSync(path)).buffer;
const images = new Float32Array(values(imagesPath));
const labels = new BigInt64Array(values(labelsPath));

const session = await InferenceSession.create(model);
const feeds = { image: new Tensor("float32", images, [labels.length, PIXELS]) };
const { logits } = await session.run(feeds);

let right = 0;
labels.forEach((label, row) => {
  const scores = logits.data.subarray(row * CLASSES, (row + 1) * CLASSES);
  if (scores.indexOf(Math.max(...scores)) === Number(label)) right += 1;
});
console.log(`${right} of ${labels.length} images right`);
