// Preprocessing and decoding of a bundle's model in the browser: the same integers and the same rules as yolo_mkd/edge.

const FIXED = 2048; // weights have 11 bits, as in OpenCV
const GREY = 114;
const [NMS_IOU, MAX_DET] = [0.7, 300];

function roundHalfEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

// Height, width, top and left margin of a picture in its letterbox
export function placement({ height, width }, imgsz) {
  const gain = Math.min(imgsz[0] / height, imgsz[1] / width);
  const [h, w] = [height, width].map((side) => Math.max(roundHalfEven(side * gain), 1));
  return [h, w, roundHalfEven((imgsz[0] - h) / 2 - 0.1), roundHalfEven((imgsz[1] - w) / 2 - 0.1)];
}

// The two source pixels of each pixel along one side, and the second one's weight
function neighbours(size, wanted) {
  return Array.from({ length: wanted }, (_, i) => {
    const place = Math.fround((i + 0.5) * (size / wanted) - 0.5);
    const first = Math.floor(place);
    const weight = roundHalfEven(Math.fround(Math.fround(place - first) * FIXED));
    const clip = (x) => Math.min(Math.max(x, 0), size - 1);
    return [clip(first), clip(first + 1), weight];
  });
}

// A picture (RGBA) in a grey canvas of the model's size: RGB, height x width x 3
export function letterbox(picture, imgsz) {
  const [height, width, top, left] = placement(picture, imgsz);
  const canvas = new Uint8Array(imgsz[0] * imgsz[1] * 3).fill(GREY);
  const same = height === picture.height && width === picture.width;
  const columns = neighbours(picture.width, width);
  const rows = neighbours(picture.height, height);
  const at = (y, x, c) => picture.data[(y * picture.width + x) * 4 + c];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        let value = same ? at(y, x, c) : 0;
        if (!same) {
          const [[above, below, low], [near, next, far]] = [rows[y], columns[x]];
          const across = (row) => (at(row, near, c) * (FIXED - far) + at(row, next, c) * far) >> 4;
          value = (((across(above) * (FIXED - low)) >> 16) + ((across(below) * low) >> 16) + 2) >> 2;
        }
        canvas[((y + top) * imgsz[1] + x + left) * 3 + c] = value;
      }
    }
  }
  return canvas;
}

// A canvas as the model's input: 1 3 H W, 0..1
export function toTensor(canvas, height, width) {
  const tensor = new Float32Array(3 * height * width);
  for (let i = 0; i < height * width; i++) for (let c = 0; c < 3; c++) tensor[c * height * width + i] = canvas[i * 3 + c] / 255;
  return tensor;
}

// Boxes of a head's output in pixels of the picture: x1 y1 x2 y2 score class, the best score first
export function decode(data, dims, facts, picture, conf) {
  const rows = facts.head === "one2many" ? suppress(data, dims, conf) : finalRows(data, dims, conf);
  const [height, width, top, left] = placement(picture, facts.imgsz);
  const scale = [width / picture.width, height / picture.height];
  const ends = [picture.width, picture.height];
  return rows.map((row) => {
    const corners = [0, 1, 2, 3].map((i) => (row[i] - [left, top][i % 2]) / scale[i % 2]);
    return [...corners.map((side, i) => Math.min(Math.max(side, 0), ends[i % 2])), row[4], row[5]];
  });
}

function finalRows(data, [, count], conf) {
  const rows = Array.from({ length: count }, (_, i) => Array.from(data.slice(i * 6, i * 6 + 6)));
  return rows.filter((row) => row[4] > conf).slice(0, MAX_DET);
}

function suppress(data, [, channels, anchors], conf) {
  const found = [];
  for (let a = 0; a < anchors; a++) {
    let [score, label] = [-1, 0];
    for (let c = 4; c < channels; c++) if (data[c * anchors + a] > score) [score, label] = [data[c * anchors + a], c - 4];
    if (!(score > conf)) continue;
    const [x, y, w, h] = [0, 1, 2, 3].map((i) => data[i * anchors + a]);
    found.push([x - w / 2, y - h / 2, x + w / 2, y + h / 2, score, label]);
  }
  found.sort((a, b) => b[4] - a[4]);
  const kept = [];
  for (const row of found) {
    if (kept.length === MAX_DET) break;
    if (kept.every((other) => iou(row, other) <= NMS_IOU)) kept.push(row);
  }
  return kept;
}

function iou(a, b) {
  if (a[5] !== b[5]) return 0;
  const [w, h] = [0, 1].map((i) => Math.max(Math.min(a[i + 2], b[i + 2]) - Math.max(a[i], b[i]), 0));
  const area = (row) => (row[2] - row[0]) * (row[3] - row[1]);
  return w * h === 0 ? 0 : (w * h) / (area(a) + area(b) - w * h);
}
