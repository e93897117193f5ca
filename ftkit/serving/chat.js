"use strict";
const $ = id => document.getElementById(id);
const KANA = /[\u3041-\u30ff]/, HAN = /[\u4e00-\u9fff]/g, LONG_WITHOUT_KANA = 20;
const GONE = "the endpoint does not answer; stage=deploy starts it again";
const BROKE_OFF = "the answer broke off; the endpoint's log says why";

class Said extends Error {}  // what is wrong, in the endpoint's own words

let models = [], turns = kept("turns") ?? [], asking = null;

function kept(name) {
  try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; }
}

function keep(name, value) {
  try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* full, or forbidden: kept until a reload */ }
}

function made(tag, into, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return into.appendChild(element);
}

function markLanguage(element, text) {
  const ideographs = text.match(HAN)?.length ?? 0;
  if (KANA.test(text)) element.lang = "ja";
  else if (ideographs) element.lang = ideographs >= LONG_WITHOUT_KANA ? "zh" : "ja";
  else element.removeAttribute("lang");
}

// An answer is {model, thinking, output, note, failed, busy}; its view follows it by the function that comes back.
function show(answer, into) {
  const article = made("article", into);
  made("h2", article, answer.model);
  const details = made("details", article), summary = made("summary", details);
  const thinking = made("div", details, "", "thinking"), output = made("div", article, "", "output"), note = made("p", article);
  const texts = [thinking, output].map(element => element.appendChild(document.createTextNode("")));
  return () => {
    const follow = innerHeight + scrollY > document.documentElement.scrollHeight - 40;
    for (const [text, said] of [[texts[0], answer.thinking], [texts[1], answer.output]]) {
      if (said.length === text.length) continue;
      text.appendData(said.slice(text.length));  // adds, so that what a reader has selected stays selected
      markLanguage(text.parentNode, said);
    }
    details.hidden = !answer.thinking;
    summary.textContent = answer.busy && !answer.output ? "Thinking …" : "Thinking";
    note.hidden = !answer.note;
    note.textContent = answer.note;
    note.className = answer.failed ? "failed" : "";
    article.ariaBusy = String(answer.busy);
    if (follow) scrollTo(0, document.documentElement.scrollHeight);
  };
}

function showTurn(turn) {
  const section = made("div", $("turns"));
  markLanguage(made("div", section, turn.question, "question"), turn.question);
  const answers = made("div", section, "", "answers");
  return turn.answers.map(answer => {
    const draw = show(answer, answers);
    draw();
    return draw;
  });
}

function tell(wrong) {
  $("wrong").hidden = !wrong;
  $("wrong").textContent = wrong;
}

async function wordsOf(response) {
  try { return (await response.json()).error.message; } catch { return `the endpoint failed with status ${response.status}`; }
}

async function findModels() {
  try {
    const response = await fetch("v1/models");
    if (!response.ok) throw new Said(await wordsOf(response));
    const listed = (await response.json()).data;
    models = listed.filter(model => !model.root || model.root === model.id).map(model => model.id);
    tell("");
  } catch (error) {
    tell(error instanceof Said ? error.message : GONE);
    return;
  }
  const picked = kept("picked") ?? models;
  for (const name of models) {
    const label = made("label", $("models")), box = made("input", label);
    Object.assign(box, {type: "checkbox", value: name, checked: picked.includes(name)});
    box.onchange = () => keep("picked", pickedModels());
    made("span", label, name);
  }
  $("models").hidden = models.length < 2;
}

function pickedModels() {
  return models.length < 2 ? models : [...$("models").querySelectorAll(":checked")].map(box => box.value);
}

// What a model was asked and has answered, with its own answers alone; then the question.
function messagesFor(model, question) {
  const system = $("system").value.trim(), messages = system ? [{role: "system", content: system}] : [];
  for (const turn of turns) {
    const answer = turn.answers.find(answer => answer.model === model);
    if (answer?.output) messages.push({role: "user", content: turn.question}, {role: "assistant", content: answer.output});
  }
  return [...messages, {role: "user", content: question}];
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let left = "";;) {
    const {value, done} = await reader.read();
    if (done) return;
    const events = (left + value).split("\n\n");
    left = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function add(answer, event) {
  if (event.error) throw new Said(event.error.message);
  const {delta, finish_reason} = event.choices[0];
  answer.thinking += delta.reasoning_content ?? "";
  answer.output += delta.content ?? "";
  const calls = (delta.tool_calls ?? []).map(call => `calls ${call.function.name} ${call.function.arguments}`);
  answer.note = [answer.note, ...calls, event.note].filter(Boolean).join("; ");
  return Boolean(finish_reason);
}

async function ask(answer, messages, draw, signal) {
  let response, frame = 0, ended = false;
  const temperature = $("temperature").value, sampled = temperature ? {temperature: Number(temperature)} : {};
  const body = JSON.stringify({model: answer.model, messages, stream: true, ...sampled});
  try {
    response = await fetch("v1/chat/completions", {method: "POST", headers: {"Content-Type": "application/json"}, body, signal});
    if (!response.ok) throw new Said(await wordsOf(response));
    for await (const event of eventsOf(response)) {
      ended = add(answer, event) || ended;
      frame ||= requestAnimationFrame(() => { frame = 0; draw(); });
    }
    if (!ended) throw new Said(BROKE_OFF);
  } catch (error) {
    answer.failed = !signal.aborted;
    answer.note = signal.aborted ? "stopped" : error instanceof Said ? error.message : response ? BROKE_OFF : GONE;
  }
  answer.busy = false;
  draw();
}

$("ask").onsubmit = async event => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || asking) return;
  if (!models.length) await findModels();
  const names = pickedModels();
  if (!names.length) return models.length && tell("pick a model to ask");
  tell("");
  asking = new AbortController();
  const {signal} = asking, sent = names.map(name => messagesFor(name, question));
  const answers = names.map(model => ({model, thinking: "", output: "", note: "", failed: false, busy: true}));
  turns.push({question, answers});
  const drawn = showTurn(turns.at(-1));
  $("question").value = "";
  [$("send").hidden, $("stop").hidden] = [true, false];
  scrollTo(0, document.documentElement.scrollHeight);
  await Promise.all(answers.map((answer, i) => ask(answer, sent[i], drawn[i], signal)));
  asking = null;
  [$("send").hidden, $("stop").hidden] = [false, true];
  if (answers.every(answer => answer.failed) && !$("question").value) $("question").value = question;
  keep("turns", turns);
};

$("question").onkeydown = event => {
  // The Enter that ends a conversion of kana is no order to send; where fingers type, Enter is a new line.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229 || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  $("ask").requestSubmit();
};
$("question").oninput = () => markLanguage($("question"), $("question").value);
$("stop").onclick = () => asking?.abort();
$("new").onclick = () => {
  asking?.abort();
  turns = [];
  keep("turns", turns);
  $("turns").replaceChildren();
  $("question").focus();
};
addEventListener("pagehide", () => keep("turns", turns));

for (const turn of turns) {
  for (const answer of turn.answers) if (answer.busy) Object.assign(answer, {busy: false, note: "stopped"});
  showTurn(turn);
}
scrollTo(0, document.documentElement.scrollHeight);
findModels();
