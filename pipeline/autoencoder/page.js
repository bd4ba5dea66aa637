// Shared by the pages: what page.py packed, the network, pictures, and a canvas to draw a digit on.
const COLORS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"];
const N_PIXELS = 784;
const $ = (id) => document.getElementById(id);

// Return the head, and a function that takes the next array.
async function unpack() {
  const bytes = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(unzipped).arrayBuffer();
  let offset = 4 + new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, offset - 4)));
  const take = (Type, n) => {
    offset = Math.ceil(offset / 4) * 4;
    const array = new Type(buffer, offset, n);
    offset += array.byteLength;
    return array;
  };
  return { head, take };
}

// ---------- The network ----------
function takeLayers(take, shapes) {
  return shapes.map(([nOut, nIn]) => {
    const [scales, bias, gain, shift] = Array.from({ length: 4 }, () => take(Float32Array, nOut));
    const small = take(Int8Array, nOut * nIn);
    const weights = new Float32Array(small.length);
    for (let i = 0; i < small.length; i++) weights[i] = small[i] * scales[Math.floor(i / nIn)];
    return { weights, bias, gain, shift, nIn, nOut };
  });
}
function run(layers, x) {
  layers.forEach((layer, number) => {
    const y = new Float32Array(layer.nOut), isLast = number === layers.length - 1;
    for (let o = 0, w = 0; o < layer.nOut; o++) {
      let sum = layer.bias[o];
      for (let i = 0; i < layer.nIn; i++, w++) sum += layer.weights[w] * x[i];
      y[o] = isLast ? sum : layer.gain[o] * Math.max(sum, 0) + layer.shift[o];
    }
    x = y;
  });
  return x;
}
const clip = (pixels) => pixels.map((value) => Math.min(Math.max(value, 0), 1));
const mse = (a, b) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / a.length;
const imageAt = (images, n) => Float32Array.from(images.subarray(n * N_PIXELS, (n + 1) * N_PIXELS), (v) => v / 255);

// ---------- Pictures: black ink on white ----------
function paint(canvas, pixels) {
  const image = new ImageData(28, 28);
  pixels.forEach((value, i) => image.data.set([255 * (1 - value), 255 * (1 - value), 255 * (1 - value), 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}
function picture(pixels, className = "image small") {
  const canvas = Object.assign(document.createElement("canvas"), { width: 28, height: 28, className });
  paint(canvas, pixels);
  return canvas;
}

// ---------- A canvas #drawing of 224 × 224 pixels to draw a digit on, with #centre and #clear ----------
const pen = { last: null };
function clearDrawing() {
  const context = $("drawing").getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, 224, 224);
}
function stroke(event) {
  const box = $("drawing").getBoundingClientRect(), context = $("drawing").getContext("2d", { willReadFrequently: true });
  const at = [(event.clientX - box.left) / box.width * 224, (event.clientY - box.top) / box.height * 224];
  context.lineWidth = 18;
  context.lineCap = "round";
  context.strokeStyle = "#000";
  context.beginPath();
  context.moveTo(...(pen.last || at));
  context.lineTo(at[0] + 0.01, at[1]);
  context.stroke();
  pen.last = at;
}
// MNIST's digits fill 20 × 20 pixels, and their centre of mass is in the middle.
function drawnPixels() {
  const ink = $("drawing").getContext("2d").getImageData(0, 0, 224, 224).data;
  let [left, top, right, bottom] = [224, 224, -1, -1];
  for (let i = 0; i < 224 * 224; i++) {
    if (ink[4 * i] > 200) continue;
    [left, right] = [Math.min(left, i % 224), Math.max(right, i % 224)];
    [top, bottom] = [Math.min(top, Math.floor(i / 224)), Math.max(bottom, Math.floor(i / 224))];
  }
  if (right < 0) return null;
  const shrink = (x, y, width, height, dx, dy) => {
    const small = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
    const context = small.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, 28, 28);
    context.imageSmoothingQuality = "high";
    const longest = Math.max(width, height) / 20;
    if ($("centre").checked) context.drawImage($("drawing"), x, y, width, height, dx, dy, width / longest, height / longest);
    else context.drawImage($("drawing"), 0, 0, 28, 28);
    const { data } = context.getImageData(0, 0, 28, 28);
    return Float32Array.from({ length: N_PIXELS }, (_, i) => 1 - data[4 * i] / 255);
  };
  const box = [left, top, right - left + 1, bottom - top + 1];
  const first = shrink(...box, 4, 4);
  if (!$("centre").checked) return first;
  const total = first.reduce((sum, value) => sum + value, 0);
  const mass = (position) => first.reduce((sum, value, i) => sum + value * position(i), 0) / total;
  return shrink(...box, 4 + 13.5 - mass((i) => i % 28), 4 + 13.5 - mass((i) => Math.floor(i / 28)));
}
// Call `onChange` with the drawn image, or with null after it was cleared.
function listenToDrawing(onChange) {
  const drawing = $("drawing");
  drawing.onpointerdown = (event) => {
    drawing.setPointerCapture(event.pointerId);
    pen.last = null;
    stroke(event);
    onChange(drawnPixels());
  };
  drawing.onpointermove = (event) => {
    if (!event.buttons) return;
    stroke(event);
    onChange(drawnPixels());
  };
  $("centre").onchange = () => onChange(drawnPixels());
  $("clear").onclick = () => { clearDrawing(); onChange(null); };
  clearDrawing();
}
