// The page: opens files, follows its sliders, fills the table and chooses the right-hand picture.

import { about, ask, pictureUrl, upload } from "./api.js";
import { TokenPanel } from "./token.js";
import { Viewer } from "./viewer.js";

const by = (id) => document.getElementById(id);
const PAUSE = 250; // milliseconds until a slider counts as set

let model = null;
let file = null; // what is open
let coded = null; // its answer to "encode"
let rows = new Map(); // lines of the table by codec
let right = "bsq"; // what is on the right: a codec, or "map"
let flippedPicture = null;
let frame = 0;
let openings = 0; // counts what was begun: older answers are dropped
let work = 0; // likewise, of what is computed for the file

const viewer = new Viewer((x, y) => {
  if (coded) panel.pick(state(), x, y);
});
const panel = new TokenPanel(
  viewer,
  (picture) => {
    flippedPicture = picture;
    if (picture) choose("bsq");
    else show();
  },
  (error) => say(error.message, true),
);

function state() {
  return { id: file.id, bits: coded.bits, frame, prior: coded.mode === "prior", coded: coded.picture };
}

function say(text, bad = false) {
  by("message").textContent = text;
  by("message").classList.toggle("bad", bad);
}

// --- opening ---

async function open(name, opening) {
  const number = ++openings;
  say(`Reading ${name}…`);
  try {
    const opened = await opening();
    if (number !== openings) return;
    file = opened;
    [coded, frame, flippedPicture, right] = [null, 0, null, "bsq"];
    panel.clear();
    viewer.resize(file.width, file.height);
    const size = `${file.name}, ${file.width}x${file.height} pixels`;
    const clip = file.frames > 1 ? `, ${file.frames} frames` : "";
    by("notes").textContent = [size + clip, ...file.notes].join(" · ");
    by("frame-control").hidden = file.frames < 2;
    by("frame").max = file.frames - 1;
    by("frame").value = 0;
    mark(name);
    encode();
  } catch (error) {
    if (number === openings) say(error.message, true);
  }
}

function openUpload(given) {
  if (!given) return;
  if (given.size > model.limits.upload_bytes) {
    openings += 1;
    say(`${given.name} is too large: give a file of ${megabytes()} MB at most`, true);
    return;
  }
  open(given.name, () => upload(given));
}

function openSample(name) {
  open(name, () => ask("sample", { name }));
}

function mark(name) {
  for (const button of by("samples").children) {
    button.setAttribute("aria-pressed", button.dataset.name === name);
  }
}

const megabytes = () => Math.round(model.limits.upload_bytes / 2 ** 20);

// --- coding ---

async function encode() {
  const number = ++work;
  const bits = model.bits[Number(by("bits").value)];
  say("Coding…");
  try {
    const made = await ask("encode", { id: file.id, bits });
    if (number !== work) return;
    coded = made;
    panel.clear();
    flippedPicture = null;
    rows = new Map();
    if (right === "map" && !coded.map) right = "bsq";
    if (right !== "bsq" && right !== "map" && !file.codecs.includes(right)) right = "bsq";
    by("result").hidden = false;
    table();
    show();
    for (const [done, codec] of file.codecs.entries()) {
      if (!by("message").className) say(`Comparing… ${done} of ${file.codecs.length}`);
      const row = await ask("compare", { id: file.id, bits, codec }).catch((error) => ({
        codec, title: codec, error: error.message,
      }));
      if (number !== work) return;
      rows.set(codec, row);
      table();
      if (codec === right) show();
    }
    if (!by("message").className) say("");
  } catch (error) {
    if (number === work) say(error.message, true);
  }
}

// --- showing ---

function show() {
  if (!coded) return;
  viewer.show("original", pictureUrl(file.picture, frame), "original");
  const row = rows.get(right);
  if (right === "map") {
    viewer.show("right", pictureUrl(coded.map.picture, frame), "bits of each token", true);
  } else if (right === "bsq" || !row || !row.picture) {
    const label = flippedPicture ? "flipped bits" : `${coded.bits} bits a token`;
    const url = flippedPicture ? pictureUrl(flippedPicture, 0) : pictureUrl(coded.picture, frame);
    viewer.show("right", url, label);
  } else {
    viewer.show("right", pictureUrl(row.picture, frame), `${row.title}, ${row.setting}`);
  }
  by("legend").hidden = right !== "map";
  if (coded.map) legend();
  by("frame-value").textContent = `${frame + 1} of ${file.frames}`;
}

