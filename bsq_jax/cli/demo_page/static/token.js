// A token that was clicked: its bits, and the picture with some of them flipped.

import { ask, loaded, pictureUrl } from "./api.js";

const by = (id) => document.getElementById(id);
const AROUND = 28; // pixels of a crop beside the token

export class TokenPanel {
  // `shown` is called with the picture of flipped bits, or null; `failed` with an error.
  constructor(viewer, shown, failed) {
    Object.assign(this, { viewer, shown, failed, number: 0 });
    this.clear();
  }

  clear() {
    this.number += 1;
    this.token = null;
    this.flips = new Set();
    by("token").hidden = true;
    by("token-hint").hidden = false;
    this.viewer.box("token-box", null);
    this.viewer.box("changed-box", null);
  }

  // `state` has id, bits, frame, prior, and coded, the picture of the reconstruction.
  async pick(state, x, y) {
    this.clear();
    this.shown(null);
    const number = this.number;
    try {
      const { id, bits, frame } = state;
      const token = await ask("token", { id, bits, frame, x, y });
      if (number !== this.number) return;
      Object.assign(this, { token, state: { ...state } });
      this.area = around(token.box, this.viewer.size);
      this.list();
      this.viewer.box("token-box", token.box);
      const before = await loaded(pictureUrl(state.coded, frame));
      if (number === this.number) {
        crop("crop-before", before, this.area, token.box);
        crop("crop-after", before, this.area, token.box);
        by("after-text").textContent = "click a bit to flip it";
      }
    } catch (error) {
      if (number === this.number) this.failed(error);
    }
  }

  list() {
    const { token, state } = this;
    by("token").hidden = false;
    by("token-hint").hidden = true;
    const takes = state.prior ? `, which take ${token.cost.toFixed(1)} in the file` : "";
    by("token-text").textContent =
      `Row ${token.row}, column ${token.column}: ${token.bits.length} bits${takes}`;
    by("token-bits").replaceChildren(
      ...token.bits.map((bit, number) => {
        const button = document.createElement("button");
        const flipped = this.flips.has(number);
        button.textContent = flipped ? 1 - bit : bit;
        button.classList.toggle("flipped", flipped);
        button.setAttribute("aria-pressed", flipped);
        button.title = `bit ${number + 1}: ${token.costs[number].toFixed(2)} bits of the file`;
        if (state.prior) {
          const cost = document.createElement("small");
          cost.textContent = token.costs[number].toFixed(1);
          button.append(cost);
        }
        button.addEventListener("click", () => this.flip(number));
        return button;
      }),
    );
  }

  async flip(bit) {
    if (!this.flips.delete(bit)) this.flips.add(bit);
    this.list();
    const number = ++this.number;
    const { id, bits, frame } = this.state;
    const { row, column, box } = this.token;
    by("after-text").textContent = "decoding…";
    try {
      const flips = [...this.flips];
      const made = await ask("flip", { id, bits, frame, row, column, flips });
      if (number !== this.number) return;
      const [before, after] = await Promise.all([
        loaded(pictureUrl(this.state.coded, frame)),
        loaded(pictureUrl(made.picture, 0)),
      ]);
      if (number !== this.number) return;
      crop("crop-before", before, this.area, box);
      crop("crop-after", after, this.area, box);
      this.viewer.box("changed-box", made.box);
      by("after-text").textContent = made.box
        ? `flipped: ${made.pixels.toLocaleString("en")} pixels differ, by up to ${made.largest}`
        : "nothing differs";
      this.shown(flips.length ? made.picture : null);
    } catch (error) {
      if (number !== this.number) return;
      if (!this.flips.delete(bit)) this.flips.add(bit);
      this.list();
      by("after-text").textContent = error.message;
    }
  }
}

// A square [left, top, side] around a box, inside the picture where that is large enough.
function around([top, left, bottom, right], [width, height]) {
  const side = Math.max(bottom - top, right - left) + 2 * AROUND;
  const start = (from, to, length) =>
    Math.round(Math.min(Math.max((from + to - side) / 2, 0), Math.max(length - side, 0)));
  return [start(left, right, width), start(top, bottom, height), side];
}

function crop(id, image, [left, top, side], box) {
  const canvas = by(id);
  const pen = canvas.getContext("2d");
  const scale = canvas.width / side;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, left, top, side, side, 0, 0, canvas.width, canvas.height);
  pen.strokeStyle = "#ffd23f";
  pen.lineWidth = 2;
  pen.strokeRect(
    (box[1] - left) * scale, (box[0] - top) * scale,
    (box[3] - box[1]) * scale, (box[2] - box[0]) * scale,
  );
}
