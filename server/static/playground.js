"use strict";

const byId = (id) => document.getElementById(id);
const [form, file, before, after, said] = ["form", "file", "before", "after", "said"].map(byId);

const asDataUri = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

async function showHealth() {
  const health = await (await fetch("health")).json();
  byId("state").value = health.detail ? `${health.state}, ${health.detail}` : health.state;
  byId("notice").textContent = health.notice;
  byId("notice").hidden = !health.notice;
  if (health.state === "STARTING") setTimeout(showHealth, 500);
}

async function generate() {
  const blob = file.files[0] ?? (await (await fetch("static/beach.jpg")).blob());
  const input = { image_url: await asDataUri(blob), sync_mode: true };
  for (const [name, value] of new FormData(form)) {
    if (value === "") continue;
    input[name] = ["prompt", "negative_prompt"].includes(name) ? value : Number(value);
  }
  const headers = { "Content-Type": "application/json" };
  if (byId("key").value) headers.Authorization = `Key ${byId("key").value}`;
  const answer = await fetch("run/fal-ai/lcm-sd15-i2i", { method: "POST", headers, body: JSON.stringify(input) });
  const output = await answer.json();
  if (!answer.ok) throw new Error(output.message);
  after.src = output.images[0].url;
  after.hidden = false;
  const flagged = output.nsfw_content_detected[0] ? ", blackened by the safety checker" : "";
  return `${(output.timings.inference * 1000).toFixed(0)} ms, seed ${output.seed}${flagged}`;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  said.className = "";
  said.textContent = "…";
  try {
    said.textContent = await generate();
  } catch (error) {
    said.className = "wrong";
    said.textContent = error.message;
  } finally {
    button.disabled = false;
    showHealth(); // an unloaded engine was loaded for this
  }
});

file.addEventListener("change", async () => {
  if (file.files[0]) before.src = await asDataUri(file.files[0]);
});

showHealth();
