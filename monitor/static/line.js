// One curve of one run in the browser: what came from the server, extended by what is new.
import { floats } from "./util.js";

export class Line {
  constructor() {
    this.x = new Float64Array(0);
    this.y = new Float32Array(0);
    this.sx = this.sy = null;
    this.broken = [];
    this.marks = [];
    this.branches = [];
    this.key = "";
    this.none = "";
  }

  take(update, scale) {
    this.key = update.key;
    this.none = update.none ?? "";
    if (this.none) {
      this.x = new Float64Array(0);
      this.y = new Float32Array(0);
      this.sx = this.sy = null;
      return null;
    }
    const from = update.at === null ? null : (update.at + update.x0) * scale;
    const before = from === null || update.broken ? null : this.tail(from);
    [this.x, this.y] = merged(this.x, this.y, from, update.x, update.y, update.x0, scale);
    if (update.sx) {
      const old = from === null || !this.sx ? [new Float64Array(0), new Float32Array(0)] : [this.sx, this.sy];
      [this.sx, this.sy] = merged(...old, from, update.sx, update.sy, update.x0, scale);
    } else {
      this.sx = this.sy = null;
    }
    if (from === null) {
      this.marks = update.marks.map((x) => x * scale);
      this.branches = update.branches.map((b) => [scaled(floats(b.x), 0, scale), floats(b.y)]);
      this.broken = [];
    } else {
      this.broken = this.broken.filter(([x]) => x < from);
    }
    for (const [x, kind] of update.broken ?? []) this.broken.push([x * scale, kind]);
    return { before, after: before && this.tail(from) };
  }

  // What the part from x on looks like: its last x, its lowest and highest y.
  tail(from) {
    let low = Infinity, high = -Infinity, i = this.x.length;
    while (i > 0 && this.x[i - 1] >= from) {
      i--;
      if (this.y[i] < low) low = this.y[i];
      if (this.y[i] > high) high = this.y[i];
    }
    return [this.x.at(-1), low, high];
  }
}

function scaled(values, origin, scale) {
  const out = new Float64Array(values.length);
  for (let i = 0; i < values.length; i++) out[i] = (values[i] + origin) * scale;
  return out;
}

function merged(x, y, from, x64, y64, origin, scale) {
  const newX = scaled(floats(x64), origin, scale);
  const newY = floats(y64);
  if (from === null) return [newX, newY];
  let low = 0, high = x.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (x[mid] < from) low = mid + 1;
    else high = mid;
  }
  const outX = new Float64Array(low + newX.length);
  const outY = new Float32Array(low + newY.length);
  outX.set(x.subarray(0, low));
  outX.set(newX, low);
  outY.set(y.subarray(0, low));
  outY.set(newY, low);
  return [outX, outY];
}
