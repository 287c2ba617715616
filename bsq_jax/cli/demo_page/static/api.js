// Requests to the server. An error is thrown with the line that the server gave.

async function answered(response) {
  let content = null;
  try {
    content = await response.json();
  } catch {
    throw new Error(`the server answered with status ${response.status}`);
  }
  if (!response.ok) throw new Error(content.error || `status ${response.status}`);
  return content;
}

async function sent(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  return answered(response);
}

const OWN = { "X-Bsq-Jax-Demo": "1" };

export const about = () => sent("/about");

export const ask = (what, fields) =>
  sent(`/${what}`, {
    method: "POST",
    headers: { ...OWN, "Content-Type": "application/json" },
    body: JSON.stringify(fields),
  });

export const upload = (file) =>
  sent(`/open?name=${encodeURIComponent(file.name)}`, {
    method: "POST",
    headers: { ...OWN, "Content-Type": "application/octet-stream" },
    body: file,
  });

export const pictureUrl = (name, frame) => `/pictures/${name}/${frame}.png`;

export function loaded(url) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("this picture is held no longer: open it again"));
    image.src = url;
  });
}