function legend() {
  const { colours, highest, mean, total } = coded.map;
  by("scale").style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  by("highest").textContent = `${highest.toFixed(1)} bits`;
  const bytes = Math.round(total / 8).toLocaleString("en");
  by("legend-text").textContent = `${mean.toFixed(2)} a token on average, ${bytes} bytes in all`;
}

function choose(name) {
  right = name;
  if (name !== "bsq" && flippedPicture) {
    flippedPicture = null;
    panel.clear();
  }
  for (const input of document.querySelectorAll("input[name=right]")) {
    input.checked = input.value === right;
  }
  show();
}

function table() {
  by("map-choice").hidden = !coded.map;
  by("rows").replaceChildren(...file.codecs.map(line));
  for (const input of document.querySelectorAll("input[name=right]")) {
    input.checked = input.value === right;
  }
}

function line(codec) {
  const own = { title: "this model", setting: `${coded.bits} bits a token`, bytes: coded.bytes };
  const row = rows.get(codec) || (codec === "bsq" ? own : { title: codec });
  const element = document.createElement("tr");
  const cell = (text, small) => {
    const made = element.insertCell();
    made.textContent = text;
    if (small) made.append(Object.assign(document.createElement("small"), { textContent: small }));
    return made;
  };
  const number = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : "–");
  const input = Object.assign(document.createElement("input"), {
    type: "radio", name: "right", value: codec, id: `right-${codec}`,
  });
  input.setAttribute("aria-label", `show ${row.title} on the right`);
  input.disabled = codec !== "bsq" && !row.picture;
  cell("").append(input);
  const small = row.fits === false ? `${row.setting}, its smallest file` : row.setting;
  cell(row.title, row.error || small);
  cell(row.bytes === undefined ? "…" : row.bytes.toLocaleString("en"));
  const pixels = file.frames * file.width * file.height;
  cell(row.bytes === undefined ? "…" : ((8 * row.bytes) / pixels).toFixed(3));
  cell(number(row.psnr, 2));
  cell(number(row.lpips, 3));
  element.classList.toggle("large", row.fits === false);
  return element;
}

// --- the controls ---

function bitsShown() {
  by("bits-value").textContent = model.bits[Number(by("bits").value)];
}

let waiting = 0;
by("bits").addEventListener("input", () => {
  bitsShown();
  clearTimeout(waiting);
  if (file) waiting = setTimeout(encode, PAUSE);
});
by("frame").addEventListener("input", () => {
  frame = Number(by("frame").value);
  flippedPicture = null;
  panel.clear();
  show();
});
document.addEventListener("change", (event) => {
  if (event.target.name === "right") choose(event.target.value);
});
by("file").addEventListener("change", () => {
  openUpload(by("file").files[0]);
  by("file").value = "";
});
by("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") by("file").click();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && model) openUpload(event.dataTransfer.files[0]);
  });
}

async function begin() {
  model = await about();
  by("model").textContent = model.model + (model.prior ? "" : ", without a prior");
  const { pixels, frames } = model.limits;
  by("limits").textContent =
    `${megabytes()} MB at most; made smaller to ${(pixels / 1e6).toFixed(1)} megapixels; ` +
    `of clips the first ${frames} frames, smaller`;
  by("bits").max = model.bits.length - 1;
  by("bits").value = model.bits.length - 1;
  by("bits").disabled = model.bits.length < 2;
  bitsShown();
  by("samples").replaceChildren(
    ...model.samples.map((name) => {
      const button = document.createElement("button");
      button.dataset.name = name;
      const picture = Object.assign(new Image(), { alt: "", src: `/samples/${name}` });
      const label = document.createElement("span");
      label.textContent = name.replace(/\.\w+$/, "");
      button.append(picture, label);
      button.addEventListener("click", () => openSample(name));
      return button;
    }),
  );
}

begin().catch((error) => say(error.message, true));
