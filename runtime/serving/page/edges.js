/**
 * Canny edges, to show at once what the server's preprocessor `canny` will make of an image.
 *
 * It is OpenCV's detector with the preprocessor's thresholds, and gives the same pixels: the median grey level
 * minus and plus a third of it, Sobel's derivatives, |x| + |y| as magnitude, edges of 8-connected pixels.
 */

const SIGMA = 0.33;
const TAN_22 = 13573; // tan(22.5 degrees) in units of 1 / 32768

/** Return the edges of an image as ImageData, white on black, opaque. */
export function cannyEdges({ data, width, height }) {
  const grey = greyLevels(data, width * height);
  const median = medianLevel(grey);
  const low = Math.trunc((1 - SIGMA) * median);
  const high = Math.trunc(Math.min(255, (1 + SIGMA) * median));
  const { dx, dy, magnitude } = gradients(grey, width, height);
  const marks = thinned(dx, dy, magnitude, width, height, low, high);
  return painted(connected(marks, width, height), width, height);
}

function greyLevels(data, count) {
  const grey = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    grey[i] = (data[4 * i] * 9798 + data[4 * i + 1] * 19235 + data[4 * i + 2] * 3735 + 16384) >> 15;
  }
  return grey;
}

function medianLevel(grey) {
  const counts = new Uint32Array(256);
  for (const level of grey) counts[level]++;
  const at = (rank) => {
    let level = 0;
    for (let below = counts[0]; below <= rank; below += counts[level]) level++;
    return level;
  };
  return (at((grey.length - 1) >> 1) + at(grey.length >> 1)) / 2;
}

/** Sobel's derivatives with repeated borders. The magnitude has a border of zeros, one pixel wide. */
function gradients(grey, width, height) {
  const dx = new Int16Array(width * height);
  const dy = new Int16Array(width * height);
  const magnitude = new Int32Array((width + 2) * (height + 2));
  for (let y = 0; y < height; y++) {
    const above = Math.max(y - 1, 0) * width;
    const here = y * width;
    const below = Math.min(y + 1, height - 1) * width;
    for (let x = 0; x < width; x++) {
      const left = Math.max(x - 1, 0);
      const right = Math.min(x + 1, width - 1);
      const gx =
        grey[above + right] - grey[above + left] +
        2 * (grey[here + right] - grey[here + left]) +
        grey[below + right] - grey[below + left];
      const gy =
        grey[below + left] - grey[above + left] +
        2 * (grey[below + x] - grey[above + x]) +
        grey[below + right] - grey[above + right];
      dx[here + x] = gx;
      dy[here + x] = gy;
      magnitude[(y + 1) * (width + 2) + x + 1] = Math.abs(gx) + Math.abs(gy);
    }
  }
  return { dx, dy, magnitude };
}

/** Mark ridges of the magnitude: 2 above `high`, 1 above `low`, 0 elsewhere; with a border of zeros. */
function thinned(dx, dy, magnitude, width, height, low, high) {
  const stride = width + 2;
  const marks = new Uint8Array(magnitude.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = (y + 1) * stride + x + 1;
      const strength = magnitude[at];
      if (strength <= low) continue;
      const gx = dx[y * width + x];
      const gy = dy[y * width + x];
      const [before, after, strict] = neighbours(gx, gy, stride);
      const next = magnitude[at + after];
      if (strength > magnitude[at + before] && (strict ? strength > next : strength >= next)) {
        marks[at] = strength > high ? 2 : 1;
      }
    }
  }
  return marks;
}

/** Offsets of the two pixels along the gradient, and whether the second has to be smaller too. */
function neighbours(gx, gy, stride) {
  const x = Math.abs(gx);
  const y = Math.abs(gy) * 32768;
  if (y < x * TAN_22) return [-1, 1, false];
  if (y > x * (TAN_22 + 65536)) return [-stride, stride, false];
  const side = (gx ^ gy) < 0 ? -1 : 1;
  return [-stride - side, stride + side, true];
}

/** Follow weak marks from strong ones; those reached are strong as well. */
function connected(marks, width, height) {
  const stride = width + 2;
  const around = [-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1];
  const open = [];
  for (let at = stride; at < stride * (height + 1); at++) if (marks[at] === 2) open.push(at);
  while (open.length) {
    const at = open.pop();
    for (const offset of around) {
      if (marks[at + offset] === 1) {
        marks[at + offset] = 2;
        open.push(at + offset);
      }
    }
  }
  return marks;
}

function painted(marks, width, height) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer).fill(0xff000000);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (marks[(y + 1) * (width + 2) + x + 1] === 2) pixels[y * width + x] = 0xffffffff;
    }
  }
  return image;
}
