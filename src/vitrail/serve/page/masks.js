// Masks over a photo: COCO's run lengths decoded, and painted in the colours of `vitrail segment`.
"use strict";

const GOLDEN = 0.618033988749895, LIGHTNESS = [0.5, 0.75, 0.3, 0.65, 0.4], SATURATION = 0.95;
const MOST_SIDE = 1280, INSIDE_ALPHA = 115, CONTOUR = 2;

// RGB of a class by its number in the map of labels, as in vitrail/masks/overlay.py.
function colourOf(number) {
  const hue = (number * GOLDEN) % 1, light = LIGHTNESS[number % LIGHTNESS.length];
  const most = light <= 0.5 ? light * (1 + SATURATION) : light + SATURATION - light * SATURATION, least = 2 * light - most;
  return [hue + 1 / 3, hue, hue - 1 / 3].map((turn) => {
    const at = ((turn % 1) + 1) % 1;
    const share = at < 1 / 6 ? 6 * at : at < 1 / 2 ? 1 : at < 2 / 3 ? 6 * (2 / 3 - at) : 0;
    return Math.round(255 * (least + (most - least) * share));
  });
}

// The compressed counts: five bits a sign, low first, the sixth says that more follow; differences from the fourth on.
function runsOf(text) {
  const counts = [];
  for (let place = 0; place < text.length;) {
    let value = 0, shift = 0, bits;
    do {
      bits = text.charCodeAt(place++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

// Writes `value` into a map of width × height wherever the mask, of the photo's size, is inside.
function mark(map, width, height, mask, value) {
  const [rows, columns] = mask.size, counts = runsOf(mask.counts);
  let run = 0, end = counts[0];
  for (let x = 0; x < width; x++) {
    const begin = Math.floor((x + 0.5) * columns / width) * rows;
    for (let y = 0; y < height; y++) {
      const place = begin + Math.floor((y + 0.5) * rows / height);
      while (place >= end) end += counts[++run];
      if (run & 1) map[y * width + x] = value;
    }
  }
}

function fit([rows, columns]) {
  const scale = Math.min(1, MOST_SIDE / Math.max(rows, columns));
  return [Math.max(1, Math.round(columns * scale)), Math.max(1, Math.round(rows * scale))];
}

// Masks with their colours over a canvas of the photo's shape; later ones over earlier ones.
function paint(canvas, size, masks) {
  const [width, height] = fit(size);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const map = new Uint16Array(width * height);
  masks.forEach(({ mask }, i) => mark(map, width, height, mask, i + 1));
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), pixels = image.data;
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      const value = map[place];
      if (!value) continue;
      const [red, green, blue] = masks[value - 1].colour;
      let edge = false;
      for (let step = 1; step <= CONTOUR && !edge; step++) {
        edge = (x >= step && map[place - step] !== value) || (x + step < width && map[place + step] !== value)
          || (y >= step && map[place - step * width] !== value) || (y + step < height && map[place + step * width] !== value);
      }
      const at = 4 * place;
      pixels[at] = red; pixels[at + 1] = green; pixels[at + 2] = blue; pixels[at + 3] = edge ? 255 : INSIDE_ALPHA;
    }
  }
  context.putImageData(image, 0, 0);
}
